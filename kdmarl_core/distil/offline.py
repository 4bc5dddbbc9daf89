"""Offline phase: minibatches from the expert buffer (Algorithm 1, lines 3-16)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from kdmarl_core.distil.expert_buffer import Samples, concatenate, label
from kdmarl_core.distil.learner import Learner, OfflinePhase, decay
from kdmarl_core.distil.losses import Terms
from kdmarl_core.tasks import Task
from kdmarl_core.teacher.rollout import Collector
from kdmarl_core.teacher.teacher import Teacher, TeacherCard

BUFFER_ENVS = 256


def fill_buffer(task: Task, teacher: Teacher, card: TeacherCard, steps: int, seed: int) -> Samples:
    """At least `steps` environment steps in which the teacher acted, drawn from its policy."""
    horizon = task.spec.episode_steps
    collector = Collector(task.spec, task.make_batch(BUFFER_ENVS), horizon, seed)

    def act(observation: torch.Tensor, action_mask: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return teacher.logits(observation, action_mask)

    rollouts = math.ceil(steps / (horizon * BUFFER_ENVS))
    return concatenate([label(collector.collect(act, i), teacher, card) for i in range(rollouts)])


def learn_offline(
    learner: Learner, buffer: Samples, phase: OfflinePhase, seed: int
) -> Iterator[Terms]:
    """Update the students once per item that is taken from this iterator."""
    generator = torch.Generator().manual_seed(seed)
    for update in range(phase.updates):
        index = torch.randint(len(buffer.action), (phase.minibatch,), generator=generator)
        rate = decay(phase.learning_rate, update, phase.updates)
        yield learner.update(buffer.rows(index), phase.weights, rate)
