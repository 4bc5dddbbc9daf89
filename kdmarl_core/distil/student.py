"""A team of students, computed as one: every layer is a batched product over robots.

Shapes: `T` steps, `B` episodes side by side, `N` robots, `I` widest student input, `W` widest
student, `A` actions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdmarl_core.distil.stacked import StackedGru, StackedLinear
from kdmarl_core.export import GruWeights, Layer
from kdmarl_core.restriction import Restriction
from kdmarl_core.teacher.teacher import mask_logits
from kdmarl_core.team import Team


class StudentOutput(NamedTuple):
    """What students give for sequences."""

    logits: Tensor  # [T, B, N, A]
    embedding: Tensor  # phi_S, [T, B, N, W]
    state: Tensor  # [N, B, W] after the last step; empty for feed-forward students


class StudentTeam(nn.Module):
    """Decentralised actors, one per robot, each on its own blocks.

    Each is: aligner g_i (linear, o_S,i -> W_i), hidden layer with ReLU, then a second one or a
    GRU, and a linear head. The aligner only helps training: two linear maps in a row are one, so
    export folds it into the first hidden layer.
    """

    def __init__(self, team: Team) -> None:
        super().__init__()
        widths = [robot.student.width for robot in team.robots]
        actions = [len(robot.agent.actions) for robot in team.robots]
        self.restriction = Restriction(team)
        self.widths = widths
        self.aligner = StackedLinear(self.restriction.sizes, widths, 1.0)
        self.hidden = StackedLinear(widths, widths, math.sqrt(2))
        self.recurrent = team.robots[0].student.network == "gru"
        self.core: StackedGru | StackedLinear = (
            StackedGru(widths) if self.recurrent else StackedLinear(widths, widths, math.sqrt(2))
        )
        self.head = StackedLinear(widths, actions, 0.01)

    def initial_state(self, episodes: int) -> Tensor:
        """The recurrent state before anything was seen, [N, B, W]; empty without recurrence."""
        width = max(self.widths) if self.recurrent else 0
        return torch.zeros(len(self.widths), episodes, width)

    def forward(
        self, inputs: Tensor, action_mask: Tensor, begins: Tensor, state: Tensor
    ) -> StudentOutput:
        """Logits and embeddings of sequences.

        Args:
            inputs: [T, B, N, I], from `restriction`.
            action_mask: [T, B, N, A].
            begins: [T, B], whether an episode begins with a step.
            state: as `initial_state` or an earlier output's.
        """
        (steps, episodes), robots = begins.shape, len(self.widths)
        flat = inputs.flatten(0, 1).transpose(0, 1)
        x = torch.relu(self.hidden(self.aligner(flat)))
        if isinstance(self.core, StackedGru):
            x, state = self.core(x.view(robots, steps, episodes, -1), begins, state)
            x = x.flatten(1, 2)
        else:
            x = torch.relu(self.core(x))
        logits = self.head(x).transpose(0, 1).reshape(steps, episodes, robots, -1)
        embedding = x.transpose(0, 1).reshape(steps, episodes, robots, -1)
        return StudentOutput(mask_logits(logits, action_mask), embedding, state)

    def layers(self, robot: int) -> list[Layer | GruWeights]:
        """The deployed network of one robot: without padding, the aligner folded in."""
        aligner, hidden = self.aligner.of_robot(robot), self.hidden.of_robot(robot)
        folded = Layer(aligner.weight @ hidden.weight, aligner.bias @ hidden.weight + hidden.bias)
        core, head = self.core.of_robot(robot), self.head.of_robot(robot)
        return [folded.single(), core.single(), head.single()]
