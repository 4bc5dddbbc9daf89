"""Learned messages against what all sensors of the team say, for students of the same size.

    python benchmarks/shared_sensors.py --team simple_spread_random

Students are distilled four times, as in `kdmarl messages` but with fewer iterations: silent;
reading, beside their own sensors, those of all others, as they are and as they were a step ago;
and with learned messages, a step late. Sensors cost 32 bits per feature, and nothing is lost of
them: what messages keep less than they do is lost on the way, and what they keep more they have
prepared for their readers.
"""

from __future__ import annotations

import argparse
import functools
import sys

import torch
from torch import Tensor

from kdmarl_core.cli.common import run
from kdmarl_core.distil.coordination import CoordinationHeads
from kdmarl_core.distil.expert_buffer import ExpertBuffer, fill_buffer
from kdmarl_core.distil.learner import Learner
from kdmarl_core.distil.offline import learn_offline
from kdmarl_core.distil.on_policy import OnPolicy, StudentsActing
from kdmarl_core.distil.recipe import load_recipe
from kdmarl_core.distil.run import Work, planned_buffer
from kdmarl_core.distil.stacked import StackedLinear
from kdmarl_core.distil.student import StudentTeam
from kdmarl_core.errors import UserError
from kdmarl_core.evaluate import RandomPlayer, play, returns
from kdmarl_core.metrics import Returns, normalised_retention, percent
from kdmarl_core.process import prepare_training
from kdmarl_core.restriction import Restriction
from kdmarl_core.seeding import derive_seed
from kdmarl_core.tasks import BatchStep
from kdmarl_core.tasks.task import Booleans
from kdmarl_core.teacher.player import TeacherPlayer
from kdmarl_core.teacher.rollout import Collector
from kdmarl_core.teacher.teacher import find_teacher, load_teacher
from kdmarl_core.team import Team, load_team

CERTAIN = 1e6  # times log-probabilities: what is drawn is the greedy action


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--team", default="simple_spread_random", help="a silent one of MPE")
    parser.add_argument("--width", type=int, default=32, help="of all students (default 32)")
    parser.add_argument("--size", type=int, default=8, help="of messages (default 8 int8 values)")
    parser.add_argument("--iterations", type=int, default=400, help="on-policy (default 400)")
    parser.add_argument("--episodes", type=int, default=1000, help="default 1000")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    return run(measure, parser.parse_args())


def measure(arguments: argparse.Namespace) -> None:
    """Print one line for each team of students."""
    prepare_training(1)
    student = f"defaults.student={{network: gru, width: {arguments.width}}}"
    silent = load_team(arguments.team, [student])
    talking = load_team(
        arguments.team, [student, f"defaults.messages={{size: {arguments.size}, to: all}}"]
    )
    iterations = f"on_policy.iterations={arguments.iterations}"
    recipe = load_recipe("distil_messages", [iterations])
    spec = silent.task.spec
    if spec.ends_early:
        raise UserError(
            f"--team {arguments.team}: episodes of {spec.name} end early, and these figures "
            "are of episodes of one length; give a team of MPE"
        )
    teacher, card = load_teacher(find_teacher(silent.teacher), spec)
    env = silent.task.make_reference()
    best = returns(list(play(env, TeacherPlayer(teacher, spec), arguments.episodes, 0)))
    random = returns(list(play(env, RandomPlayer(), arguments.episodes, 0)))
    plan = Work(silent, teacher, card, recipe, arguments.seed)
    buffer = fill_buffer(silent.task, teacher, card, planned_buffer(plan))
    for name, team, make in (
        ("silent", silent, StudentTeam),
        ("sensors of all", silent, functools.partial(SharingTeam, late=False)),
        ("sensors of all, others a step late", silent, functools.partial(SharingTeam, late=True)),
        (f"{arguments.size} learned values, a step late", talking, StudentTeam),
    ):
        work = plan._replace(team=team)
        torch.manual_seed(derive_seed(work.seed, 10))
        students = make(team)
        learn(students, work, buffer)
        kept = normalised_retention(greedy(students, work, arguments.episodes), best, random)
        print(f"{name}: {percent(kept)}", flush=True)


class SharingTeam(StudentTeam):
    """Students that read what all of them sense."""

    def __init__(self, team: Team, *, late: bool) -> None:
        super().__init__(team)
        if any(robot.encoded for robot in team.robots):
            raise UserError(
                f"{team.path}: encoding: what others sense is not encoded; leave it out"
            )
        self.restriction = SharedSensors(team, late=late)
        self.aligner = StackedLinear(self.restriction.sizes, self.widths, 1.0)


class SharedSensors(Restriction):
    """The inputs of all others stand behind each robot's own.

    Late ones are those of the step before: zeros in the first one, which is that of all episodes
    at once, as all have the same length and rollouts begin with new ones.
    """

    def __init__(self, team: Team, *, late: bool) -> None:
        super().__init__(team)
        self._steps, self._late = team.task.spec.episode_steps, late
        self._step, self._before = 0, torch.empty(0)
        self.sizes = [len(self.sizes) * max(self.sizes)] * len(self.sizes)

    def inputs(self, observation: Tensor, visible: Tensor | None) -> Tensor:
        """Of whole episodes, from observations [T, B, N, D], or of the next step [B, N, D]."""
        own = told = super().inputs(observation, visible)
        if self._late and own.dim() == 4:
            told = torch.cat([torch.zeros_like(own[:1]), own[:-1]])
        elif self._late:
            told = self._before if self._step % self._steps else torch.zeros_like(own)
            self._before, self._step = own, self._step + 1
        others = [told.roll(shift, -2) for shift in range(1, own.shape[-2])]
        return torch.cat([own, *others], -1)


def learn(students: StudentTeam, work: Work, buffer: ExpertBuffer) -> None:
    """Both phases, as in `kdmarl distil`, without checkpoints."""
    recipe = work.recipe
    heads = CoordinationHeads(students, recipe.common_width, recipe.roles)
    learner = Learner(students, heads, recipe)
    for update in range(recipe.offline.updates):
        learn_offline(learner, buffer, recipe.offline, update, derive_seed(work.seed, 12))
    on_policy = OnPolicy(
        learner,
        work.team.task,
        *work.lessons,
        recipe.on_policy,
        buffer.projection,
        derive_seed(work.seed, 13),
    )
    for iteration in range(recipe.on_policy.iterations):
        on_policy.iterate(iteration)


def greedy(students: StudentTeam, work: Work, episodes: int) -> Returns:
    """Returns of so many episodes."""
    spec, seed = work.team.task.spec, derive_seed(work.seed, 14)
    acting = StudentsActing(students, seed)

    def certain(step: BatchStep, begins: Booleans) -> Tensor:
        return acting(step, begins) * CERTAIN

    env = work.team.task.make_batch(episodes)
    rollout = Collector(spec, env, spec.episode_steps, seed, anew=True).collect(certain, 0)
    found: Returns = rollout.reward.sum(0).double().numpy()
    return found


if __name__ == "__main__":
    sys.exit(main())
