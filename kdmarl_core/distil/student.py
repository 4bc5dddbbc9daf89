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

    logits: Tensor  # [T, B, N, A], of all actions
    log_probs: Tensor  # [T, B, N, A], of legal actions; very negative for others
    embedding: Tensor  # phi_S, [T, B, N, W]
    state: Tensor  # [N, W, B] after the last step; empty for feed-forward students


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
        """The recurrent state before anything was seen, [N, W, B]; empty without recurrence."""
        width = max(self.widths) if self.recurrent else 0
        return torch.zeros(len(self.widths), width, episodes)

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
        features = inputs.permute(2, 3, 0, 1).flatten(2)
        x = torch.relu(self.hidden(self.aligner(features)))
        if isinstance(self.core, StackedGru):
            x, state = self.core(x, begins, state)
        else:
            x = torch.relu(self.core(x))
        logits = self.head(x)
        legal = action_mask.permute(2, 3, 0, 1).flatten(2)
        log_probs = torch.log_softmax(mask_logits(logits, legal), 1)

        def by_step(values: Tensor) -> Tensor:
            return values.view(robots, -1, steps, episodes).permute(2, 3, 0, 1)

        return StudentOutput(by_step(logits), by_step(log_probs), by_step(x), state)

    def layers(self, robot: int) -> list[Layer | GruWeights]:
        """The deployed network of one robot: without padding, the aligner folded in."""
        aligner, hidden = self.aligner.of_robot(robot), self.hidden.of_robot(robot)
        folded = Layer(aligner.weight @ hidden.weight, aligner.bias @ hidden.weight + hidden.bias)
        core, head = self.core.of_robot(robot), self.head.of_robot(robot)
        return [folded.single(), core.single(), head.single()]
