"""A gated recurrent unit that runs through sequences in which episodes end and begin.

Shapes: `T` steps, `B` sequences side by side, `I` inputs, `W` width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from kdmarl_core.nets.mlp import linear


class GruNet(nn.Module):
    """Hidden layers with ReLU, of which the last is a GRU instead, and a linear head.

    Initialised as `Mlp`, each gate of the GRU by an orthogonal matrix of gain 1.
    """

    def __init__(
        self, inputs: int, hidden: Sequence[int], outputs: int, *, head_gain: float
    ) -> None:
        super().__init__()
        sizes = [inputs, *hidden]
        self.layers = nn.ModuleList(linear(a, b, math.sqrt(2)) for a, b in pairwise(sizes[:-1]))
        self.gru = Gru(sizes[-2], sizes[-1])
        self.head = linear(sizes[-1], outputs, head_gain)

    def embed(self, x: Tensor, begins: Tensor, state: Tensor) -> Tensor:
        """The GRU's state after each step, [T, B, W]; arguments as `Gru`."""
        for layer in self.layers:
            x = torch.relu(layer(x))
        states: Tensor = self.gru(x, begins, state)
        return states


class Gru(nn.Module):
    """One layer (Cho et al. 2014, in the form that torch computes), episode ends included.

    r, z = sigmoid(x W_x + h W_h), n = tanh(x W_xn + r * (h W_hn)), h' = n + z * (h - n), biases
    left out. As fast as torch's own fused layer, which cannot begin anew within a sequence.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, 3 * width)
        self.state = nn.Linear(width, 3 * width)
        for layer in (self.input, self.state):
            for gate in layer.weight.chunk(3):
                nn.init.orthogonal_(gate)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, begins: Tensor, state: Tensor) -> Tensor:
        """Run through time.

        Args:
            x: [T, B, I].
            begins: [T, B]; the state is zero before a step that begins an episode.
            state: [B, W] before the first step; no gradient flows into it.

        Returns:
            States after each step, [T, B, W].
        """
        projected = self.input(x)
        goes_on = (~begins)[..., None].to(projected.dtype)
        before = state.to(projected.dtype)
        states: Tensor = _Recurrence.apply(  # type: ignore[no-untyped-call]
            projected, goes_on, before, self.state.weight, self.state.bias
        )
        return states


class _Recurrence(torch.autograd.Function):
    """What depends on the step before, with the weights' gradient as one product at the end.

    Step by step autograd takes 1.6 times as long.
    """

    @staticmethod
    def forward(
        ctx: Any, projected: Tensor, goes_on: Tensor, state: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        """States [T, B, W] from projected inputs [T, B, 3 W]; goes_on is [T, B, 1]."""
        width, kind = state.shape[-1], projected.dtype
        across, bias = weight.to(kind).t(), bias.to(kind)
        kept, states = [], []
        for t in range(len(projected)):
            before = state * goes_on[t]
            recurrent = torch.addmm(bias, before, across)
            gates = torch.sigmoid(projected[t, :, : 2 * width] + recurrent[:, : 2 * width])
            reset, update = gates[:, :width], gates[:, width:]
            recurrent_new = recurrent[:, 2 * width :]
            new = torch.addcmul(projected[t, :, 2 * width :], reset, recurrent_new).tanh_()
            state = torch.addcmul(new, update, before - new)
            kept.append((before, gates, recurrent_new, new))
            states.append(state)
        ctx.kept = kept
        ctx.save_for_backward(goes_on, weight)
        return torch.stack(states)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of projected inputs, weight and bias."""
        (gradient,) = gradients
        goes_on, weight = ctx.saved_tensors
        steps, batch, width = gradient.shape
        by_input = gradient.new_empty(steps, batch, 3 * width)
        by_recurrent = torch.empty_like(by_input)
        back = weight.to(gradient.dtype)
        by_state = torch.zeros_like(gradient[0])
        for t in range(steps - 1, -1, -1):
            before, gates, recurrent_new, new = ctx.kept[t]
            reset, update = gates[:, :width], gates[:, width:]
            total = gradient[t] + by_state
            passed = total * update
            by_new = (total - passed) * (1 - new * new)
            by_gates = torch.cat([by_new * recurrent_new, total * (before - new)], -1)
            by_gates *= gates * (1 - gates)
            by_input[t, :, : 2 * width] = by_gates
            by_input[t, :, 2 * width :] = by_new
            by_recurrent[t, :, : 2 * width] = by_gates
            by_recurrent[t, :, 2 * width :] = by_new * reset
            by_state = torch.addmm(passed, by_recurrent[t], back) * goes_on[t]
        flat = by_recurrent.flatten(0, 1)
        states = torch.cat([before for before, *_ in ctx.kept])
        by_weight = (flat.t() @ states).to(weight.dtype)
        return by_input, None, None, by_weight, flat.sum(0, dtype=weight.dtype)
