"""Layers of a whole team as one batched product.

Robots differ in inputs, width and actions, so their weights are padded with zeros to common sizes.
A padded unit starts at zero, what follows it (ReLU, or a GRU's update) keeps it at zero, and so
are all gradients from and to it: padding never learns and never acts, and `of_robot` cuts it off
again.

Features come before samples, [N, features, B]: every product, activation and softmax over them
then runs along contiguous memory, and updates are several times faster than with [B, N, features].

Shapes: `N` robots, `B` samples, `W` widest student.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from kdmarl_core.distil.recurrence import GruParameters, Recurrence
from kdmarl_core.export import GruWeights, Layer


class StackedLinear(nn.Module):
    """One linear layer per robot, [N, out, in], zero where a robot has no such unit."""

    def __init__(self, inputs: list[int], outputs: list[int], gain: float) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.weight = nn.Parameter(stacked_weight(inputs, outputs, gain))
        self.bias = nn.Parameter(torch.zeros(len(inputs), max(outputs), 1))

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, B] -> [N, out, B]."""
        return torch.baddbmm(self.bias, self.weight, x)

    def stacked(self) -> tuple[Tensor, Tensor]:
        """All robots' weights and biases."""
        return self.weight, self.bias

    def of_robot(self, robot: int) -> Layer:
        """Weight [in, out] and bias [out] without padding, in double precision."""
        columns, rows = self.inputs[robot], self.outputs[robot]
        return Layer(
            _double(self.weight[robot, :rows, :columns].T),
            _double(self.bias[robot, :rows, 0]),
        )


class StackedGru(nn.Module):
    """One gated recurrent unit per robot (Cho et al. 2014, in the form that torch computes).

    r, z = sigmoid(W_x x + W_h h), n = tanh(W_xn x + r * (W_hn h)), h' = n + z * (h - n). The three
    gates lie behind one another, each padded to the widest student.
    """

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.widths, self.width = widths, max(widths)
        self.input_weight = nn.Parameter(_gates(widths))
        self.state_weight = nn.Parameter(_gates(widths))
        self.input_bias = nn.Parameter(torch.zeros(len(widths), 3 * self.width, 1))
        self.state_bias = nn.Parameter(torch.zeros(len(widths), 3 * self.width, 1))

    def forward(self, x: Tensor, begins: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Run through time.

        Args:
            x: [N, W, T * B].
            begins: [T, B]; the state is zero before a step that begins an episode.
            state: [N, W, B] before the first step.

        Returns:
            States after each step [N, W, T * B], and the last one [N, W, B].
        """
        states: Tensor = Recurrence.apply(  # type: ignore[no-untyped-call]
            x, begins, state, *self.stacked()
        )
        return states, states[..., -begins.shape[1] :]

    def stacked(self) -> GruParameters:
        """All robots' weights and biases."""
        return GruParameters(
            self.input_weight, self.input_bias, self.state_weight, self.state_bias
        )

    def of_robot(self, robot: int) -> GruWeights:
        """Weights [W, 3 W] and biases [3 W] of inputs and state, without padding."""
        own, width = self.widths[robot], self.width
        of_input, of_state = (
            torch.cat([torch.arange(own) + gate * width for gate in gates])
            for gates in ((1, 2, 0), (0, 1, 2))
        )
        return GruWeights(
            _double(self.input_weight[robot, of_input, :own].T),
            _double(self.input_bias[robot, of_input, 0]),
            _double(self.state_weight[robot, of_state, :own].T),
            _double(self.state_bias[robot, of_state, 0]),
        )


def stacked_weight(inputs: list[int], outputs: list[int], gain: float) -> Tensor:
    """Orthogonal weights [N, out, in], zero where a robot has no such unit."""
    weight = torch.zeros(len(inputs), max(outputs), max(inputs))
    for robot, (columns, rows) in enumerate(zip(inputs, outputs, strict=True)):
        if columns and rows:
            weight[robot, :rows, :columns] = nn.init.orthogonal_(torch.empty(rows, columns), gain)
    return weight


def _gates(widths: list[int]) -> Tensor:
    """Orthogonal weights [N, 3 W, W] of three gates."""
    widest = max(widths)
    weight = torch.zeros(len(widths), 3, widest, widest)
    for robot, width in enumerate(widths):
        for gate in range(3):
            block = nn.init.orthogonal_(torch.empty(width, width))
            weight[robot, gate, :width, :width] = block
    return weight.flatten(1, 2)


def _double(values: Tensor) -> np.ndarray:
    return values.detach().numpy().astype(np.float64)
