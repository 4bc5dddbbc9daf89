"""What stands between bad input and a moving robot. No ROS here; time is steady, in seconds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MIN_TIMEOUT_S = 0.1
TIMEOUT_PERIODS = 3.0
FUTURE_S = 1.0  # a measurement from further ahead is a fault of a clock

# What a robot does while its inputs cannot be used. A robot with continuous commands could stop,
# hold, or hold and then stop; the index of an action is no quantity that could be zero.
STALL_BEHAVIOURS = ("safe_action", "hold_then_safe", "hold", "other_action")

Mask = npt.NDArray[np.bool_]


def default_timeout_s(rate_hz: float) -> float:
    """Silence that is tolerated by default: three periods, at least 0.1 s."""
    return max(MIN_TIMEOUT_S, TIMEOUT_PERIODS / rate_hz)


def check_values(data: Sequence[float], size: int) -> str | None:
    """Why these values cannot be used, as a short word for diagnostics; None if they can."""
    if len(data) != size:
        return "wrong_size"
    # A sum is finite only if every float32 in it is: it cannot overflow a double.
    if not math.isfinite(sum(data)):
        return "non_finite"
    return None


def check_mask(data: Sequence[float]) -> str | None:
    """Why these values are no mask, as a short word for diagnostics; None if they are one."""
    return None if all(value in (0.0, 1.0) for value in data) else "not_a_mask"


def check_age(age_s: float | None, timeout_s: float) -> str | None:
    """Why a measurement of that age, by its own stamp, cannot be used; None if it can.

    An age of None is that of a measurement without a stamp.
    """
    if age_s is None:
        return "no_stamp"
    if age_s < -FUTURE_S:
        return "future"
    return "late" if age_s > timeout_s else None


def legal_action(wanted: int, safe: int, mask: Mask | None) -> int:
    """The wanted action if it is legal, else the safe one, else the first that is.

    If none is, the safe one.
    """
    if mask is None or mask[wanted]:
        return wanted
    return safe if mask[safe] or not mask.any() else int(mask.argmax())


@dataclass(frozen=True)
class StallBehaviour:
    """What is published while inputs cannot be used."""

    behaviour: str = "safe_action"  # one of STALL_BEHAVIOURS
    hold_s: float = 0.0  # how long `hold_then_safe` holds
    other: int = 0  # the index that `other_action` means

    def choose(self, safe: int, last: int | None, stalled_s: float) -> int:
        """The action to publish, `stalled_s` after the inputs failed.

        Args:
            safe: the safe action.
            last: the policy's newest choice; None if there is none worth holding.
            stalled_s: time since the first decision without usable inputs.
        """
        if self.behaviour == "other_action":
            return self.other
        holds = self.behaviour == "hold" or (
            self.behaviour == "hold_then_safe" and stalled_s < self.hold_s
        )
        return last if holds and last is not None else safe


class Watchdog:
    """Trips once when nothing good has come for `timeout_s`, until fed again."""

    def __init__(self, timeout_s: float, now_s: float) -> None:
        self.timeout_s = timeout_s
        self._fed_s = now_s
        self.tripped = False

    def feed(self, now_s: float) -> None:
        """Something good has come."""
        self._fed_s = now_s
        self.tripped = False

    def age_s(self, now_s: float) -> float:
        """Seconds since the last good input."""
        return now_s - self._fed_s

    def check(self, now_s: float) -> bool:
        """True exactly once per silence: at the first check after the timeout."""
        if self.tripped or self.age_s(now_s) <= self.timeout_s:
            return False
        self.tripped = True
        return True


class Overruns:
    """Counts periods in which nothing was decided, since the decision before took too long."""

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._last_s: float | None = None
        self.missed = 0  # periods, ever
        self.in_a_row = 0  # decisions that came late, up to now

    def begin(self, now_s: float) -> None:
        """A decision begins; half a period late is late."""
        if self._last_s is not None:
            late = max(0, round((now_s - self._last_s) / self._period_s) - 1)
            self.missed += late
            self.in_a_row = self.in_a_row + 1 if late else 0
        self._last_s = now_s

    def forget(self) -> None:
        """The time until the next decision does not count."""
        self._last_s = None
