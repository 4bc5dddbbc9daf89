"""What a user may add to a simulation. No import that takes time: see `fields`."""

from __future__ import annotations

from dataclasses import dataclass

from kdmarl_ros.fields import described


@dataclass(frozen=True, kw_only=True)
class DisturbanceSettings:
    """What real sensors and motors have and simulated ones do not, by parameters of the bridge."""

    sensor_delay_steps: int = described("age of what robots sense", 0, low=0, high=100)
    action_delay_steps: int = described("steps until an action has its effect", 0, low=0, high=100)
    sensor_noise: float = described(
        "standard deviation of what is added to each sensed value, in its own unit",
        0.0,
        low=0.0,
        high=1e6,
    )
    sensor_loss: float = described(
        "share of sensor messages that get lost; in real time only", 0.0, low=0.0, high=1.0
    )
