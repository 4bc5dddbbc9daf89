"""What an actor reads: everything, or what the robots of a team sense.

Shapes: `E` environments, `N` agents, `D` features, `S` joint state, `I` inputs; `...` any leading
axes.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from kdmarl_core.restriction import Restriction
from kdmarl_core.tasks import TaskSpec
from kdmarl_core.team import Team


class Reads(Protocol):
    """Makes an actor's inputs."""

    size: int  # I

    def draw(self, episodes: int, generator: torch.Generator) -> Tensor | None:
        """What so many episodes show, [episodes, N, D]; None if nothing is hidden at random."""

    def __call__(self, observation: Tensor, state: Tensor, visible: Tensor | None) -> Tensor:
        """Inputs [..., N, I] of full observations [..., N, D] and joint state [..., S].

        `visible` [..., N, D] is what `draw` gave to the episodes at hand.
        """


class FullReads:
    """Everything: an agent's whole observation, and the joint state where that tells more.

    Agents that sense and act alike are not told apart: an index lets them settle for fixed roles,
    and measured worse in simple_spread. Others get a one-hot index behind their observation.
    """

    def __init__(self, spec: TaskSpec) -> None:
        self._agent_index = torch.eye(spec.num_agents)
        if spec.homogeneous:
            self._agent_index = torch.zeros(spec.num_agents, 0)
        self._privileged = spec.partially_observable
        privileged = spec.state_size if spec.partially_observable else 0
        self.size = spec.observation_size + privileged + self._agent_index.shape[1]

    def draw(self, episodes: int, generator: torch.Generator) -> None:
        """Nothing is hidden."""

    def __call__(self, observation: Tensor, state: Tensor, visible: Tensor | None) -> Tensor:
        """As `Reads`."""
        parts = [observation, self._agent_index.expand(*observation.shape[:-1], -1)]
        if self._privileged:
            parts.insert(1, state[..., None, :].expand(*observation.shape[:-1], -1))
        return torch.cat(parts, -1)


class RestrictedReads:
    """What the students of a team's robots would read, and a one-hot index: robots differ.

    Of robots that tell each other something also what those sense whom a robot hears: all of it,
    and at once.
    """

    def __init__(self, team: Team) -> None:
        self._restriction = Restriction(team)
        robots = len(team.robots)
        self._agent_index = torch.eye(robots)
        hears = torch.zeros(robots, robots)
        names = [robot.name for robot in team.robots]
        for row, robot in zip(hears, team.robots, strict=True):
            for peer in robot.peers:
                row[names.index(peer.robot)] = 1.0
        self._told_by = hears.any(0).nonzero()[:, 0]  # whom anybody hears
        self._hears = hears[:, self._told_by, None]
        self.own_size = max(self._restriction.sizes)  # what one robot senses
        self.size = self.own_size * (1 + len(self._told_by)) + robots

    def draw(self, episodes: int, generator: torch.Generator) -> Tensor | None:
        """As `Reads`."""
        random = self._restriction.random
        return self._restriction.draw(episodes, generator) if random else None

    def __call__(self, observation: Tensor, state: Tensor, visible: Tensor | None) -> Tensor:
        """As `Reads`; the joint state is not looked at."""
        return self.indexed(self._restriction.inputs(observation, visible))

    def indexed(self, sensed: Tensor) -> Tensor:
        """Inputs of what robots sense, zero-padded [..., N, `own_size`]."""
        parts = [sensed, self._agent_index.expand(*sensed.shape[:-1], -1)]
        if len(self._told_by):
            heard = sensed[..., None, self._told_by, :] * self._hears
            parts.insert(1, heard.flatten(-2))
        return torch.cat(parts, -1)
