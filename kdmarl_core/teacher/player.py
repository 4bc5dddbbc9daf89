"""The teacher as a player of the reference simulator."""

from __future__ import annotations

import torch
from torch import Tensor

from kdmarl_core.sensors import team_sensors
from kdmarl_core.tasks import TaskSpec, View
from kdmarl_core.teacher.reads import RestrictedReads
from kdmarl_core.teacher.teacher import Teacher, mask_logits


class TeacherPlayer:
    """The teacher's most probable actions; what it reads and remembers is its own affair."""

    def __init__(self, teacher: Teacher, spec: TaskSpec) -> None:
        self._teacher = teacher
        self._sensors = team_sensors(teacher.team) if teacher.team else []
        reads = teacher.reads
        width = reads.own_size if isinstance(reads, RestrictedReads) else spec.observation_size
        self._padded = torch.zeros(spec.num_agents, width)
        self._mask = torch.zeros(spec.num_agents, spec.num_actions, dtype=torch.bool)
        self._past, self._begins = teacher.no_past(1), True

    def reset(self, seed: int) -> None:
        """Forget the past, and draw what the episode hides as the students do."""
        self._begins = True
        for sensors in self._sensors:
            sensors.begin(seed)

    def act(self, view: View) -> list[int]:
        """Greedy actions."""
        for row, mask in zip(self._mask, view.action_masks, strict=True):
            row[: len(mask)] = torch.from_numpy(mask)
        begins = torch.tensor([[self._begins]])
        with torch.no_grad():
            inputs = self._inputs(view)[None, None]
            thoughts = self._teacher.through_time(inputs, begins, self._past)
        self._past, self._begins = thoughts.past, False
        logits = mask_logits(thoughts.logits[0, 0].float(), self._mask)
        actions: list[int] = logits.argmax(-1).tolist()
        return actions

    def _inputs(self, view: View) -> Tensor:
        reads, seen = self._teacher.reads, list(view.observations)
        if isinstance(reads, RestrictedReads):
            seen = [own.read(full) for own, full in zip(self._sensors, seen, strict=True)]
        for row, values in zip(self._padded, seen, strict=True):
            row[: len(values)] = torch.from_numpy(values)
        if isinstance(reads, RestrictedReads):
            return reads.indexed(self._padded)
        return reads(self._padded, torch.from_numpy(view.state), None)
