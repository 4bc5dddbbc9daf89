"""Callbacks that are called again and again, in steady time, by whoever has time for them."""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Callable

Due = tuple[float, int, float, Callable[[], None]]  # due, order, period, what to call


class Timers:
    """A heap of callbacks; those that are due at one moment come in the order of their making."""

    def __init__(self) -> None:
        self._heap: list[Due] = []
        self._order = itertools.count()

    @property
    def next_s(self) -> float:
        """When the first one is due; infinity without any."""
        return self._heap[0][0] if self._heap else math.inf

    def every(
        self, period_s: float, callback: Callable[[], None], phase_s: float
    ) -> Callable[[], None]:
        """Call whenever so many periods have passed since a moment; returns what ends that."""
        due_s = _next(phase_s, period_s, time.monotonic())
        heapq.heappush(self._heap, (due_s, next(self._order), period_s, callback))

        def cancel() -> None:
            self._heap = [timer for timer in self._heap if timer[-1] is not callback]
            heapq.heapify(self._heap)

        return cancel

    def call_due(self) -> None:
        """Call all that are due now; what becomes due meanwhile waits for the next call."""
        now_s = time.monotonic()
        while self._call_one(now_s):
            pass

    def call_one(self) -> None:
        """Call the first one, if it is due."""
        self._call_one(time.monotonic())

    def _call_one(self, now_s: float) -> bool:
        if self.next_s > now_s:
            return False
        due_s, order, period_s, callback = self._heap[0]
        heapq.heapreplace(self._heap, (_next(due_s, period_s, now_s), order, period_s, callback))
        callback()
        return True


def _next(due_s: float, period_s: float, now_s: float) -> float:
    """The first moment after now in a row of periods; what was missed is not made up for."""
    return due_s + period_s * max(1, (now_s - due_s) // period_s + 1)
