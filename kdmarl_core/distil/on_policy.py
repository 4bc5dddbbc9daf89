"""On-policy phase: students act, the frozen teacher relabels the states that they meet."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from kdmarl_core.distil.learner import Learner
from kdmarl_core.distil.losses import Terms
from kdmarl_core.distil.messages import Delivery, Mail, Post, joined
from kdmarl_core.distil.recipe import OnPolicyPhase, decay
from kdmarl_core.distil.samples import (
    Batch,
    Labels,
    columns,
    each_step_alone,
    label,
    side_by_side,
)
from kdmarl_core.distil.student import StudentTeam
from kdmarl_core.errors import UserError
from kdmarl_core.seeding import derive_seed
from kdmarl_core.tasks import BatchStep, Task
from kdmarl_core.tasks.task import Booleans
from kdmarl_core.teacher.rollout import Collector, Rollout
from kdmarl_core.teacher.teacher import Teacher, TeacherCard

MESSAGE_STEPS = 25  # through which gradients follow messages back: a whole episode of MPE


def message_steps(rollout_steps: int) -> int:
    """The length of the equal parts of a rollout in which gradients follow messages back."""
    return max(n for n in range(1, MESSAGE_STEPS + 1) if rollout_steps % n == 0)


def refuse_short_parts(rollout_steps: int, delay_steps: int) -> None:
    """Raise a `UserError` if gradients could not follow messages so late through any part."""
    if delay_steps >= MESSAGE_STEPS:
        raise UserError(
            f"robots: messages: delay_steps: gradients follow messages through {MESSAGE_STEPS} "
            f"steps at most, so that none is trained that arrives {delay_steps} steps late; lower "
            "delay_steps"
        )
    parts = message_steps(rollout_steps)
    if parts <= delay_steps:
        better = math.ceil(rollout_steps / MESSAGE_STEPS) * MESSAGE_STEPS
        raise UserError(
            f"on_policy: rollout_steps: {rollout_steps} can be cut into parts of {parts} steps at "
            f"best, through which no gradient follows messages that are {delay_steps} steps late; "
            f"give {better}"
        )


class StudentsActing:
    """Students as the policy of a rollout that begins with new episodes."""

    def __init__(self, students: StudentTeam, seed: int) -> None:
        self._students = students
        self._generator = torch.Generator().manual_seed(seed)
        self._state = torch.empty(0)
        self._visible: Tensor | None = None
        self._shown: list[Tensor] = []
        self._inputs: list[Tensor] = []
        self._post: Post | None = None  # where robots tell each other anything
        self._mail: Mail | None = None
        self._delivered: list[Delivery] = []
        self._before: list[tuple[Tensor, Mail | None]] = []  # state and mail before each step

    def __call__(self, step: BatchStep, begins: Booleans) -> Tensor:
        """Log-probabilities [E, N, A], without gradients."""
        students, envs = self._students, len(begins)
        restriction = students.restriction
        if not self._inputs:
            self._state = students.initial_state(envs)
            self._mail = students.initial_mail(envs)
            if students.wiring:
                self._post = Post(students.wiring, envs, self._generator)
        if restriction.random and begins.any():
            fresh = restriction.draw(envs, self._generator)
            anew = torch.from_numpy(begins)[:, None, None]
            self._visible = (
                fresh if self._visible is None else torch.where(anew, fresh, self._visible)
            )
        with torch.no_grad():
            if self._visible is not None:
                self._shown.append(self._visible)
            inputs = restriction.inputs(torch.from_numpy(step.observation), self._visible)
            self._inputs.append(inputs)
            mask, start = torch.from_numpy(step.action_mask), torch.from_numpy(begins)
            delivery = self._post.step(start) if self._post else None
            if delivery:
                self._delivered.append(delivery)
                self._before.append((self._state, self._mail))
            output = students(
                inputs[None], mask[None], start[None], self._state, delivery, self._mail
            )
        self._state, self._mail = output.state, output.mail
        log_probs: Tensor = output.log_probs[0]
        return log_probs

    def inputs(self) -> Tensor:
        """What the students read in the rollout, [T, E, N, I]."""
        return torch.stack(self._inputs)

    def visible(self) -> Tensor | None:
        """Which features the episodes showed, [T, E, N, D]; None if all do, always."""
        return torch.stack(self._shown) if self._shown else None

    def delivery(self) -> Delivery | None:
        """What became of messages in the rollout; None where there are none."""
        return joined(self._delivered) if self._delivered else None

    def batch(self, labels: Labels) -> Batch:
        """What is learned from the rollout, in sequences of the length that students need.

        Gradients pass through messages for at most `MESSAGE_STEPS`: longer rollouts are cut into
        parts, each with the state and the mail that there were.
        """
        students, inputs = self._students, self.inputs()
        if not self._delivered:
            batch = Batch(inputs, students.initial_state(inputs.shape[1]), labels)
            return batch if students.recurrent else each_step_alone(batch)
        steps = message_steps(len(inputs))
        before = [self._before[start] for start in range(0, len(inputs), steps)]
        states, mails = zip(*before, strict=True)
        return Batch(
            side_by_side(inputs, steps, 1),
            torch.cat(states, -1),
            Labels(*(side_by_side(field, steps, 1) for field in labels)),
            Delivery(*(side_by_side(field, steps, 2) for field in joined(self._delivered))),
            Mail(*(torch.cat(fields, -1) for fields in zip(*mails, strict=True))),
        )


class OnPolicy:
    """The phase: owns the environments; iteration `k` depends on the seed and `k` only."""

    def __init__(
        self,
        learner: Learner,
        task: Task,
        teacher: Teacher,
        card: TeacherCard,
        phase: OnPolicyPhase,
        roles: Tensor,
        seed: int,
    ) -> None:
        """`roles` is U_T, as `fit_roles` gives it."""
        self._learner, self._phase, self._seed = learner, phase, seed
        self._teacher, self._card = teacher, card
        coordinate = phase.weights.structure > 0 or phase.weights.role > 0
        self._roles = roles if coordinate else None
        env = task.make_batch(phase.num_envs)
        self._collector = Collector(task.spec, env, phase.rollout_steps, seed, anew=True)

    def iterate(self, iteration: int) -> tuple[Terms, Rollout]:
        """One rollout and the updates on it; returns mean terms and what was sampled."""
        phase, learner = self._phase, self._learner
        acting = StudentsActing(learner.students, derive_seed(self._seed, iteration, 1))
        rollout = self._collector.collect(acting, iteration)
        visible = acting.visible() if self._teacher.team else None
        labels = label(rollout, self._teacher, self._card, self._roles, visible)
        batch = acting.batch(labels)
        rate = decay(phase.learning_rate, iteration, phase.iterations)
        terms = [
            learner.update(columns(batch, rows), phase.weights, rate)
            for rows in self._minibatches(batch.labels.begins.shape[1], iteration)
        ]
        means = Terms(*(torch.stack(values).mean() for values in zip(*terms, strict=True)))
        return means, rollout

    def _minibatches(self, sequences: int, iteration: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(derive_seed(self._seed, iteration, 2))
        for _ in range(self._phase.epochs):
            order = torch.randperm(sequences, generator=generator)
            yield from order.chunk(self._phase.minibatches)
