"""The teacher as a player of the reference simulator."""

from __future__ import annotations

import torch

from kdmarl_core.tasks import TaskSpec, View
from kdmarl_core.teacher.teacher import Teacher


class TeacherPlayer:
    """The teacher's most probable actions."""

    def __init__(self, teacher: Teacher, spec: TaskSpec) -> None:
        self._teacher = teacher
        self._padded = torch.zeros(spec.num_agents, spec.observation_size)
        self._mask = torch.zeros(spec.num_agents, spec.num_actions, dtype=torch.bool)

    def reset(self, seed: int) -> None:
        """A feed-forward teacher has no past."""

    def act(self, view: View) -> list[int]:
        """Greedy actions."""
        for row, observation in zip(self._padded, view.observations, strict=True):
            row[: len(observation)] = torch.from_numpy(observation)
        for row, mask in zip(self._mask, view.action_masks, strict=True):
            row[: len(mask)] = torch.from_numpy(mask)
        with torch.no_grad():
            logits = self._teacher.logits(self._padded, torch.from_numpy(view.state), self._mask)
        actions: list[int] = logits.argmax(-1).tolist()
        return actions
