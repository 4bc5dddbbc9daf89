"""Callbacks that are called again and again."""

import math

from kdmarl_ros import timers
from kdmarl_ros.timers import Timers


def at(monkeypatch, moment):
    """Sets the clock."""
    monkeypatch.setattr(timers.time, "monotonic", lambda: moment[0])


def test_each_is_called_in_its_own_period(monkeypatch):
    called, now = [], [10.0]
    at(monkeypatch, now)
    some = Timers()
    some.every(1.0, lambda: called.append("slow"), 10.0)
    some.every(0.5, lambda: called.append("quick"), 10.0)
    assert some.next_s == 10.5
    for now[0] in (10.4, 10.5, 11.0):
        some.call_due()
    assert called == ["quick", "slow", "quick"]  # of one moment, in the order of their making
    now[0] = 20.7  # what was missed is not made up for
    some.call_due()
    assert called[3:] == ["quick", "slow"]
    assert some.next_s == 21.0


def test_what_takes_all_the_time_lets_others_have_a_turn(monkeypatch):
    """A callback that is due again when it ends is called in the next turn."""
    called, now = [], [0.0]
    at(monkeypatch, now)
    some = Timers()

    def work():
        called.append(now[0])
        now[0] += 3.0

    some.every(1.0, work, 0.0)
    now[0] = 1.0
    some.call_due()
    assert called == [1.0]
    some.call_due()
    assert called == [1.0, 4.0]


def test_one_at_a_time_and_cancelled(monkeypatch):
    called, now = [], [0.0]
    at(monkeypatch, now)
    some = Timers()
    end = some.every(1.0, lambda: called.append("first"), 0.0)
    some.every(1.0, lambda: called.append("second"), 0.0)
    now[0] = 1.0
    some.call_one()
    assert called == ["first"]
    end()
    now[0] = 2.0
    some.call_due()
    assert called == ["first", "second"]
    some.call_one()
    assert called == ["first", "second"]
    assert Timers().next_s == math.inf
