"""Actions become commands to a base, within its limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kdmarl_core.errors import UserError, refuse_unknown
from kdmarl_ros.message_fields import (
    Setter,
    find_heading,
    find_setter,
    has_header,
    message_class,
)
from kdmarl_ros.sensor_map.file import CommandEntry, DifferentialEntry, PerValue, per_value
from kdmarl_ros.sensor_map.sources import Sources

LONGEST_BRAKE_S = 0.1  # of braking that one command makes up for, where others failed to come


class Command:
    """Actions as a stream of commands that never jump."""

    def __init__(
        self, entry: CommandEntry, actions: Sequence[str], sources: Sources, where: str
    ) -> None:
        """At rest; the topic of a heading is added to `sources`."""
        self.topic = entry.topic
        self.message = message_class(entry.type, f"{where}: type")
        self.period_s = 1.0 / entry.rate_hz
        self._frame_id = entry.frame_id
        self._stamped = has_header(self.message)
        self._setters: list[Setter] = [
            find_setter(self.message, name, f"{where}: fields") for name in entry.fields
        ]
        size = len(entry.fields)
        self._velocity = _limits(entry.velocity, size, f"{where}: velocity")
        self._acceleration = _limits(entry.acceleration, size, f"{where}: acceleration")
        self._deceleration = self._acceleration
        if entry.deceleration is not None:
            self._deceleration = _limits(entry.deceleration, size, f"{where}: deceleration")
        self._differential = entry.differential
        self._heading_source = -1
        self._heading_of: Callable[[Any], float] = _no_heading
        if entry.differential is not None:
            self._connect_heading(entry.differential, sources, where)
        self._targets = self._read_actions(entry, actions, where)
        self._aim: np.ndarray | None = None  # None: stand still
        self._heading_rad, self._heading_until_s = math.nan, -math.inf
        self._now = np.zeros(size)
        self._sent_s = -math.inf

    @property
    def at_rest(self) -> bool:
        """Whether the last command was to stand still."""
        return not self._now.any()

    def aim(self, action: int | None) -> None:
        """Head for what an action commands, by its index; None: for standing still."""
        self._aim = None if action is None else self._targets[action]

    def hear(self, source: int, message: Any, measured_s: float, timeout_s: float) -> None:
        """Take the heading out of a message, if it is the one that has it."""
        if source == self._heading_source:
            heading_rad = self._heading_of(message)
            if math.isfinite(heading_rad):
                self._heading_rad, self._heading_until_s = heading_rad, measured_s + timeout_s

    def heading_trouble(self, now_s: float) -> str:
        """Why the base stands though it is to move: its heading is not known; empty if it is."""
        if self._differential is None or now_s <= self._heading_until_s:
            return ""
        return f"{self._differential.topic}: no heading, so that the base stands"

    def forget(self) -> None:
        """The heading is not known until it is heard again."""
        self._heading_until_s = -math.inf

    def next(self, now_s: float, stamp: Any) -> Any:
        """The next command, at most one limited change away from the last one."""
        target = self._target(now_s)
        # After a pause the limits still hold for what the base saw last.
        most_s = 2 * self.period_s if target.any() else max(2 * self.period_s, LONGEST_BRAKE_S)
        elapsed_s = min(now_s - self._sent_s, most_s)
        self._sent_s = now_s
        braking = self._now * (target - self._now) < 0
        step = np.where(braking, self._deceleration, self._acceleration) * elapsed_s
        after = self._now + (target - self._now).clip(-step, step)
        # Braking ends at zero: what lies behind it is acceleration again.
        self._now = np.where(braking & (after * self._now < 0), 0.0, after)
        return self._filled(self._now, stamp)

    def standing(self, stamp: Any) -> Any:
        """The command to stand still, at once."""
        self._aim = None
        self._now = np.zeros_like(self._now)
        return self._filled(self._now, stamp)

    def _filled(self, values: np.ndarray, stamp: Any) -> Any:
        message = self.message()
        if self._stamped:
            message.header.stamp = stamp
            message.header.frame_id = self._frame_id
        for setter, value in zip(self._setters, values.tolist(), strict=True):
            setter.set(message, value)
        return message

    def _target(self, now_s: float) -> np.ndarray:
        if self._aim is None:
            return np.zeros_like(self._now)
        if self._differential is None:
            return self._aim
        if now_s > self._heading_until_s:
            return np.zeros_like(self._now)
        # The point `ahead_m` in front of the axle moves with this velocity x, y of the world.
        x, y = self._aim
        cos, sin = math.cos(self._heading_rad), math.sin(self._heading_rad)
        wanted = np.array([cos * x + sin * y, (cos * y - sin * x) / self._differential.ahead_m])
        return wanted.clip(-self._velocity, self._velocity)

    def _connect_heading(self, entry: DifferentialEntry, sources: Sources, where: str) -> None:
        at = f"{where}: differential"
        if len(self._setters) != 2:
            raise UserError(
                f"{where}: fields: {len(self._setters)} given, but a differential drive has two, "
                "forwards and turn, such as [linear.x, angular.z]; correct them"
            )
        message = message_class(entry.type, f"{at}: type")
        self._heading_of = find_heading(message, entry.heading, f"{at}: heading")
        self._heading_source = sources.index(entry.topic, message, at)

    def _read_actions(
        self, entry: CommandEntry, actions: Sequence[str], where: str
    ) -> list[np.ndarray]:
        at = f"{where}: actions"
        refuse_unknown("action", entry.actions, actions, at)
        missing = [name for name in actions if name not in entry.actions]
        if missing:
            raise UserError(f"{at}: no '{missing[0]}', which the bundle may choose; add it")
        for name, values in entry.actions.items():
            if len(values) != len(entry.fields):
                raise UserError(
                    f"{at}: {name}: {list(values)} has {len(values)} values, but there are "
                    f"{len(entry.fields)} fields; give one per field"
                )
            self._check_reach(np.array(values), f"{at}: {name}")
        return [np.array(entry.actions[name]) for name in actions]

    def _check_reach(self, values: np.ndarray, where: str) -> None:
        if self._differential is not None:
            speeds, limits = np.array([math.hypot(*values)]), self._velocity[:1]
        else:
            speeds, limits = np.abs(values), self._velocity
            for setter, value in zip(self._setters, values.tolist(), strict=True):
                setter.check(value, where)
        for speed, limit in zip(speeds.tolist(), limits.tolist(), strict=True):
            if speed > limit:
                raise UserError(
                    f"{where}: {speed:g} is above the limit 'velocity' of {limit:g}; lower one or "
                    "raise the other"
                )


def _no_heading(message: Any) -> float:
    return math.nan


def _limits(given: PerValue, size: int, where: str) -> np.ndarray:
    limits = per_value(given, size, where)
    if not (limits > 0).all():
        raise UserError(f"{where}: {limits.min():g} must be above 0; correct it")
    return limits
