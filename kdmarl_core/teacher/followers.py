"""Stand-ins of a team's students, which a teacher keeps within reach while it learns.

Of several ways to win, robots with few sensors can follow some better than others. Followers read
what these robots sense, and learn to choose as the teacher does; the teacher learns by RL as ever,
and pays for what they cannot follow (an expert that is adapted to what its imitator can see:
Warrington et al. 2021). They have no memory, and are dropped when the teacher is trained.

Shapes: `N` agents, `I` inputs of the followers, `A` actions; `...` any leading axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdmarl_core.nets.mlp import Mlp
from kdmarl_core.schema import check_above_zero, check_at_least
from kdmarl_core.teacher.architecture import Architecture
from kdmarl_core.teacher.reads import RestrictedReads
from kdmarl_core.team import Team


@dataclass(frozen=True)
class FollowersEntry:
    """Who is to be able to follow a teacher, as its recipe says."""

    team: str  # whose robots: followers read what they sense, and what those sense whom they hear
    weight: float  # of what they cannot follow, in the teacher's objective
    learning_rate: float  # theirs
    iterations_alone: int  # in which they learn first, and the teacher stays as it is

    def __post_init__(self) -> None:
        check_above_zero(self, "weight", "learning_rate")
        check_at_least(0, self, "iterations_alone")


class Followers(nn.Module):
    """A policy of what a team's robots sense and hear, with parameters shared by all of them."""

    def __init__(self, team: Team, architecture: Architecture) -> None:
        """For that team, of the size of a teacher's networks."""
        super().__init__()
        self.team, self.reads = team, RestrictedReads(team)
        hidden = [architecture.width] * architecture.layers
        self.actor = Mlp(self.reads.size, hidden, team.task.spec.num_actions, head_gain=0.01)

    def sensed(self, observation: Tensor, state: Tensor, generator: torch.Generator) -> Tensor:
        """Inputs [..., N, I] of full observations [..., N, D].

        What is hidden at random is drawn for each step, since nothing is remembered.
        """
        visible = self.reads.draw(observation[..., 0, 0].numel(), generator)
        if visible is not None:
            visible = visible.view(observation.shape)
        return self.reads(observation, state, visible)


def divergence(teacher: Tensor, followers: Tensor) -> Tensor:
    """KL(pi_T || pi_F) of log-probabilities [..., N, A], the mean over all but actions."""
    return (teacher.exp() * (teacher - followers)).sum(-1).mean()
