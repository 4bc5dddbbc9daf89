"""Linear layers of a whole team as one batched product.

Robots differ in inputs, width and actions, so their weights are padded with zeros to common sizes.
A padded unit starts at zero, its activation ReLU(0) is zero, and so are all gradients from and to
it: padding never learns and never acts, and `of_robot` cuts it off again.
"""

import numpy as np
import torch
from torch import Tensor, nn

from kdmarl_core.export import Layer


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
        """Weight [in, out] and bias [out] without padding."""
        rows, columns = self.inputs[robot], self.outputs[robot]
        weight = self.weight[robot, :rows, :columns].detach().numpy()
        return weight.astype(np.float64), self.bias[robot, 0, :columns].detach().numpy().astype(
            np.float64
        )
