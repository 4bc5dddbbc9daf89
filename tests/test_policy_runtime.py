"""From messages to a decision, without ROS: what is used, what is dropped, when it is safe."""

import dataclasses
import math
import random

import numpy as np
import pytest
from helpers import make_manifest, make_model
from hypothesis import given
from hypothesis import strategies as st

from kdmarl_core.bundle import BundlePolicy
from kdmarl_core.export import student_model
from kdmarl_ros.inputs import LONGEST_BACK
from kdmarl_ros.policy_runtime import NO_STEP, PolicyRuntime, RuntimeSettings, Status
from kdmarl_ros.safety import StallBehaviour

NAN, INF = float("nan"), float("inf")
POSITION, LANDMARKS = 0, 1
SIZES = (2, 3)
MANIFEST = make_manifest(blocks=[("position", 2), ("landmarks", 3)], safe_action="down")  # index 3


class SpyPolicy(BundlePolicy):
    """Notes what it was asked."""

    resets = 0

    def __init__(self, model=None, manifest=MANIFEST):
        super().__init__(manifest, model or make_model(manifest))
        self.resets, self.seen = 0, []

    def reset(self):
        self.resets += 1
        super().reset()

    def act(self, observation, action_mask=None, messages=None):
        self.seen.append(observation.tolist())
        return super().act(observation, action_mask, messages)


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
    runtime.decide_newest(5.0)
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


def in_real_time(policy, **settings):
    return PolicyRuntime(policy, RuntimeSettings(real_time=True, timeout_s=0.5, **settings))


def give(runtime, episode, step, value=1.0, now_s=0.0):
    for index, size in enumerate(SIZES):
        assert runtime.receive(index, episode, step, [value] * size, now_s)


def test_real_time_needs_every_input_once(policy):
    runtime = in_real_time(policy)
    runtime.receive(POSITION, 0, 0, [1.0, 1.0], 0.0)
    decision = runtime.decide_newest(0.0)
    assert (decision.safe, decision.action, decision.stamp) == (True, 3, (0, 0))
    assert decision.reason == "waiting: landmarks"
    assert policy.seen == []


@pytest.mark.parametrize(("age_s", "stale"), [(0.0, False), (0.5, False), (0.501, True)])
def test_real_time_heeds_the_age_of_each_input(policy, age_s, stale):
    runtime, now_s = in_real_time(policy), 100.0
    runtime.receive(POSITION, 0, 4, [1.0, 1.0], now_s - age_s)
    runtime.receive(LANDMARKS, 0, 5, [1.0] * 3, now_s)
    decision = runtime.decide_newest(now_s)
    assert decision.safe == stale
    assert decision.reason == ("stale: position" if stale else "")
    assert decision.stamp == (0, 5)
    assert runtime.ages_s(now_s) == {"position": pytest.approx(age_s), "landmarks": 0.0}


def test_real_time_recovers_from_its_initial_state(policy):
    runtime = in_real_time(policy)
    give(runtime, 0, 0, now_s=0.0)
    assert not runtime.decide_newest(0.1).safe
    assert runtime.decide_newest(9.0).reason == "stale: position, landmarks"
    resets = policy.resets
    give(runtime, 0, 1, now_s=9.0)
    assert not runtime.decide_newest(9.1).safe
    assert policy.resets == resets + 1
    give(runtime, 0, 2, now_s=9.2)
    assert not runtime.decide_newest(9.2).safe
    assert policy.resets == resets + 1


def test_decisions_are_counted_by_what_is_sent(policy):
    """A person's action, or a stop's, stands for the policy's: one action, one count."""
    runtime = in_real_time(policy)
    give(runtime, 0, 0, now_s=0.0)
    chosen = runtime.decide_newest(0.1)
    for sent in (chosen, runtime.override(chosen, 2), runtime.stop(chosen, "stopped")):
        runtime.count(sent)
    runtime.count(runtime.decide_newest(9.0))
    assert runtime.decisions == {
        "policy": 1, "override": 1, "stopped": 1, "stale: position, landmarks": 1
    }  # fmt: skip


def test_real_time_thinks_once_about_each_set_of_inputs(policy):
    runtime = in_real_time(policy)
    give(runtime, 0, 0, now_s=0.0)
    first = runtime.decide_newest(0.1)
    assert runtime.decide_newest(0.2) == first
    assert len(policy.seen) == 1
    runtime.receive(POSITION, 0, 1, [5.0, 5.0], 0.3)
    runtime.decide_newest(0.3)
    assert policy.seen[1:] == [[5.0, 5.0, 1.0, 1.0, 1.0]]


def test_real_time_takes_a_stamp_once(policy):
    """A repeated message is no proof that the sensor still lives."""
    runtime = in_real_time(policy)
    give(runtime, 0, 7, now_s=0.0)
    assert not runtime.receive(POSITION, 0, 7, [1.0, 1.0], 0.4)
    assert runtime.drops == {"position/duplicate": 1}
    runtime.receive(LANDMARKS, 0, 8, [1.0] * 3, 0.4)
    assert runtime.decide_newest(0.6).reason == "stale: position"


def test_a_step_far_ahead_does_not_silence_its_sensor_for_ever(policy):
    """Fault: one wrong number."""
    runtime = in_real_time(policy)
    give(runtime, 0, 3, now_s=0.0)
    give(runtime, 0, 2**32 - 1, now_s=0.1)
    give(runtime, 0, 4, now_s=0.2)
    assert not runtime.decide_newest(0.2).safe
    assert not runtime.receive(POSITION, 0, 3, [1.0, 1.0], 0.3)
    assert runtime.drops == {"position/old": 1}


def test_recovery_takes_several_good_messages(policy):
    runtime = in_real_time(policy, recover_after=3)
    safe = []
    for step in range(5):
        give(runtime, 0, step, now_s=step / 10)
        safe.append(runtime.decide_newest(step / 10).safe)
    assert safe == [True, True, False, False, False]
    give(runtime, 0, 5, now_s=9.0)
    assert runtime.decide_newest(9.0).reason == "recovering: position, landmarks"
    give(runtime, 0, 6, now_s=9.1)
    runtime.receive(LANDMARKS, 0, 7, [1.0] * 3, 9.2)
    assert runtime.decide_newest(9.2).reason == "recovering: position"
    give(runtime, 0, 8, now_s=9.3)
    assert not runtime.decide_newest(9.3).safe


@pytest.mark.parametrize(
    ("stall", "actions"),
    [
        (StallBehaviour(), [3, 3, 3]),
        (StallBehaviour("hold"), [LAST := "last", LAST, LAST]),
        (StallBehaviour("hold_then_safe", hold_s=1.0), [LAST, LAST, 3]),
        (StallBehaviour("other_action", other=1), [1, 1, 1]),
    ],
)
def test_what_is_done_during_a_stall(policy, stall, actions):
    runtime = in_real_time(policy, stall=stall)
    # With nothing to hold yet, holding is the safe action.
    assert runtime.decide_newest(0.0).action == (1 if stall.other else 3)
    give(runtime, 0, 0, value=2.0, now_s=0.0)
    last = runtime.decide_newest(0.0).action
    assert last != 3
    found = [runtime.decide_newest(now_s) for now_s in (1.0, 1.9, 2.1)]
    assert [decision.action for decision in found] == [
        last if action == LAST else action for action in actions
    ]
    assert all(decision.safe for decision in found)


def test_a_frozen_input_is_not_acted_on(policy):
    runtime = in_real_time(policy, max_identical={"position": 3})
    for step in range(4):
        runtime.receive(POSITION, 0, step, [1.0, 1.0], 0.0)
        runtime.receive(LANDMARKS, 0, step, [1.0] * 3, 0.0)
        reason = runtime.decide_newest(0.0).reason
        assert reason == ("frozen: position" if step == 3 else "")
    runtime.receive(POSITION, 0, 4, [1.0, 1.5], 0.0)
    assert not runtime.decide_newest(0.0).safe


def test_values_beyond_their_limits_are_clipped_and_counted(policy):
    runtime = in_real_time(policy, limits={"landmarks": (-2.0, 3.0)})
    runtime.receive(POSITION, 0, 0, [1e9, -1e9], 0.0)
    runtime.receive(LANDMARKS, 0, 0, [1e9, 3.0, -2.5], 0.0)
    runtime.decide_newest(0.0)
    assert policy.seen == [[1e9, -1e9, 3.0, 3.0, -2.0]]
    assert runtime.clipped() == {"landmarks": 1}


@pytest.mark.parametrize(
    ("age_s", "reason"),
    [(None, "no_stamp"), (-1.1, "future"), (-0.9, None), (0.0, None), (0.5, None), (0.6, "late")],
)
def test_measurements_are_as_old_as_their_stamps_say(policy, age_s, reason):
    runtime = in_real_time(policy)
    give(runtime, 0, 0, now_s=10.0)
    accepted = runtime.receive(POSITION, 0, 1, [1.0, 1.0], 10.2, age_s)
    assert accepted == (reason is None)
    assert runtime.drops == ({f"position/{reason}": 1} if reason else {})
    expected = 0.0 + max(age_s, 0.0) if reason is None else 0.2
    assert runtime.ages_s(10.2)["position"] == pytest.approx(expected)


def test_forgotten_inputs_must_come_again(policy):
    runtime = in_real_time(policy)
    give(runtime, 5, 5)
    runtime.decide_newest(0.0)
    resets = policy.resets
    runtime.forget()
    assert policy.resets == resets + 1
    assert runtime.decide_newest(0.0).reason == "waiting: position, landmarks"
    give(runtime, 0, 1)
    assert not runtime.decide_newest(0.0).safe


def test_before_anything_came_the_age_is_infinite(runtime):
    assert runtime.ages_s(3.0) == {"position": INF, "landmarks": INF}
    assert runtime.safe("deactivated").stamp == NO_STEP


def test_silence_answers_no_step(runtime):
    """The simulator waited for somebody else, and this robot's watchdog trips between blocks.

    Nor does it answer the step before once more: a simulator that was held up would take that for
    the robot's choice.
    """
    assert runtime.stall(0.0).stamp == NO_STEP
    runtime.receive(POSITION, 0, 0, [1.0, 1.0], 0.0)
    assert runtime.stall(1.0).stamp == NO_STEP
    assert show(runtime, 0, 0).stamp == (0, 0)
    runtime.receive(POSITION, 0, 1, [1.0, 1.0], 9.0)
    assert runtime.stall(9.0).stamp == NO_STEP
    assert show(runtime, 0, 1).stamp == (0, 1)


def test_a_whole_step_that_cannot_be_acted_on_is_answered(policy):
    runtime = PolicyRuntime(policy, RuntimeSettings(recover_after=2))
    found = [show(runtime, 0, step) for step in range(3)]
    assert [(decision.stamp, decision.safe) for decision in found] == [
        ((0, 0), True),
        ((0, 1), False),
        ((0, 2), False),
    ]


# Memory


class Remembering(SpyPolicy):
    """Its state is the list of what it was shown since its last reset."""

    def reset(self):
        super().reset()
        self.lived = []

    def act(self, observation, action_mask=None, messages=None):
        self.lived.append(float(observation[0]))
        return super().act(observation, action_mask, messages)


@pytest.fixture
def remembering():
    return Remembering()


def test_every_step_is_lived_through_once(remembering):
    runtime = PolicyRuntime(remembering)
    for step in range(4):
        for _ in range(3):  # repeated until answered
            show(runtime, 0, step, value=step)
    assert not runtime.receive(POSITION, 0, 2, [9.0, 9.0], 0.0)  # old
    show(runtime, 0, 6, value=6.0)  # two were lost
    assert remembering.lived == [0.0, 1.0, 2.0, 3.0, 6.0]


def test_memory_lasts_while_the_world_stands_still(remembering):
    """A simulator waits for somebody else; the next step follows the last one."""
    runtime = PolicyRuntime(remembering, RuntimeSettings(timeout_s=0.5))
    show(runtime, 0, 0, value=0.0, now_s=0.0)
    assert runtime.stall(2.0).reason == "stale: position, landmarks"
    show(runtime, 0, 1, value=1.0, now_s=3.0)
    assert remembering.lived == [0.0, 1.0]


def test_memory_is_dropped_if_steps_were_missed_in_a_silence(remembering):
    runtime = PolicyRuntime(remembering, RuntimeSettings(timeout_s=0.5))
    show(runtime, 0, 0, value=0.0, now_s=0.0)
    runtime.stall(2.0)
    show(runtime, 0, 5, value=5.0, now_s=3.0)
    show(runtime, 0, 6, value=6.0, now_s=3.0)
    assert remembering.lived == [5.0, 6.0]


def test_the_first_step_of_another_simulator_is_not_answered_from_memory(remembering):
    """Killed and started with another seed, a simulator shows another step 0 of episode 0."""
    runtime = PolicyRuntime(remembering)
    show(runtime, 0, 0, value=1.0)
    show(runtime, 0, 0, value=2.0)
    assert remembering.lived == [2.0]


def test_a_step_that_is_told_in_two_ways_is_not_believed(remembering):
    """Two simulators at once: neither is followed within a step."""
    runtime = PolicyRuntime(remembering)
    show(runtime, 0, 1, value=1.0)
    again = show(runtime, 0, 1, value=2.0)
    assert (again.safe, again.reason) == (True, "contradiction")
    assert remembering.lived == [1.0]


# Legal actions

MASK = 2
MASKED = dataclasses.replace(MANIFEST, legal_actions_vary=True)


@pytest.fixture
def masked():
    return PolicyRuntime(SpyPolicy(manifest=MASKED))


def show_masked(runtime, step, mask):
    for index, size in enumerate(SIZES):
        assert runtime.receive(index, 0, step, [1.0] * size, 0.0)
    assert runtime.complete() is None or step == 0
    assert runtime.receive(MASK, 0, step, mask, 0.0)
    return runtime.decide(runtime.complete())


def test_the_most_probable_of_the_legal_actions_is_chosen(masked):
    logits = BundlePolicy(MANIFEST, make_model(MANIFEST)).logits(np.ones(5, np.float32))
    order = [int(index) for index in np.argsort(-logits)]
    mask = np.ones(5, np.float32)
    for step, action in enumerate(order):
        assert show_masked(masked, step, mask.tolist()).action == action
        mask[action] = 0.0


def test_without_any_legal_action_there_is_the_safe_one(masked):
    decision = show_masked(masked, 0, [0.0] * 5)
    assert (decision.action, decision.reason) == (3, "no_legal_action")


def test_an_illegal_safe_action_gives_way_to_the_first_legal_one(masked):
    show_masked(masked, 0, [0.0, 1.0, 1.0, 0.0, 1.0])
    assert masked.safe("stale").action == 1
    show_masked(masked, 1, [0.0, 1.0, 0.0, 1.0, 0.0])
    assert masked.safe("stale").action == 3


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        ([1.0] * 4, "wrong_size"),
        ([1.0] * 6, "wrong_size"),
        ([1.0, NAN, 0.0, 0.0, 0.0], "non_finite"),
        ([1.0, 0.5, 0.0, 0.0, 0.0], "not_a_mask"),
        ([1.0, -1.0, 0.0, 0.0, 0.0], "not_a_mask"),
    ],
)
def test_what_is_no_mask_is_dropped(masked, mask, reason):
    assert not masked.receive(MASK, 0, 0, mask, 0.0)
    assert masked.drops == {f"action_mask/{reason}": 1}


def test_a_persons_action_must_be_legal(masked):
    decision = show_masked(masked, 0, [0.0, 0.0, 1.0, 1.0, 0.0])
    assert masked.override(decision, 2).action == 2
    overridden = masked.override(decision, 4)
    assert (overridden.action, overridden.status, overridden.safe) == (3, Status.OVERRIDE, False)
    stopped = masked.stop(overridden, "stopped")
    assert (stopped.action, stopped.safe, stopped.stamp) == (3, True, (0, 0))


@pytest.mark.parametrize(
    "stall", [StallBehaviour("hold"), StallBehaviour("other_action", other=4)], ids=str
)
def test_what_is_held_gives_way_to_the_safe_action_when_it_becomes_illegal(masked, stall):
    runtime = PolicyRuntime(SpyPolicy(manifest=MASKED), RuntimeSettings(stall=stall))
    held = show_masked(runtime, 0, [1.0, 1.0, 1.0, 1.0, 1.0]).action
    assert held != 3
    legal = [1.0] * 5
    legal[held] = legal[4] = 0.0
    assert runtime.receive(MASK, 0, 1, legal, 9.0)
    assert runtime.stall(9.0).action == 3


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
    back = newest[1] - stamp[1] if newest is not None and stamp[0] == newest[0] else 0
    again = stamp[1] > 0 and 0 < back < LONGEST_BACK
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
    decision = runtime.decide_newest(0.0)
    if None in good:
        assert decision.safe
        assert decision.action == 3
    else:
        assert np.array_equal(policy.seen[-1], np.float32(good[0] + good[1]))


SHARED = SpyPolicy()


def test_a_hundred_thousand_hostile_messages_leave_nothing_behind():
    """Other ages and masks than above, too; what is decided is always legal."""
    settings = RuntimeSettings(timeout_s=0.5, recover_after=2, limits={"position": (-1.0, 1.0)})
    runtime = PolicyRuntime(SpyPolicy(manifest=MASKED), settings)
    rng = random.Random(0)
    numbers = [0.0, 1.0, -7.5, 3.4e38, NAN, INF, -INF]
    stamps = [0, 1, 2, 2**32 - 1]
    ages_s = [0.0, 0.3, 0.9, -5.0, None]
    accepted = chosen = 0
    for count in range(100_000):
        index = rng.randrange(3)
        size = rng.choice([(*SIZES, 5)[index]] * 3 + [0, 99])
        data = rng.choices(numbers[: rng.choice([2, 2, 7])], k=size)
        stamp = rng.choice(stamps), rng.choice(stamps)
        accepted += runtime.receive(index, *stamp, data, count / 100, rng.choice(ages_s))
        whole = runtime.complete()
        if whole is not None:
            decision = runtime.decide(whole, count / 100)
            chosen += not decision.safe
            mask = runtime.mask()
            assert mask[decision.action] or not mask.any()
    assert accepted + sum(runtime.drops.values()) == 100_000
    assert accepted > 10_000
    reasons = {reason.partition("/")[2] for reason in runtime.drops}
    assert reasons == {
        "wrong_size", "non_finite", "not_a_mask", "old", "late", "future", "no_stamp"
    }  # fmt: skip
    assert chosen > 10
