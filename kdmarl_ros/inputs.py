"""One input of a robot: what may replace its newest value, and whether that can be acted on.

Time is steady time in seconds. An input is identified by (episode, step); within an episode steps
only grow. Another episode begins anew, whatever its number: a restarted simulator may count from
zero. So does step 0 of the same episode: a simulator that was killed plays it from its start. So
does a step that lies very far back: one wrong number must not make all that follow look old.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdmarl_ros.safety import check_age, check_values

Stamp = tuple[int, int]  # episode, step
NEVER: Stamp = (-1, -1)
LONGEST_BACK = 100_000  # steps; minutes at the highest rate: no message takes so long


@dataclass(frozen=True)
class InputRules:
    """What is asked of one input."""

    timeout_s: float = math.inf
    recover_after: int = 1  # good messages after a silence, before it is acted on again
    repeats: bool = True  # whether the newest stamp may come again, as in lock-step
    limits: tuple[float, float] | None = None  # values beyond are clipped
    max_identical: int = 0  # equal messages in a row before it counts as frozen; 0: any number


class Input:
    """The newest good value of one input, and what became of all others."""

    def __init__(
        self,
        name: str,
        values: npt.NDArray[np.float32],
        rules: InputRules,
        check: Callable[[Sequence[float]], str | None] | None = None,
    ) -> None:
        """An input that nothing has come of yet.

        Args:
            name: for reports.
            values: where to keep the newest good values; as long as every message must be.
            rules: what is asked of it.
            check: names a fault of values that have the right size and are finite.
        """
        self.name = name
        self._values = values
        self._rules = rules
        self._check = check
        self.stamp = NEVER
        self.received_s = -math.inf
        self.clipped = 0  # messages
        self._good_in_a_row = 0
        self._identical = 0
        self._raw: Sequence[float] = ()

    def forget(self) -> None:
        """As if nothing had come yet."""
        self.stamp, self.received_s = NEVER, -math.inf
        self._good_in_a_row = self._identical = 0
        self._raw = ()

    def take(
        self, stamp: Stamp, data: Sequence[float], now_s: float, age_s: float | None = 0.0
    ) -> str | None:
        """Take in a message; why it was dropped, as a short word, or None.

        Args:
            stamp: the episode and step it belongs to.
            data: its values.
            now_s: when it was received.
            age_s: how old it was then, by its own stamp; None if it bears none.
        """
        reason = self._refuse(stamp, data, age_s)
        if reason is not None:
            return reason
        if now_s - self.received_s > self._rules.timeout_s:
            self._good_in_a_row = 0
        self._good_in_a_row += 1
        if self._rules.max_identical and stamp != self.stamp:
            self._identical = self._identical + 1 if data == self._raw else 0
            self._raw = data
        self.stamp = stamp
        self.received_s = now_s - max(age_s or 0.0, 0.0)
        self._values[:] = data
        if self._rules.limits is not None:
            low, high = self._rules.limits
            self.clipped += not (low <= self._values.min() and self._values.max() <= high)
            self._values.clip(low, high, out=self._values)
        return None

    def trouble(self, now_s: float) -> str | None:
        """Why it cannot be acted on now, as a short word; None if it can."""
        if self.stamp == NEVER:
            return "waiting"
        if not now_s - self.received_s <= self._rules.timeout_s:
            return "stale"
        return self.doubt()

    def doubt(self) -> str | None:
        """Why it cannot be acted on however new it is; None if it can."""
        if self._rules.max_identical and self._identical >= self._rules.max_identical:
            return "frozen"
        return "recovering" if self._good_in_a_row < self._rules.recover_after else None

    def _refuse(self, stamp: Stamp, data: Sequence[float], age_s: float | None) -> str | None:
        reason = check_values(data, len(self._values))  # first: nothing else reads a huge message
        if reason is None and self._check is not None:
            reason = self._check(data)
        if reason is None:
            reason = check_age(age_s, self._rules.timeout_s)
        back = self.stamp[1] - stamp[1] if stamp[0] == self.stamp[0] else 0
        if reason is None and stamp[1] > 0 and 0 < back < LONGEST_BACK:
            reason = "old"
        if reason is None and stamp == self.stamp and not self._rules.repeats:
            reason = "duplicate"
        return reason
