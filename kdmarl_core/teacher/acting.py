"""A teacher as the policy of rollouts: it remembers, and keeps what it read.

Shapes: `T` steps, `E` environments, `N` agents, `D` features, `I` inputs, `A` actions, `W` width.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from kdmarl_core.tasks import BatchStep
from kdmarl_core.tasks.task import Booleans
from kdmarl_core.teacher.teacher import Teacher, mask_logits


class Acting:
    """Logits for rollouts, without gradients.

    The past (the actor's state, and what each episode shows) goes on from rollout to rollout, as
    episodes may.
    """

    def __init__(
        self, teacher: Teacher, precision: Callable[[], AbstractContextManager[object]]
    ) -> None:
        """`precision` gives the context that the networks run in."""
        self._teacher, self._precision = teacher, precision
        self._past: Tensor | None = None
        self._visible: Tensor | None = None
        self.begin(0)

    def begin(self, seed: int) -> None:
        """A rollout begins; what its episodes show is drawn from the seed."""
        self._generator = torch.Generator().manual_seed(seed)
        self._inputs: list[Tensor] = []
        self._shown: list[Tensor] = []
        self._past_at_begin = self._past

    def __call__(self, step: BatchStep, begins: Booleans) -> Tensor:
        """Logits [E, N, A] of what is shown; `begins` [E] tells where the past is forgotten."""
        teacher, start = self._teacher, torch.from_numpy(begins)
        if self._past is None:
            self._past = self._past_at_begin = teacher.no_past(len(begins))
        if begins.any():
            self._draw(start)
        if self._visible is not None:
            self._shown.append(self._visible.clone())
        with torch.no_grad(), self._precision():
            inputs = teacher.reads(
                torch.from_numpy(step.observation), torch.from_numpy(step.state), self._visible
            )
            thoughts = teacher.through_time(inputs[None], start[None], self._past)
        self._past = thoughts.past
        self._inputs.append(inputs)
        return mask_logits(thoughts.logits[0].float(), torch.from_numpy(step.action_mask))

    def inputs(self) -> Tensor:
        """What the actor read since the rollout began, [T, E, N, I]."""
        return torch.stack(self._inputs)

    def visible(self) -> Tensor | None:
        """Which features the episodes showed, [T, E, N, D]; None if all do, always."""
        return torch.stack(self._shown) if self._shown else None

    @property
    def past_at_begin(self) -> Tensor:
        """The actor's state when the rollout began, [E, N, W]."""
        assert self._past_at_begin is not None
        return self._past_at_begin

    def _draw(self, start: Tensor) -> None:
        drawn = self._teacher.reads.draw(int(start.sum()), self._generator)
        if drawn is None:
            return
        if self._visible is None:
            self._visible = drawn.new_zeros(len(start), *drawn.shape[1:])
        self._visible[start] = drawn
