"""What stands between bad input and a moving robot. No ROS here; time is steady, in seconds."""

import math
from collections.abc import Sequence

MIN_TIMEOUT_S = 0.1
TIMEOUT_PERIODS = 3.0


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
