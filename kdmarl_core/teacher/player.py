"""The teacher as a player of the reference simulator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from kdmarl_core.tasks import TaskSpec
from kdmarl_core.tasks.task import Floats
from kdmarl_core.teacher.teacher import Teacher


class TeacherPlayer:
    """The teacher's most probable actions."""

    def __init__(self, teacher: Teacher, spec: TaskSpec) -> None:
        self._teacher = teacher
        self._padded = torch.zeros(spec.num_agents, spec.observation_size)
        self._mask = torch.from_numpy(spec.action_exists)

    def reset(self, seed: int) -> None:
        """A feed-forward teacher has no past."""

    def act(self, observations: Sequence[Floats]) -> list[int]:
        """Greedy actions."""
        for row, observation in zip(self._padded, observations, strict=True):
            row[: len(observation)] = torch.from_numpy(np.asarray(observation))
        with torch.no_grad():
            actions: list[int] = self._teacher.logits(self._padded, self._mask).argmax(-1).tolist()
        return actions
