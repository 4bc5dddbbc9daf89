"""Playing seeded episodes in a task's reference simulator.

The swarm over ROS plays the same episodes through the same functions of this module (seeds,
returns), so that both can be compared step by step.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from kdmarl_core.bundle import UNDISTURBED, BundlePolicy, Disturbance, Inbox, Manifest, encode
from kdmarl_core.metrics import Evaluation, Returns, standard_error
from kdmarl_core.seeding import derive_seed
from kdmarl_core.sensors import team_sensors
from kdmarl_core.tasks import Entity, ReferenceEnv, View
from kdmarl_core.team import Team


class TeamPlayer(Protocol):
    """Something that chooses an action for every agent."""

    def reset(self, seed: int) -> None:
        """Forget the past; `seed` is the episode's."""

    def act(self, view: View) -> list[int]:
        """One legal action per agent."""


class Episode(NamedTuple):
    """One finished episode."""

    seed: int
    team_return: float
    steps: int
    outcome: str
    actions: list[list[int]]  # [steps][agents]


def episode_seed(seed: int, index: int) -> int:
    """The simulator's seed of episode number `index` of a run with `seed`."""
    return derive_seed(seed, index)


def play(
    env: ReferenceEnv,
    player: TeamPlayer,
    episodes: int,
    seed: int,
) -> Iterator[Episode]:
    """Play episodes 0, 1, ... of a run, yielding each when it ends."""
    for index in range(episodes):
        this_seed = episode_seed(seed, index)
        view = env.reset(this_seed)
        player.reset(this_seed)
        team_return, actions, done, label = 0.0, [], False, ""
        while not done:
            actions.append(player.act(view))
            view, reward, done, label = env.step(actions[-1])
            team_return += reward
        yield Episode(this_seed, team_return, len(actions), label, actions)


def replay(env: ReferenceEnv, seed: int, actions: Sequence[Sequence[int]]) -> list[list[Entity]]:
    """The scenes of an episode that is played again from its recorded actions, first to last."""
    env.reset(seed)
    scenes = [env.scene()]
    for joint_action in actions:
        env.step(joint_action)
        scenes.append(env.scene())
    return scenes


def returns(episodes: Sequence[Episode]) -> Returns:
    """Returns of episodes as an array."""
    return np.array([episode.team_return for episode in episodes])


def scores(episodes: Sequence[Episode]) -> Returns:
    """What players are compared by: one or zero where episodes can be won, else the return."""
    won = _won(episodes)
    return np.array(won, float) if won else returns(episodes)


def _won(episodes: Sequence[Episode]) -> list[bool]:
    """Which episodes were won, of those that could be."""
    return [episode.outcome == "won" for episode in episodes if episode.outcome]


def evaluation(played: Sequence[Episode], seed: int) -> Evaluation:
    """Mean return and win rate of a run's episodes."""
    values, won = returns(played), _won(played)
    return Evaluation(
        mean_return=float(values.mean()),
        standard_error=standard_error(values),
        episodes=len(values),
        seed=seed,
        win_rate=sum(won) / len(won) if won else None,
    )


class RandomPlayer:
    """Uniformly random legal actions: the zero of normalised retention."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def reset(self, seed: int) -> None:
        """Draw from the episode's own stream."""
        self._rng = np.random.default_rng([seed, 1])

    def act(self, view: View) -> list[int]:
        """Ignore what is seen."""
        legal = [np.flatnonzero(mask) for mask in view.action_masks]
        return [int(actions[self._rng.integers(len(actions))]) for actions in legal]


class TimedPlayer:
    """Another player, and how long it takes to decide for the whole team (the source's TPS)."""

    def __init__(self, player: TeamPlayer, clock: Callable[[], float] = time.perf_counter) -> None:
        self._player, self._clock = player, clock
        self._seconds: list[list[float]] = []  # by episode, of each step

    def reset(self, seed: int) -> None:
        """Begin an episode."""
        self._seconds.append([])
        self._player.reset(seed)

    def act(self, view: View) -> list[int]:
        """What the other player chooses."""
        begun = self._clock()
        actions = self._player.act(view)
        self._seconds[-1].append(self._clock() - begun)
        return actions

    def decision_ms(self) -> tuple[float, float]:
        """Milliseconds per step: the episodes' mean and, with several, its standard deviation."""
        means = np.array([1000 * np.mean(seconds) for seconds in self._seconds])
        return float(means.mean()), float(means.std(ddof=1)) if len(means) > 1 else math.nan


class BundlePlayer:
    """A team of bundles, each fed by its own robot's sensors and its peers' messages only.

    Episodes are counted, as over ROS: what gets lost on the way depends on their number.
    """

    def __init__(
        self,
        policies: Sequence[BundlePolicy],
        team: Team,
        disturbance: Disturbance = UNDISTURBED,
    ) -> None:
        self._robots = list(zip(policies, team_sensors(team), strict=True))
        self._inboxes = [
            Inbox(policy.manifest.robot, policy.manifest.peers, disturbance) for policy in policies
        ]
        self._at = (-1, 0)  # episode, step

    @property
    def manifests(self) -> list[Manifest]:
        """Of its bundles, in the team's order."""
        return [policy.manifest for policy, _ in self._robots]

    def reset(self, seed: int) -> None:
        """Reset recurrent states and messages, and draw what the episode hides."""
        self._at = (self._at[0] + 1, 0)
        for (policy, sensors), inbox in zip(self._robots, self._inboxes, strict=True):
            policy.reset()
            inbox.begin(self._at[0])
            sensors.begin(seed)

    def act(self, view: View) -> list[int]:
        """Greedy actions."""
        episode, step = self._at
        actions = [
            policy.act(sensors.read(observation), mask, inbox.read(step))
            for (policy, sensors), inbox, observation, mask in zip(
                self._robots, self._inboxes, view.observations, view.action_masks, strict=True
            )
        ]
        told = self._told()
        for inbox in self._inboxes:
            self._deliver(inbox, episode, step, told)
        self._at = (episode, step + 1)
        return actions

    def _deliver(self, inbox: Inbox, episode: int, step: int, told: dict[str, bytes]) -> None:
        """Put what peers have told, of those who have, into one robot's inbox."""
        for index, peer in enumerate(inbox.peers):
            if peer.robot in told:
                inbox.put(index, episode, step, told[peer.robot], now=step)

    def _told(self) -> dict[str, bytes]:
        """What each robot that is not silent has just told others."""
        return {
            policy.manifest.robot: encode(policy.message, policy.manifest.message.format)
            for policy, _ in self._robots
            if policy.manifest.message and policy.message is not None
        }
