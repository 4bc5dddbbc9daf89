"""Multilayer perceptrons with orthogonal initialisation."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn


class Mlp(nn.Module):
    """Hidden layers with ReLU and a linear head, run in bfloat16 where that is asked for.

    Orthogonal initialisation, gain sqrt(2) on hidden layers and `head_gain` on the head
    (Andrychowicz et al. 2021, "What matters in on-policy RL?": a small last layer of the policy).
    """

    def __init__(
        self, inputs: int, hidden: Sequence[int], outputs: int, *, head_gain: float
    ) -> None:
        super().__init__()
        sizes = [inputs, *hidden]
        self.layers = nn.ModuleList(linear(a, b, math.sqrt(2)) for a, b in pairwise(sizes))
        self.head = linear(sizes[-1], outputs, head_gain)

    def embed(self, x: Tensor) -> Tensor:
        """The last hidden embedding phi, [..., width]."""
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Outputs, [..., outputs]."""
        output: Tensor = self.head(self.embed(x))
        return output

    def dense_layers(self) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
        """Weight [in, out] and bias [out] of each layer, the head last."""
        return [
            (layer.weight.detach().numpy().T, layer.bias.detach().numpy())
            for layer in (*self.layers, self.head)
        ]


def linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    """A layer of orthogonal weights and zero biases."""
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer
