"""Delay, noise and loss: what real sensors and motors add to simulated ones. No ROS here."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kdmarl_ros.simulation import SimulationSettings

Floats = npt.NDArray[np.float32]


class Disturbance:
    """One robot's, episode by episode; the same seed disturbs in the same way."""

    def __init__(self, settings: SimulationSettings, robot: int, safe_action: int) -> None:
        """For robot number `robot`, which is still at its safe action when an episode begins."""
        self._settings = settings
        self._robot = robot
        self._safe_action = safe_action
        self.begin(0)

    def begin(self, episode_seed: int) -> None:
        """A new episode, in which nothing is under way yet."""
        self._rng = np.random.default_rng([episode_seed, 3, self._robot])
        delay = self._settings.action_delay_steps
        self._actions = deque([self._safe_action] * delay, maxlen=delay + 1)
        self._sensed: deque[Any] = deque(maxlen=self._settings.sensor_delay_steps + 1)

    def delayed(self, sensed: Any) -> Any:
        """What is sensed now: what there was a few steps ago, or first."""
        self._sensed.append(sensed)
        return self._sensed[0]

    def noisy(self, values: Floats, parts: Sequence[slice]) -> Floats:
        """Values [D] with noise on some of them; zeros stay: they stand for nothing sensed."""
        if not self._settings.sensor_noise:
            return values
        values = values.copy()
        for part in parts:
            noise = self._rng.normal(0.0, self._settings.sensor_noise, len(values[part]))
            values[part] += np.where(values[part] == 0.0, 0.0, noise).astype(np.float32)
        return values

    def loses(self) -> bool:
        """Whether the next message gets lost."""
        loss = self._settings.sensor_loss
        return loss > 0.0 and bool(self._rng.random() < loss)

    def acting(self, chosen: int) -> int:
        """The action that takes effect now, as another one is chosen."""
        self._actions.append(chosen)
        return self._actions[0]
