"""A team of students, computed as one: every layer is a batched product over robots.

Shapes: `B` samples, `N` robots, `D` features of a full observation, `I` widest restricted
observation, `W` widest student, `A` actions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kdmarl_core.distil.stacked import StackedLinear
from kdmarl_core.export import Layer
from kdmarl_core.tasks import select_columns
from kdmarl_core.teacher.teacher import mask_logits
from kdmarl_core.team import Team

HIDDEN_LAYERS = 2


class StudentOutput(NamedTuple):
    """What students give for a batch."""

    logits: Tensor  # [B, N, A]
    embedding: Tensor  # phi_S, [B, N, W]


class StudentTeam(nn.Module):
    """Decentralised actors, one per robot, each on its own blocks.

    Each is: aligner g_i (linear, o_S,i -> W_i), two hidden layers with ReLU, head. The aligner
    only helps
    training: two linear maps in a row are one, so export folds it into the first hidden layer.
    """

    def __init__(self, team: Team) -> None:
        super().__init__()
        spec = team.task.spec
        columns = [select_columns(robot.agent.blocks, robot.blocks) for robot in team.robots]
        inputs = [len(kept) for kept in columns]
        widths = [robot.student.width for robot in team.robots]
        actions = [len(robot.agent.actions) for robot in team.robots]
        # Column D of an observation is a zero that is appended to it: what padding reads.
        gather = torch.full((len(columns), max(inputs)), spec.observation_size)
        for row, kept in zip(gather, columns, strict=True):
            row[: len(kept)] = torch.from_numpy(kept)
        self.register_buffer("gather", gather)
        self.aligner = StackedLinear(inputs, widths, 1.0)
        self.hidden = nn.ModuleList(
            StackedLinear(widths, widths, math.sqrt(2)) for _ in range(HIDDEN_LAYERS)
        )
        self.head = StackedLinear(widths, actions, 0.01)

    def restrict(self, observation: Tensor) -> Tensor:
        """Full observations [B, N, D] -> each robot's own features [B, N, I], zero-padded."""
        padded = torch.nn.functional.pad(observation, (0, 1))
        gather: Tensor = self.gather  # type: ignore[assignment]
        return padded.gather(-1, gather.expand(len(observation), -1, -1))

    def forward(self, restricted: Tensor, action_mask: Tensor) -> StudentOutput:
        """Logits and embeddings from restricted observations [B, N, I] and masks [B, N, A]."""
        x = self.aligner(restricted.transpose(0, 1))
        for layer in self.hidden:
            x = torch.relu(layer(x))
        logits = self.head(x).transpose(0, 1)
        return StudentOutput(mask_logits(logits, action_mask), x.transpose(0, 1))

    def policy(self, observation: Tensor, action_mask: Tensor) -> Tensor:
        """Logits from full observations, without gradients: what a rollout calls."""
        with torch.no_grad():
            output: StudentOutput = self(self.restrict(observation), action_mask)
            return output.logits

    def layers(self, robot: int) -> list[Layer]:
        """The deployed network of one robot: weights without padding, the aligner folded in."""
        aligner, aligner_bias = self.aligner.of_robot(robot)
        first, *others = [layer.of_robot(robot) for layer in (*self.hidden, self.head)]
        folded = (aligner @ first[0], aligner_bias @ first[0] + first[1])
        return [(w.astype(np.float32), b.astype(np.float32)) for w, b in (folded, *others)]
