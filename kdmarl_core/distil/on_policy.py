"""On-policy phase: students act, the frozen teacher relabels the states that they meet."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kdmarl_core.distil.expert_buffer import label
from kdmarl_core.distil.learner import Learner, OnPolicyPhase, decay
from kdmarl_core.distil.losses import Terms
from kdmarl_core.tasks import Task
from kdmarl_core.teacher.rollout import Collector
from kdmarl_core.teacher.teacher import Teacher, TeacherCard


def learn_on_policy(
    learner: Learner,
    task: Task,
    teacher: Teacher,
    card: TeacherCard,
    phase: OnPolicyPhase,
    seed: int,
) -> Iterator[tuple[Terms, float]]:
    """One iteration per item taken: mean terms, and the students' return while sampling."""
    env = task.make_batch(phase.num_envs)
    collector = Collector(task.spec, env, phase.rollout_steps, seed)
    generator = torch.Generator().manual_seed(seed)
    for iteration in range(phase.iterations):
        rollout = collector.collect(learner.students.policy, iteration)
        samples = label(rollout, teacher, card)
        rate = decay(phase.learning_rate, iteration, phase.iterations)
        terms = [
            learner.update(samples.rows(rows), phase.weights, rate)
            for _ in range(phase.epochs)
            for rows in torch.randperm(len(samples.action), generator=generator).chunk(
                phase.minibatches
            )
        ]
        means = Terms(*(torch.stack(values).mean() for values in zip(*terms, strict=True)))
        yield means, rollout.episode_return()
