"""Checks of input and the watchdog, with a clock of the test's own."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdmarl_ros.safety import (
    Overruns,
    Watchdog,
    check_values,
    default_timeout_s,
    legal_action,
)

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("data", "size", "reason"),
    [
        ([1.0, 2.0], 2, None),
        ([0.0], 1, None),
        ([3.4e38] * 1000, 1000, None),
        ([1.0, 2.0], 3, "wrong_size"),
        ([NAN], 2, "wrong_size"),
        ([NAN, 1.0], 2, "non_finite"),
        ([INF, -INF], 2, "non_finite"),
    ],
)
def test_values(data, size, reason):
    assert check_values(data, size) == reason


@given(st.lists(st.floats(width=32), max_size=50))
def test_any_value_that_is_not_finite_is_found(data):
    usable = all(map(math.isfinite, data))
    assert check_values(data, len(data)) == (None if usable else "non_finite")


@pytest.mark.parametrize(("rate_hz", "timeout_s"), [(10.0, 0.3), (1.0, 3.0), (200.0, 0.1)])
def test_default_timeout(rate_hz, timeout_s):
    assert default_timeout_s(rate_hz) == pytest.approx(timeout_s)


def test_watchdog_trips_once_per_silence():
    watchdog = Watchdog(0.5, now_s=10.0)
    assert [watchdog.check(t) for t in (10.0, 10.4, 10.5, 10.6, 10.7, 99.0)] == [
        False,
        False,
        False,  # exactly the timeout is not yet too long
        True,
        False,
        False,
    ]
    assert watchdog.tripped
    assert watchdog.age_s(99.0) == 89.0
    watchdog.feed(99.0)
    assert not watchdog.tripped
    assert [watchdog.check(t) for t in (99.5, 99.6, 100.0)] == [False, True, False]


def test_watchdog_that_is_fed_never_trips():
    watchdog = Watchdog(0.5, now_s=0.0)
    for tenths in range(1, 200):
        watchdog.feed(tenths / 10)
        assert not watchdog.check(tenths / 10 + 0.4)


@given(st.lists(st.tuples(st.floats(0, 2), st.booleans()), max_size=60))
def test_watchdog_against_its_definition(events):
    """It trips at the first check that is more than the timeout after the last food."""
    timeout_s = 0.5
    watchdog, now_s, fed_s, tripped = Watchdog(timeout_s, 0.0), 0.0, 0.0, False
    for pause_s, food in events:
        now_s += pause_s
        if food:
            watchdog.feed(now_s)
            fed_s, tripped = now_s, False
            continue
        expected = not tripped and now_s - fed_s > timeout_s
        tripped = tripped or expected
        assert watchdog.check(now_s) == expected
        assert watchdog.tripped == tripped


def test_periods_that_were_missed_are_counted():
    overruns = Overruns(period_s=0.1)
    for now_s in (0.0, 0.1, 0.21, 0.29, 0.4):  # jitter is no overrun
        overruns.begin(now_s)
    assert (overruns.missed, overruns.in_a_row) == (0, 0)
    overruns.begin(0.8)  # 0.5, 0.6 and 0.7 were missed
    overruns.begin(1.1)
    assert (overruns.missed, overruns.in_a_row) == (5, 2)
    overruns.begin(1.2)
    assert (overruns.missed, overruns.in_a_row) == (5, 0)
    overruns.forget()
    overruns.begin(9.0)
    assert overruns.missed == 5


@pytest.mark.parametrize(
    ("wanted", "mask", "action"),
    [
        (2, None, 2),
        (2, [1, 1, 1], 2),
        (2, [1, 1, 0], 1),  # the safe one, although another comes first
        (2, [1, 0, 0], 0),
        (0, [0, 1, 1], 1),
        (2, [0, 0, 0], 1),
    ],
)
def test_legal_actions(wanted, mask, action):
    known = None if mask is None else np.array(mask, np.bool_)
    assert legal_action(wanted, 1, known) == action
