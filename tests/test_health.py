"""A node's state in words: what is said, how bad it is, what is counted since the last time."""

import dataclasses

import pytest

from kdmarl_ros.health import ERROR, OK, WARN, Health, Snapshot

ACTING = Snapshot(state="active", acting=True, given={"mode": "real_time"})


def report(health=None, now_s=1.0, **changes):
    return (health or Health()).report(dataclasses.replace(ACTING, **changes), now_s)


@pytest.mark.parametrize(
    ("changes", "level", "message"),
    [
        ({}, OK, "acting"),
        ({"acting": False, "state": "inactive"}, OK, "inactive"),
        ({"acting": False, "state": "unconfigured", "failure": "E: x"}, ERROR, "failed: E: x"),
        ({"stopped": "by swarm since noon"}, ERROR, "stopped by swarm since noon"),
        ({"troubles": {"waiting": ["a", "b"]}}, WARN, "waiting for a, b"),
        ({"troubles": {"stale": ["a"]}, "ages_s": {"a": 1.26}}, ERROR, "stale a (1.3 s)"),
        ({"troubles": {"frozen": ["a"]}}, ERROR, "frozen a"),
        ({"overridden": True}, WARN, "a person chooses the actions"),
        ({"problems": ["two of them"]}, ERROR, "two of them"),
        ({"counts": {"dropped/a/old": 2}}, WARN, "dropping a/old"),
        ({"counts": {"dropped/a/future": 2}}, ERROR, "a clock is wrong"),
        ({"counts": {"decided/non_finite_output": 1}}, ERROR, "not finite"),
        ({"missed_periods": 3, "late_in_a_row": 9}, WARN, "too slow: 3 periods missed"),
        ({"missed_periods": 3, "late_in_a_row": 10}, ERROR, "too slow: 3 periods missed"),
    ],
)
def test_conditions(changes, level, message):
    found = report(**changes)
    assert found.level == level
    assert message in found.message


def test_the_worst_comes_first():
    found = report(overridden=True, troubles={"frozen": ["a"], "waiting": ["b"]})
    assert found.level == ERROR
    assert found.message.startswith("frozen a; ")
    assert "waiting for b" in found.message


def test_silence_is_no_sensors_fault_while_the_clock_stands_still():
    found = report(clock_paused=True, troubles={"stale": ["a"]}, ages_s={"a": 1.0})
    assert found.level == WARN


def test_counts_are_news_once():
    health = Health()
    counts = {"dropped/a/old": 2}
    assert report(health, counts=counts).level == WARN
    assert report(health, 2.0, counts=counts).level == OK
    assert report(health, 3.0, counts={"dropped/a/old": 3}).level == WARN
    assert report(health, 4.0, missed_periods=1).level == WARN
    assert report(health, 5.0, missed_periods=1).level == OK


def test_figures_by_hand():
    health = Health()
    report(health, 1.0, counts={"decided/policy": 10})
    found = report(
        health,
        3.0,
        counts={"decided/policy": 50, "decided/stale: a": 4},
        compute_s=[i / 1000 for i in range(101)],
        ages_s={"a": 0.25},
    )
    assert found.values["measured_rate_hz"] == "22.0"  # 44 decisions in 2 s
    assert found.values["compute_p50_ms"] == "50.000"
    assert found.values["compute_p99_ms"] == "99.000"
    assert found.values["age_s/a"] == "0.250"
    assert found.values["mode"] == "real_time"
    assert found.values["stopped"] == "no"
