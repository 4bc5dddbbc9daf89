"""Networks of battles, which learn about a unit once, whichever slot lists it.

Every other unit is encoded by weights that its side shares, and the encodings are pooled, so that
the order of a side's units says nothing; an attack is scored by the encoding of whom it would hit.
Both as Hao et al. 2023 ("Boosting multiagent reinforcement learning via permutation invariant and
permutation equivariant networks"), in a plain form.

Shapes: `N` agents, `U` units of both sides, `A` actions, `I` inputs, `S` joint state, `W` width;
`...` any leading axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from kdmarl_core.nets.mlp import Mlp, linear
from kdmarl_core.tasks import Units

ENCODING_SHARE = 4  # a unit's encoding is so many times narrower than the first hidden layer


class UnitsActor(nn.Module):
    """Logits of all agents, from what each senses and the joint state."""

    def __init__(self, units: Units, hidden: Sequence[int], *, head_gain: float) -> None:
        super().__init__()
        self._units = units
        encoding = max(1, hidden[0] // ENCODING_SHARE)
        pair = units.own + units.seen + units.own
        self.allies, self.enemies = _encoder(pair, encoding), _encoder(pair, encoding)
        sizes = [units.own + units.shared + 2 * encoding, *hidden]
        self.layers = nn.ModuleList(linear(a, b, math.sqrt(2)) for a, b in pairwise(sizes))
        self.head = linear(sizes[-1], units.moves, head_gain)
        self.aim = linear(sizes[-1], encoding, head_gain)
        self.worth = linear(encoding, 1, head_gain)
        # Whom agent `i` lists: the units of both sides in order, less itself.
        agents = torch.arange(units.allies)[:, None]
        others = torch.arange(units.total - 1)
        self._listed = (agents, others + (others >= agents))  # [N, 1], [N, U - 1]

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Last hidden embeddings [..., N, W] and logits [..., N, A] of inputs [..., N, I].

        Inputs are an observation and, behind it, the joint state.
        """
        units = self._units
        sizes = [units.seen * (units.total - 1), units.own, units.own * units.total, units.shared]
        seen, own, rows, shared = torch.split(inputs, sizes, -1)
        seen = torch.unflatten(seen, -1, (-1, units.seen))
        listed = torch.unflatten(rows, -1, (-1, units.own))[..., *self._listed, :]
        about_me = own[..., None, :].expand_as(listed)
        pairs = torch.cat([about_me, seen, listed], -1)
        allies = self.allies(pairs[..., : units.allies - 1, :])
        enemies = self.enemies(pairs[..., units.allies - 1 :, :])
        x = torch.cat([own, shared, allies.amax(-2), enemies.amax(-2)], -1)
        for layer in self.layers:
            x = torch.relu(layer(x))
        attacks = enemies @ self.aim(x)[..., None] + self.worth(enemies)
        return x, torch.cat([self.head(x), attacks.squeeze(-1)], -1)


class UnitsCritic(nn.Module):
    """Values [..., 1] of the joint state [..., S]."""

    def __init__(self, units: Units, hidden: Sequence[int]) -> None:
        super().__init__()
        self._units = units
        encoding = max(1, hidden[0] // ENCODING_SHARE)
        self.allies, self.enemies = _encoder(units.own, encoding), _encoder(units.own, encoding)
        self.net = Mlp(4 * encoding + units.shared, hidden, 1, head_gain=1.0)

    def forward(self, state: Tensor) -> Tensor:
        """Each side pooled by its mean, too: how many are left matters."""
        units = self._units
        rows, shared = torch.split(state, [units.own * units.total, units.shared], -1)
        rows = torch.unflatten(rows, -1, (-1, units.own))
        allies = self.allies(rows[..., : units.allies, :])
        enemies = self.enemies(rows[..., units.allies :, :])
        pooled = [pool for side in (allies, enemies) for pool in (side.mean(-2), side.amax(-2))]
        value: Tensor = self.net(torch.cat([*pooled, shared], -1))
        return value


def _encoder(inputs: int, width: int) -> nn.Sequential:
    gain = math.sqrt(2)
    return nn.Sequential(
        linear(inputs, width, gain), nn.ReLU(), linear(width, width, gain), nn.ReLU()
    )
