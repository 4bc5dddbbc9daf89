"""Layers of a whole team as one batched product.

Robots differ in inputs, width and actions, so their weights are padded with zeros to common sizes.
A padded unit starts at zero, what follows it (ReLU, or a GRU's update) keeps it at zero, and so
are all gradients from and to it: padding never learns and never acts, and `of_robot` cuts it off
again.

Shapes: `N` robots, `B` samples, `W` widest student.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from kdmarl_core.export import GruWeights, Layer


class StackedLinear(nn.Module):
    """One linear layer per robot, [N, in, out], zero where a robot has no such unit."""

    def __init__(self, inputs: list[int], outputs: list[int], gain: float) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        weight = torch.zeros(len(inputs), max(inputs), max(outputs))
        for robot, (rows, columns) in enumerate(zip(inputs, outputs, strict=True)):
            weight[robot, :rows, :columns] = nn.init.orthogonal_(torch.empty(rows, columns), gain)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(len(inputs), 1, max(outputs)))

    def forward(self, x: Tensor) -> Tensor:
        """[N, B, in] -> [N, B, out]."""
        return torch.baddbmm(self.bias, x, self.weight)

    def of_robot(self, robot: int) -> Layer:
        """Weight [in, out] and bias [out] without padding, in double precision."""
        rows, columns = self.inputs[robot], self.outputs[robot]
        return Layer(
            _double(self.weight[robot, :rows, :columns]),
            _double(self.bias[robot, 0, :columns]),
        )


class StackedGru(nn.Module):
    """One gated recurrent unit per robot (Cho et al. 2014, in the form that torch computes).

    r, z = sigmoid(x W_x + h W_h), n = tanh(x W_xn + r * (h W_hn)), h' = n + z * (h - n). The three
    gates lie behind one another in the last axis, each padded to the widest student.
    """

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.widths, self.width = widths, max(widths)
        self.input_weight = nn.Parameter(_gates(widths))
        self.state_weight = nn.Parameter(_gates(widths))
        self.input_bias = nn.Parameter(torch.zeros(len(widths), 1, 3 * self.width))
        self.state_bias = nn.Parameter(torch.zeros(len(widths), 1, 3 * self.width))

    def forward(self, x: Tensor, begins: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Run through time.

        Args:
            x: [N, T, B, W].
            begins: [T, B]; the state is zero before a step that begins an episode.
            state: [N, B, W] before the first step.

        Returns:
            States after each step [N, T, B, W], and the last one [N, B, W].
        """
        robots, steps, samples, width = x.shape
        projected = torch.baddbmm(self.input_bias, x.flatten(1, 2), self.input_weight)
        projected = projected.view(robots, steps, samples, 3 * width)
        goes_on = (~begins).to(x.dtype)[None, :, :, None]
        states = []
        for t in range(steps):
            state = self._step(projected[:, t], state * goes_on[:, t])
            states.append(state)
        return torch.stack(states, 1), state

    def _step(self, projected: Tensor, state: Tensor) -> Tensor:
        recurrent = torch.baddbmm(self.state_bias, state, self.state_weight)
        width = self.width
        gates = torch.sigmoid(projected[..., : 2 * width] + recurrent[..., : 2 * width])
        reset, update = gates[..., :width], gates[..., width:]
        new = torch.tanh(projected[..., 2 * width :] + reset * recurrent[..., 2 * width :])
        return torch.lerp(new, state, update)

    def of_robot(self, robot: int) -> GruWeights:
        """Weights [W, 3 W] and biases [3 W] of inputs and state, without padding."""
        own, width = self.widths[robot], self.width
        columns = torch.cat([torch.arange(own) + gate * width for gate in range(3)])
        return GruWeights(
            _double(self.input_weight[robot, :own][:, columns]),
            _double(self.input_bias[robot, 0, columns]),
            _double(self.state_weight[robot, :own][:, columns]),
            _double(self.state_bias[robot, 0, columns]),
        )


def _gates(widths: list[int]) -> Tensor:
    """Orthogonal weights [N, W, 3 W] of three gates."""
    widest = max(widths)
    weight = torch.zeros(len(widths), widest, 3, widest)
    for robot, width in enumerate(widths):
        for gate in range(3):
            block = nn.init.orthogonal_(torch.empty(width, width))
            weight[robot, :width, gate, :width] = block
    return weight.flatten(2)


def _double(values: Tensor) -> np.ndarray:
    return values.detach().numpy().astype(np.float64)
