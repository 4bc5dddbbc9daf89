"""The contract of every task.

A task has two simulators: a batch of environments that trains (`make_batch`), and the reference
implementation, one episode at a time, that judges and flies (`make_reference`).

Shapes: `E` environments, `N` agents, `D` features of the widest observation, `A` actions of the
widest action set, `S` features of the joint state.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from kdmarl_core.errors import UserError, unknown
from kdmarl_core.tasks.blocks import Block

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

LONGEST_SLUG = 100  # letters; file systems allow 255 bytes, and more is added


@dataclass(frozen=True)
class AgentSpec:
    """What one agent senses and what it can do."""

    name: str
    blocks: tuple[Block, ...]
    actions: tuple[str, ...]

    def __post_init__(self) -> None:
        for block in self.blocks:
            strange = [action for action in block.aims if action not in self.actions]
            if strange:
                raise ValueError(
                    f"agent '{self.name}': block '{block.name}': {', '.join(strange)} is no action"
                )

    @cached_property
    def observation_size(self) -> int:
        """Number of features of all blocks together."""
        return sum(block.size for block in self.blocks)


@dataclass(frozen=True)
class Units:
    """How a battle lists its units, the same ones in observations, joint state and actions.

    An observation is a row for each other ally, in order, then for each enemy, then the agent's
    own; the joint state the own rows of all allies, then of all enemies, then what they share; the
    actions are moves, then an attack on each enemy.
    """

    allies: int
    enemies: int
    seen: int  # features of another unit's row in an observation
    own: int  # features of a unit's own row
    shared: int  # features of the joint state that are no unit's
    moves: int  # actions that are no attack

    @property
    def total(self) -> int:
        """Number of units of both sides."""
        return self.allies + self.enemies


@dataclass(frozen=True)
class TaskSpec:
    """What is known of a task before any simulator is made."""

    name: str
    agents: tuple[AgentSpec, ...]
    episode_steps: int
    ends_early: bool  # False: every episode has exactly `episode_steps`
    state_size: int
    rate_hz: float  # decisions per second of simulated time
    # Whether the joint state holds more than all blocks together: the teacher then reads it, too.
    partially_observable: bool = False
    legal_actions_vary: bool = False  # whether an action can be impossible at some steps
    fixture_sha256: str = ""  # of trained weights that are part of the environment
    can_be_won: bool = False  # whether episodes are won or lost, and win rate is the score
    units: Units | None = None  # of a battle
    most_envs: int = 0  # at once, where each is a process of a game; 0: any number

    def envs(self, wanted: int) -> int:
        """So many environments, or as many as there may be at once."""
        return min(wanted, self.most_envs or wanted)

    def refuse_more_envs(self, wanted: int, key: str) -> None:
        """Raise a `UserError` that names the key if so many may not be at once."""
        if wanted > self.envs(wanted):
            raise UserError(
                f"{key}: {wanted} copies of {self.name} would be as many processes of its game; "
                f"give at most {self.most_envs}"
            )

    @property
    def slug(self) -> str:
        """The name as that of a file or folder; names that differ there may share one."""
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", self.name)
        if len(plain) <= LONGEST_SLUG:
            return plain
        return f"{plain[:LONGEST_SLUG]}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"

    @property
    def num_agents(self) -> int:
        """Number of agents that act."""
        return len(self.agents)

    @cached_property
    def observation_size(self) -> int:
        """Width `D` of the padded observation batch."""
        return max(agent.observation_size for agent in self.agents)

    @cached_property
    def num_actions(self) -> int:
        """Width `A` of the padded action batch."""
        return max(len(agent.actions) for agent in self.agents)

    @cached_property
    def action_exists(self) -> Booleans:
        """Which of the `A` padded actions each agent really has, shape [N, A]."""
        counts = np.array([len(agent.actions) for agent in self.agents])
        return np.arange(self.num_actions)[None, :] < counts[:, None]

    @property
    def homogeneous(self) -> bool:
        """Whether all agents sense and act alike."""
        first = self.agents[0]
        return all((a.blocks, a.actions) == (first.blocks, first.actions) for a in self.agents)

    def agent(self, name: str, where: str = "") -> AgentSpec:
        """The agent of that name.

        Raises:
            UserError: no such agent.
        """
        for agent in self.agents:
            if agent.name == name:
                return agent
        raise unknown("agent", name, [a.name for a in self.agents], where or self.name)


class BatchStep(NamedTuple):
    """What a batch of environments shows after a reset or a step.

    Where `done`, observation, state and mask already belong to the next episode.
    """

    observation: Floats  # [E, N, D], zero beyond an agent's own features
    state: Floats  # [E, S]
    action_mask: Booleans  # [E, N, A]
    reward: Floats  # [E] team reward of the step just made
    done: Booleans  # [E]
    won: Booleans  # [E] whether the episode that ended with this step was won


class BatchEnv(Protocol):
    """Many environments stepped at once."""

    def reset(self, seed: int) -> BatchStep:
        """Begin a new episode in every environment; equal seeds give equal episodes."""

    def step(self, actions: Integers) -> BatchStep:
        """Apply actions [E, N]; episodes that end are followed by new ones."""


class View(NamedTuple):
    """What the reference environment shows at a moment."""

    observations: tuple[Floats, ...]  # one vector per agent, its own size
    state: Floats  # [S] joint state
    action_masks: tuple[Booleans, ...]  # one per agent, whether each of its own actions is legal


class Outcome(NamedTuple):
    """One step of the reference environment."""

    view: View
    reward: float  # team reward: the mean of the agents' rewards
    done: bool
    label: str  # "won", "lost", or "" where a task has no such notion


class Entity(NamedTuple):
    """Something to draw: position and radius in metres."""

    name: str
    kind: str  # "agent", "enemy" or "landmark"
    x_m: float
    y_m: float
    radius_m: float
    sight_m: float = math.inf  # how far it sees, where a task limits that
    health: float = 1.0  # share that is left; 0: it is dead


class ReferenceEnv(Protocol):
    """The task's own implementation, one episode at a time."""

    def reset(self, seed: int) -> View:
        """Begin the episode of that seed."""

    def step(self, actions: Sequence[int]) -> Outcome:
        """Apply one action per agent."""

    def scene(self) -> list[Entity]:
        """What can be drawn of the present moment; empty where a task cannot be drawn."""


class Task(Protocol):
    """A named cooperative game."""

    @property
    def spec(self) -> TaskSpec:
        """Agents, blocks, actions and sizes."""

    def make_batch(self, num_envs: int) -> BatchEnv:
        """The simulator that trains."""

    def make_reference(self) -> ReferenceEnv:
        """The simulator that judges."""
