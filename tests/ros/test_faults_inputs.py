"""Faults of what a robot senses: silent, frozen, wrong, late or hostile inputs.

Rows 1 to 6, 9 to 11 and 28 of the fault table. All tests drive the same two nodes, one in
lock-step and one in real time.
"""

import array
import math
import random
import time

import numpy as np
import psutil
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import State
from ros_driver import ROBOT, SETTLE_S, TRIES, driving, observations

from kdmarl_core.bundle import load_policy
from kdmarl_ros.msg import AgentAction, FeatureBlock

pytestmark = pytest.mark.ros

SAFE, POLICY = AgentAction.STATUS_SAFE, AgentAction.STATUS_POLICY
ERROR, WARN = DiagnosticStatus.ERROR, DiagnosticStatus.WARN
LIMIT = 5.0
HELD = "robot_1"


@pytest.fixture(scope="module")
def lock_step(module_domain, start_shared_node, bundles):
    child = start_shared_node(
        "policy_node", "-r", f"__ns:=/{ROBOT}", "-p", f"bundle:={bundles / ROBOT}",
        "-p", "timeout_s:=0.5", "-p", "sensor_reliability:=reliable",
    )  # fmt: skip
    with driving(module_domain, load_policy(bundles / ROBOT).manifest) as sensors:
        sensors.process = psutil.Process(child.pid)
        sensors.until_listened_to()
        yield sensors


@pytest.fixture(scope="module")
def real_time(module_domain, start_shared_node, bundles):
    """Acts at 20 Hz by the stamps of its messages; holds its last action for a while."""
    start_shared_node(
        "policy_node", "-r", f"__ns:=/{HELD}", "-p", f"bundle:={bundles / HELD}",
        "-p", "mode:=real_time", "-p", "rate_hz:=20.0", "-p", "timeout_s:=0.4",
        "-p", "stamps:=header", "-p", "recover_after:=3", "-p", "on_stall:=hold_then_safe",
        "-p", "stall_hold_s:=0.5", "-p", f"limits.position:=[{-LIMIT}, {LIMIT}]",
        "-p", "max_identical.velocity:=5",
    )  # fmt: skip
    with driving(module_domain, load_policy(bundles / HELD).manifest, HELD) as sensors:
        sensors.until_listened_to()
        yield sensors


def until_reported_and_safe(sensors, words, send):
    """While the fault goes on; the report may come a moment before the action."""
    sensors.until_reported(words, level=ERROR, meanwhile=send)
    sensors.until(lambda: sensors.actions[-1].status == SAFE, meanwhile=send)


# Row 2 comes first: the node has seen nothing yet.


def test_without_a_sensor_there_is_no_policy_action(real_time):
    real_time.until_reported("waiting for", "velocity", level=WARN)
    assert real_time.state() == State.PRIMARY_STATE_ACTIVE
    real_time.until_reported(
        "waiting for position",
        level=WARN,
        meanwhile=lambda: real_time.send_new(without="position"),
    )
    assert real_time.actions
    assert all(action.status == SAFE for action in real_time.actions)
    assert {action.action for action in real_time.actions} == {real_time.manifest.safe_index}


def test_silence_of_one_sensor_is_held_and_then_safe(real_time, bundles):
    policy, safe = load_policy(bundles / HELD), real_time.manifest.safe_index
    velocity = real_time.part("velocity")

    def varied(observation, step):  # what stays the same counts as frozen
        observation = observation.copy()
        observation[velocity] += 1e-3 * (step % 2)
        return observation

    # Whichever decision was heard last before the silence: it is this one, and not the safe one.
    for shown in observations(real_time.manifest, 50):
        choices = {policy.act(varied(shown, step)) for step in (0, 1)}
        if len(choices) == 1 and safe not in choices:
            break
    [last] = choices

    def steady(observation):
        observation[:] = varied(shown, real_time.step)

    def send_less():
        real_time.send_new(without="landmarks", change=steady)

    real_time.until_acting(change=steady)
    real_time.until_reported("stale landmarks (", level=ERROR, meanwhile=send_less)
    # The report may come while it still holds, or a moment before.
    real_time.until(lambda: real_time.actions[-1].action == safe, meanwhile=send_less)
    policys = max(i for i, a in enumerate(real_time.actions) if a.status == POLICY)
    assert real_time.actions[policys].action == last
    stalled = [action.action for action in real_time.actions[policys + 1 :]]
    held = stalled.count(last)
    assert held > 0
    # Held first, safe after that, and never back.
    assert stalled == [last] * held + [safe] * (len(stalled) - held)
    assert stalled[-1] == safe

    def recovering():
        counts = real_time.counted("decided/").items()
        return sum(n for key, n in counts if key.startswith("recovering") and "landmarks" in key)

    def send_now_and_then():  # several periods of the node lie between two of them
        real_time.send_new(without="landmarks" if real_time.step % 10 else ())

    before = recovering()
    real_time.until(lambda: recovering() > before, meanwhile=send_now_and_then)
    real_time.until_acting()
    real_time.until_reported("acting", meanwhile=real_time.send_new)


def test_one_bad_message_does_not_trip_and_persistent_ones_do(real_time):
    def poison(observation):
        observation[real_time.part("velocity")][1] = np.inf

    def poison_some():
        rare = real_time.step % 5 == 0
        real_time.send_new(change=poison if rare else lambda observation: None)

    for _ in range(TRIES):
        real_time.until_acting()
        real_time.until_reported("acting", meanwhile=real_time.send_new)
        real_time.actions.clear()
        before = real_time.dropped().get("velocity/non_finite", 0)
        real_time.until_reported("dropping velocity/non_finite", level=WARN, meanwhile=poison_some)
        assert real_time.dropped()["velocity/non_finite"] > before
        if all(action.status == POLICY for action in real_time.actions):
            break
    else:
        pytest.fail("one bad message trips")
    until_reported_and_safe(real_time, "stale velocity", lambda: real_time.send_new(change=poison))


def test_a_frozen_sensor_is_an_error(real_time):
    real_time.until_acting()

    def freeze(observation):
        observation[real_time.part("velocity")] = 0.25

    until_reported_and_safe(
        real_time, "frozen velocity", lambda: real_time.send_new(change=freeze)
    )
    real_time.until_acting()


def test_values_out_of_range_are_clipped_and_counted(real_time, bundles):
    policy = load_policy(bundles / HELD)
    real_time.until_acting()
    part = real_time.part("position")
    expected = {}

    def exceed(observation):
        observation[part] = 1e9
        clipped = observation.copy()
        clipped[part] = LIMIT
        expected[real_time.step] = policy.act(clipped)

    first = real_time.step + 1
    real_time.stream_until(
        lambda: sum(action.step >= first for action in real_time.chosen()) > 3, change=exceed
    )
    for action in real_time.chosen():
        if action.step in expected:
            assert action.action == expected[action.step]
    real_time.until_reported("", meanwhile=lambda: real_time.send_new(change=exceed))
    assert real_time.counted("clipped/")["position"] > 3


@pytest.mark.parametrize(
    ("age_s", "reason", "words"),
    [
        (0.8, "late", "stale"),  # twice the timeout, though they keep coming
        (-10.0, "future", "a clock is wrong"),
        (None, "no_stamp", "dropping"),
    ],
)
def test_measurements_at_the_wrong_time_are_no_measurements(real_time, age_s, reason, words):
    real_time.until_acting()
    before = real_time.dropped().get(f"position/{reason}", 0)

    def send():
        real_time.send_new(age_s=age_s)

    real_time.until_reported(words, meanwhile=send)
    until_reported_and_safe(real_time, "stale", send)
    assert real_time.dropped()[f"position/{reason}"] > before
    real_time.until_acting()


def test_duplicates_and_old_stamps_are_dropped(real_time):
    real_time.until_acting()
    real_time.step += 100
    newest = real_time.step
    real_time.until_acting()
    before = real_time.dropped()
    rng = random.Random(0)
    observation = observations(real_time.manifest, 1)[0]
    real_time.actions.clear()

    def counted(reason):
        key = f"position/{reason}"
        return real_time.dropped().get(key, 0) > before.get(key, 0)

    def send_old():
        real_time.send(observation, 1, newest - rng.randrange(1, 50), time.time())

    def send_again():
        real_time.send(observation, 1, real_time.step, time.time())

    real_time.until(lambda: counted("old"), meanwhile=send_old)
    real_time.until(lambda: counted("duplicate"), meanwhile=send_again)
    assert all(action.step >= newest for action in real_time.actions)
    real_time.until_acting()


# In lock-step


def test_silence_in_lock_step_is_safe_and_named(lock_step):
    observation = observations(lock_step.manifest, 1)[0]
    lock_step.answer(observation, episode=1, step=0)
    lock_step.actions.clear()
    lock_step.until_reported("stale", "velocity", "s)", level=ERROR)
    lock_step.until(lambda: lock_step.actions)  # the report may come a moment before it
    lock_step.spin(SETTLE_S)
    assert [action.status for action in lock_step.actions] == [SAFE]
    assert lock_step.actions[0].action == lock_step.manifest.safe_index
    lock_step.answer(observation, episode=1, step=1)


@pytest.mark.parametrize("size", [0, 1, 3])
def test_messages_of_the_wrong_length_are_dropped(lock_step, size):
    observation = observations(lock_step.manifest, 1)[0]
    lock_step.answer(observation, episode=2, step=0)
    dropped = lock_step.dropped().get("velocity/wrong_size", 0)
    lock_step.send_block("velocity", [0.0] * size, episode=2, step=1)
    lock_step.until(lambda: lock_step.dropped().get("velocity/wrong_size", 0) > dropped)
    lock_step.answer(observation, episode=2, step=2)


def test_huge_messages_do_not_add_up(lock_step):
    """The middleware keeps room for the largest one it has seen, and for no more."""
    observation = observations(lock_step.manifest, 1)[0]
    message = FeatureBlock(episode=2, step=3, data=array.array("f", bytes(4 * 10_000_000)))
    sizes_mb = []
    for step in range(4):
        dropped = lock_step.dropped().get("velocity/wrong_size", 0)
        lock_step.publishers["velocity"].publish(message)
        lock_step.until(lambda n=dropped: lock_step.dropped().get("velocity/wrong_size", 0) > n)
        lock_step.answer(observation, episode=3, step=step)
        sizes_mb.append(lock_step.process.memory_info().rss / 1e6)
    assert sizes_mb[-1] < sizes_mb[0] + 20


def test_a_flood_is_counted_and_costs_nothing_else(real_time):
    real_time.until_acting()
    name = f"/{HELD}/sensors/velocity"
    message = FeatureBlock(episode=1, step=0, data=[0.0])  # of the wrong length, too

    def flood():
        real_time.send_new()
        for _ in range(200):
            real_time.publishers["velocity"].publish(message)
            real_time.executor.spin_once(timeout_sec=0)

    before = real_time.counted("flooded/").get(name, 0)
    real_time.until(
        lambda: real_time.counted("flooded/").get(name, 0) > before + 3, meanwhile=flood
    )
    real_time.until_reported("acting", meanwhile=real_time.send_new)


def test_hostile_messages_neither_crash_nor_move_the_robot(lock_step, bundles):
    policy = load_policy(bundles / ROBOT)
    rng = random.Random(0)
    numbers = [0.0, 1.0, -1e30, 3.4e38, math.nan, math.inf, -math.inf]
    for round_number in range(30):
        for _ in range(100):
            name = rng.choice(list(lock_step.publishers))
            message = FeatureBlock(
                episode=rng.choice([0, 1, 5, 2**32 - 1, rng.randrange(2**32)]),
                step=rng.choice([0, 1, 2, 2**32 - 1, rng.randrange(2**32)]),
                data=[rng.choice(numbers) for _ in range(rng.choice([0, 1, 2, 4, 6, 99]))],
            )
            message.header.frame_id = rng.choice(["", "x" * 5000, "\u00e9" * 9])
            message.header.stamp.sec = rng.choice([0, -(2**31), 2**31 - 1])
            lock_step.publishers[name].publish(message)
            lock_step.executor.spin_once(timeout_sec=0)
        observation = observations(lock_step.manifest, 1)[0]
        answer = lock_step.answer(observation, episode=100 + round_number, step=0)
        assert answer.action == policy.act(observation)
    assert all(0 <= action.action < 5 for action in lock_step.actions)
