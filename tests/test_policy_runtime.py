"""From messages to a decision, without ROS: what is used, what is dropped, when it is safe."""

import math

import numpy as np
import pytest
from helpers import make_manifest, make_model
from hypothesis import given
from hypothesis import strategies as st

from kdmarl_core.bundle import BundlePolicy
from kdmarl_core.export import student_model
from kdmarl_ros.policy_runtime import PolicyRuntime

NAN, INF = float("nan"), float("inf")
POSITION, LANDMARKS = 0, 1
SIZES = (2, 3)
MANIFEST = make_manifest(blocks=[("position", 2), ("landmarks", 3)], safe_action="down")  # index 3


class SpyPolicy(BundlePolicy):
    """Notes what it was asked."""

    def __init__(self, model=None):
        super().__init__(MANIFEST, model or make_model(MANIFEST))
        self.resets, self.seen = 0, []

    def reset(self):
        self.resets += 1
        super().reset()

    def act(self, observation):
        self.seen.append(observation.tolist())
        return super().act(observation)


@pytest.fixture
def policy():
    return SpyPolicy()


@pytest.fixture
def runtime(policy):
    return PolicyRuntime(policy)


def show(runtime, episode, step, value=1.0, now_s=0.0):
    """A whole step: every block under one stamp."""
    for index, size in enumerate(SIZES):
        assert runtime.receive(index, episode, step, [value] * size, now_s)
    assert runtime.complete() == (episode, step)
    return runtime.decide((episode, step))


# A whole step


def test_nothing_is_complete_before_all_blocks_have_come(runtime):
    assert runtime.complete() is None
    assert runtime.receive(LANDMARKS, 0, 0, [3.0, 4.0, 5.0], 0.0)
    assert runtime.complete() is None
    assert runtime.receive(POSITION, 0, 0, [1.0, 2.0], 0.0)
    assert runtime.complete() == (0, 0)


def test_decides_on_the_blocks_in_the_manifests_order(runtime, policy):
    runtime.receive(LANDMARKS, 0, 0, [3.0, 4.0, 5.0], 0.0)
    runtime.receive(POSITION, 0, 0, [1.0, 2.0], 0.0)
    decision = runtime.decide((0, 0))
    assert policy.seen == [[1.0, 2.0, 3.0, 4.0, 5.0]]
    expected = BundlePolicy(MANIFEST, make_model(MANIFEST)).act(np.float32([1, 2, 3, 4, 5]))
    assert (decision.stamp, decision.action) == ((0, 0), expected)
    assert (decision.safe, decision.reason) == (False, "")
    assert decision.compute_s > 0


def test_blocks_of_different_steps_are_not_mixed(runtime):
    show(runtime, 0, 0)
    runtime.receive(POSITION, 0, 1, [2.0, 2.0], 0.0)
    assert runtime.complete() is None
    runtime.receive(LANDMARKS, 1, 1, [2.0] * 3, 0.0)
    assert runtime.complete() is None


def test_a_repeated_step_gets_the_same_answer_without_thinking(runtime, policy):
    first = show(runtime, 0, 0)
    assert show(runtime, 0, 0) is first
    assert len(policy.seen) == 1
    assert runtime.decisions == {"policy": 1}


def test_a_step_is_thought_about_once_whatever_was_published_since(runtime, policy):
    """A recurrent policy would otherwise live through the step twice."""
    answer = show(runtime, 0, 0)
    assert runtime.safe("stale").safe
    assert show(runtime, 0, 0) is answer
    assert len(policy.seen) == 1


# What is dropped


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ([1.0], "wrong_size"),
        ([], "wrong_size"),
        ([1.0, 2.0, 3.0], "wrong_size"),
        ([1.0, NAN], "non_finite"),
        ([INF, 0.0], "non_finite"),
        ([-INF, 0.0], "non_finite"),
        ([INF, -INF], "non_finite"),
    ],
)
def test_bad_values_are_dropped_and_counted(runtime, policy, data, reason):
    show(runtime, 0, 0, value=1.0, now_s=0.0)
    assert not runtime.receive(POSITION, 0, 1, data, now_s=5.0)
    assert runtime.drops == {f"position/{reason}": 1}
    assert runtime.complete() == (0, 0)  # nothing newer has come
    assert runtime.ages_s(5.0) == {"position": 5.0, "landmarks": 5.0}
    runtime.receive(LANDMARKS, 0, 1, [7.0] * 3, 5.0)
    runtime.decide_newest(5.0, timeout_s=10.0)
    assert policy.seen[-1] == [1.0, 1.0, 7.0, 7.0, 7.0]


def test_steps_do_not_go_backwards_within_an_episode(runtime):
    show(runtime, 4, 7)
    assert not runtime.receive(POSITION, 4, 6, [0.0, 0.0], 0.0)
    assert not runtime.receive(LANDMARKS, 4, 1, [0.0] * 3, 0.0)
    assert runtime.drops == {"position/old": 1, "landmarks/old": 1}
    assert runtime.complete() == (4, 7)
    assert show(runtime, 4, 9).stamp == (4, 9)  # a gap is no reason to stop


def test_extremes_of_float32_are_numbers(runtime):
    largest = float(np.finfo(np.float32).max)
    assert runtime.receive(LANDMARKS, 0, 0, [largest] * 3, 0.0)
    assert runtime.receive(LANDMARKS, 0, 1, [-largest] * 3, 0.0)
    assert runtime.receive(POSITION, 0, 1, [5e-324, -0.0], 0.0)


# Episodes


@pytest.mark.parametrize("other", [1, 0], ids=["the next", "a smaller number"])
def test_another_episode_begins_anew(runtime, policy, other):
    first = 1 - other
    show(runtime, first, 0)
    show(runtime, first, 1)
    assert policy.resets == 1
    assert show(runtime, other, 0).stamp == (other, 0)
    assert policy.resets == 2
    show(runtime, other, 1)
    assert policy.resets == 2
    assert not runtime.drops


def test_an_episode_that_starts_over_is_followed(runtime, policy):
    """A simulator that was killed in episode 3 plays episode 3 again from its first step."""
    for step in range(5):
        show(runtime, 3, step, value=1.0)
    resets = policy.resets
    again = show(runtime, 3, 0, value=2.0)
    assert again.stamp == (3, 0)
    assert policy.seen[-1] == [2.0] * 5
    assert policy.resets == resets + 1
    for step in range(1, 5):
        assert show(runtime, 3, step, value=3.0).stamp == (3, step)
        assert policy.seen[-1] == [3.0] * 5
    assert not runtime.drops


# Real time


def test_real_time_needs_every_input_once(runtime, policy):
    runtime.receive(POSITION, 0, 0, [1.0, 1.0], 0.0)
    decision = runtime.decide_newest(0.0, timeout_s=1.0)
    assert (decision.safe, decision.action, decision.stamp) == (True, 3, (0, 0))
    assert decision.reason == "stale: landmarks"
    assert policy.seen == []


@pytest.mark.parametrize(("age_s", "stale"), [(0.0, False), (0.5, False), (0.501, True)])
def test_real_time_heeds_the_age_of_each_input(runtime, age_s, stale):
    now_s = 100.0
    runtime.receive(POSITION, 0, 4, [1.0, 1.0], now_s - age_s)
    runtime.receive(LANDMARKS, 0, 5, [1.0] * 3, now_s)
    decision = runtime.decide_newest(now_s, timeout_s=0.5)
    assert decision.safe == stale
    assert decision.reason == ("stale: position" if stale else "")
    assert decision.stamp == (0, 5)
    assert runtime.ages_s(now_s) == {"position": pytest.approx(age_s), "landmarks": 0.0}


def test_real_time_recovers(runtime, policy):
    show(runtime, 0, 0, now_s=0.0)
    assert runtime.decide_newest(9.0, timeout_s=0.5).reason == "stale: position, landmarks"
    show(runtime, 0, 1, now_s=9.0)
    assert not runtime.decide_newest(9.1, timeout_s=0.5).safe
    assert not runtime.decide_newest(9.2, timeout_s=0.5).safe  # every period decides afresh
    assert len(policy.seen) == 4
    assert runtime.decisions == {"policy": 4, "stale: position, landmarks": 1}


def test_before_anything_came_the_age_is_infinite(runtime):
    assert runtime.ages_s(3.0) == {"position": INF, "landmarks": INF}
    assert runtime.safe("deactivated").stamp == (0, 0)


# What the network gives


def test_output_that_is_not_finite_becomes_the_safe_action():
    rng = np.random.default_rng(0)
    huge = [
        (1e30 * np.abs(rng.standard_normal((5, 4))).astype(np.float32), np.zeros(4, np.float32)),
        (1e30 * rng.standard_normal((4, 5)).astype(np.float32), np.zeros(5, np.float32)),
    ]
    policy = SpyPolicy(student_model(huge))
    runtime = PolicyRuntime(policy)
    assert not show(runtime, 0, 0, value=0.0).safe
    resets = policy.resets
    decision = show(runtime, 0, 1, value=1.0)
    assert (decision.safe, decision.action) == (True, 3)
    assert decision.reason == "non_finite_output"
    assert policy.resets == resets + 1  # whatever state led to it is gone
    assert not show(runtime, 0, 2, value=0.0).safe
    assert runtime.decisions == {"policy": 2, "non_finite_output": 1}


# Whatever comes

uint32 = st.one_of(st.integers(0, 3), st.integers(0, 2**32 - 1))
garbage = st.lists(
    st.tuples(
        st.sampled_from([POSITION, LANDMARKS]),
        uint32,
        uint32,
        st.lists(st.floats(width=32), max_size=4),
    ),
    max_size=30,
)


def is_good(stamp, data, size, newest):
    again = newest is not None and stamp[0] == newest[0] and 0 < stamp[1] < newest[1]
    return len(data) == size and all(map(math.isfinite, data)) and not again


@given(messages=garbage)
def test_garbage_never_raises_and_never_replaces_good_input(messages):
    policy = SHARED
    policy.seen.clear()
    runtime = PolicyRuntime(policy)
    newest, good = [None, None], [None, None]
    for index, episode, step, data in messages:
        accepted = runtime.receive(index, episode, step, data, 0.0)
        assert accepted == is_good((episode, step), data, SIZES[index], newest[index])
        if accepted:
            newest[index], good[index] = (episode, step), data
        stamp = runtime.complete()
        assert stamp == (newest[0] if newest[0] == newest[1] else None)
        if stamp is not None:
            assert 0 <= runtime.decide(stamp).action < len(MANIFEST.actions)
    assert sum(runtime.drops.values()) <= len(messages)
    decision = runtime.decide_newest(0.0, timeout_s=1.0)
    if None in good:
        assert decision.safe
        assert decision.action == 3
    else:
        assert np.array_equal(policy.seen[-1], np.float32(good[0] + good[1]))


SHARED = SpyPolicy()
