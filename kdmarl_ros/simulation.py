"""What a user chooses of a simulation. No import that takes time: see `fields`."""

from __future__ import annotations

from dataclasses import dataclass

from kdmarl_ros.fields import described


@dataclass(frozen=True, kw_only=True)
class SimulationSettings:
    """Parameters of the bridge: what real sensors and motors add, and how long it waits."""

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
    step_deadline_s: float = described(
        "wait for a robot's action, or hold its last one in real time, before its safe action "
        "is used",
        1.0,
        low=0.001,
        high=3600.0,
    )
