"""What a robot's sensors give its student: its own blocks, some features hidden if need be."""

from __future__ import annotations

import numpy as np

from kdmarl_core.tasks import block_columns, live_columns, select_columns
from kdmarl_core.tasks.task import Booleans, Floats
from kdmarl_core.team import Robot, Team


class RobotSensors:
    """One robot's view of its agent's full observation, episode by episode."""

    def __init__(self, robot: Robot, index: int) -> None:
        """The sensors of robot number `index` of its team."""
        self._robot, self._index = robot, index
        self._columns = select_columns(robot.agent.blocks, robot.sensors)
        self._live = live_columns(robot.sensors)
        self._visible = np.ones(len(self._columns), np.float32)
        self.parts = block_columns(robot.blocks)  # where each block lies in what `read` gives

    def begin(self, episode_seed: int) -> None:
        """Draw what this episode hides; the same seed hides the same."""
        if self._robot.random_features is not None:
            rng = np.random.default_rng([episode_seed, 2, self._index])
            self._visible = draw_visible(
                len(self._columns), self._live, self._robot.random_features, rng
            ).astype(np.float32)

    def read(self, observation: Floats) -> Floats:
        """The student's input, its blocks' concatenation, from its agent's full observation."""
        own = observation[self._columns]
        if self._robot.random_features is None:
            return own
        return np.concatenate([own * self._visible, self._visible])


def draw_visible(
    features: int,
    live: np.ndarray,
    bounds: tuple[int, int],
    rng: np.random.Generator,
) -> Booleans:
    """Which of a robot's features an episode shows, [features].

    A number between both bounds (and never more than there are) is drawn, then so many features
    of those that can change.
    """
    visible = np.zeros(features, np.bool_)
    number = min(int(rng.integers(bounds[0], bounds[1] + 1)), len(live))
    visible[rng.choice(live, number, replace=False)] = True
    return visible


def team_sensors(team: Team) -> list[RobotSensors]:
    """The sensors of all robots of a team, in their order."""
    return [RobotSensors(robot, index) for index, robot in enumerate(team.robots)]
