"""What a robot's runtime does with the messages of its peers, without ROS."""

import numpy as np
import pytest
from helpers import make_manifest, make_model

from kdmarl_core.bundle import BundlePolicy, Disturbance, Inbox, PeerEntry, encode, message_entry
from kdmarl_core.bundle.messages import is_lost
from kdmarl_ros.health import WARN, Health, Snapshot
from kdmarl_ros.policy_runtime import Heard, PolicyRuntime, RuntimeSettings

PEERS = (PeerEntry("robot_1", 2, "int8", 1, 4), PeerEntry("robot_2", 1, "int4", 2, 4))
BLOCKS = (("position", 2),)


def make_policy(seed=0):
    """A robot that tells three values and listens to two peers."""
    manifest = make_manifest(
        BLOCKS, peers=PEERS, message=message_entry(3, "int4", ("robot_1", "robot_2"), 10.0)
    )
    return BundlePolicy(manifest, make_model(manifest, seed))


class Robot:
    """A runtime, what waits to be heard, and the same robot worked out plainly."""

    def __init__(self, **settings):
        self.waiting = []
        self.runtime = PolicyRuntime(make_policy(), RuntimeSettings(**settings), self._hear)

    def _hear(self):
        heard, self.waiting = self.waiting, []
        return heard

    def say(self, peer, episode, step, values, bits=None, data=None, taken_s=None):
        entry = PEERS[peer]
        data = encode(np.array(values, np.float32), entry.format) if data is None else data
        bits = bits or {0: 8, 1: 4}[peer]
        self.waiting.append(Heard(peer, episode, step, bits, data, taken_s))

    def decide(self, episode, step, values=(0.5, -0.5), now_s=0.0):
        self.runtime.receive(0, episode, step, values, now_s)
        return self.runtime.decide(self.runtime.complete(), now_s)


def expected(observation, read):
    policy = make_policy()
    action = policy.act(np.array(observation, np.float32), None, np.array(read, np.float32))
    return action, encode(policy.message, "int4")


def answer(robot, episode, step, observation=(0.5, -0.5), now_s=0.0):
    decision = robot.decide(episode, step, observation, now_s)
    return decision.action, robot.runtime.take_told().data


def test_nobody_is_waited_for():
    robot = Robot()
    assert answer(robot, 0, 0) == expected((0.5, -0.5), [0, 0, 1, 0, 1])
    told = robot.runtime.take_told()
    assert told is None  # it was taken
    assert robot.runtime.message_ages() == {"from_robot_1": 5, "from_robot_2": 5}


def test_messages_are_read_late_held_and_forgotten():
    robot = Robot()
    for step in range(7):
        if step == 0:
            robot.say(0, 3, 0, [1.0, -1.0])
            robot.say(1, 3, 0, [1.0])
        ages = (step if 1 <= step <= 4 else 5, step if 2 <= step <= 4 else 5)
        first, second = ages[0] < 5, ages[1] < 5
        read = [1 * first, -1 * first, ages[0] / 5, 1 * second, ages[1] / 5]
        assert answer(robot, 3, step) == expected((0.5, -0.5), read), step
        assert tuple(robot.runtime.message_ages().values()) == ages
    assert not robot.runtime.drops


def test_a_message_of_this_step_waits_for_the_next():
    """A peer that is faster; and one that answers the last step of the episode before."""
    robot = Robot()
    answer(robot, 0, 23)
    robot.say(0, 0, 24, [1.0, 1.0])
    assert answer(robot, 0, 24) == expected((0.5, -0.5), [0, 0, 1, 0, 1])
    robot.say(0, 0, 24, [1.0, 1.0])
    robot.say(0, 1, 0, [0.0, 1.0])
    assert answer(robot, 1, 0) == expected((0.5, -0.5), [0, 0, 1, 0, 1])
    assert answer(robot, 1, 1) == expected((0.5, -0.5), [0, 1, 1 / 5, 0, 1])
    assert not robot.runtime.drops


def test_a_peer_in_the_next_episode_is_heard_once_the_robot_is_there():
    """In real time; its next message is lost."""
    robot = Robot(real_time=True)

    def decide(episode, step, read):
        robot.runtime.receive(0, episode, step, (0.5, -0.5), 0.0)
        assert robot.runtime.decide_newest(0.0).action == expected((0.5, -0.5), read)[0]
        assert robot.runtime.take_told().data == expected((0.5, -0.5), read)[1]

    decide(0, 23, [0, 0, 1, 0, 1])
    robot.say(0, 1, 0, [0.0, 1.0])
    decide(0, 24, [0, 0, 1, 0, 1])
    decide(1, 0, [0, 0, 1, 0, 1])
    decide(1, 1, [0, 1, 1 / 5, 0, 1])
    assert not robot.runtime.drops


def test_a_simulation_that_begins_again_begins_with_nothing():
    """The same number of episode from its first step."""
    robot = Robot()
    answer(robot, 0, 5)
    robot.say(0, 0, 5, [1.0, 1.0])
    assert answer(robot, 0, 6) == expected((0.5, -0.5), [1, 1, 1 / 5, 0, 1])
    assert answer(robot, 0, 0, (0.1, 0.2)) == expected((0.1, 0.2), [0, 0, 1, 0, 1])


def test_a_robot_that_joins_late_hears_what_is_said_from_now_on():
    robot = Robot()
    robot.say(0, 7, 49, [1.0, 1.0])
    assert answer(robot, 7, 50) == expected((0.5, -0.5), [1, 1, 1 / 5, 0, 1])


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Heard(0, 8, 3, 8, b"\0\0"), "from_robot_1/other_episode"),
        (Heard(0, 0, 3, 8, b"\0"), "from_robot_1/wrong_size"),
        (Heard(0, 0, 3, 8, b"\0" * 10**6), "from_robot_1/wrong_size"),
        (Heard(0, 0, 3, 4, b"\0\0"), "from_robot_1/wrong_format"),
        (Heard(0, 0, 3, 8, b"\x80\0"), "from_robot_1/out_of_range"),
        (Heard(1, 0, 3, 4, b"\x08"), "from_robot_2/out_of_range"),
        (Heard(0, 0, 2**31, 8, b"\0\0"), "from_robot_1/ahead"),
        (Heard(0, 0, 3, 8, b"\0\0", training=41), "from_robot_1/other_training"),
    ],
)
def test_bad_messages_are_dropped_counted_and_named(message, reason):
    robot = Robot()
    answer(robot, 0, 3)
    robot.waiting = [message]
    assert answer(robot, 0, 4) == expected((0.5, -0.5), [0, 0, 1, 0, 1])
    assert robot.runtime.drops == {reason: 1}


def test_an_episode_that_is_played_once_more_begins_with_nothing():
    """The simulator was killed; what a peer had said last still waited, and the peer is gone."""
    robot = Robot()
    for step in range(3):
        answer(robot, 0, step)
    robot.say(0, 0, 2, [1.0, 1.0])
    silence = expected((0.1, 0.2), [0, 0, 1, 0, 1])
    assert [answer(robot, 0, step, (0.1, 0.2)) for step in range(4)] == [silence] * 4
    assert robot.runtime.drops == {"from_robot_1/old": 1}


def test_what_is_lost_in_rehearsal_was_not_heard():
    robot = Robot(timeout_s=0.5, messages=Disturbance(loss=1.0))
    for step in range(4):
        robot.say(0, 0, step, [0.0, 0.0])
        robot.decide(0, step, now_s=0.2 * step)
    assert robot.runtime.silent_peers() == ["robot_1", "robot_2"]
    assert not robot.runtime.drops


def test_a_repeated_step_is_told_once():
    robot = Robot()
    answer(robot, 0, 0)
    assert robot.decide(0, 0).action is not None
    assert robot.runtime.take_told() is None


def test_silent_peers_are_named():
    robot = Robot(timeout_s=0.5)
    for step in range(4):
        robot.say(0, 0, step, [0.0, 0.0])
        robot.decide(0, step, now_s=0.2 * step)
    assert robot.runtime.silent_peers() == ["robot_2"]
    snapshot = Snapshot(
        "active", True, {}, silent_peers=["robot_2"], message_ages=robot.runtime.message_ages()
    )
    report = Health().report(snapshot, 0.0)
    assert (report.level, report.message) == (WARN, "no messages of robot_2")
    assert report.values["age_steps/from_robot_1"] == "1"
    assert report.values["age_steps/from_robot_2"] == "5"


def test_loss_and_delay_can_be_rehearsed():
    deaf = Robot(messages=Disturbance(loss=1.0))
    slow = Robot(messages=Disturbance(delay_steps=3))
    some = Robot(messages=Disturbance(loss=0.5))
    held = None
    for step in range(12):
        for robot in (deaf, slow, some):
            robot.say(0, 2, step, [1.0, 1.0])
            answer(robot, 2, step)
        if step >= 1 and not is_lost(0.5, 2, step - 1, "robot_1", "robot_0"):
            held = step - 1
        age = 5 if held is None else min(step - held, 5)
        assert some.runtime.message_ages()["from_robot_1"] == age
        assert deaf.runtime.message_ages()["from_robot_1"] == 5
        assert slow.runtime.message_ages()["from_robot_1"] == (3 if step >= 3 else 5)


def test_in_real_time_the_meaning_is_the_same():
    """Steps are the simulation's; what comes late is older."""
    robot = Robot(real_time=True, timeout_s=10.0)
    for step in range(4):
        robot.runtime.receive(0, 0, step, (0.5, -0.5), step / 10)
        if step:
            robot.say(0, 0, 0, [1.0, 0.0])
        robot.runtime.decide_newest(step / 10)
        assert robot.runtime.message_ages()["from_robot_1"] == (step or 5)


def test_real_sensors_share_no_steps():
    """Periods stand for them: what was taken in one period can be read in it, a step late."""
    robot = Robot(real_time=True, timeout_s=10.0, message_rate_hz=10.0)
    ages = []
    for period in range(8):
        now_s = 100.05 + period / 10
        robot.runtime.receive(0, 1, 40 + period, (0.5, -0.5), now_s)
        if period == 1:
            robot.say(0, 9, 12345, [1.0, 0.0])  # whatever the peer counts
        robot.runtime.decide_newest(now_s)
        ages.append(robot.runtime.message_ages()["from_robot_1"])
    assert ages == [5, 1, 2, 3, 4, 5, 5, 5]
    assert not robot.runtime.drops


@pytest.mark.parametrize(("taken_s", "age"), [(99.0, 5), (99.84, 3), (99.95, 2), (100.02, 1)])
def test_what_waited_is_as_old_as_when_it_was_taken(taken_s, age):
    """Robots without shared steps may take messages long before they can act on them."""
    robot = Robot(real_time=True, timeout_s=0.5, message_rate_hz=10.0)
    robot.runtime.receive(0, 1, 0, (0.5, -0.5), 99.0)
    robot.runtime.decide_newest(99.0)
    robot.runtime.receive(0, 1, 1, (0.5, -0.5), 100.15)
    robot.say(0, 0, 0, [1.0, 0.0], taken_s=taken_s)
    robot.runtime.decide_newest(100.15)
    assert robot.runtime.message_ages()["from_robot_1"] == age
    assert robot.runtime.drops == ({"from_robot_1/old": 1} if taken_s == 99.0 else {})
    silent = {"robot_1", "robot_2"} if age == 5 else {"robot_2"}
    assert set(robot.runtime.silent_peers()) == silent


def test_what_was_said_before_an_activation_is_not_heard_without_shared_steps():
    robot = Robot(real_time=True, timeout_s=0.5, message_rate_hz=10.0)
    robot.say(0, 0, 0, [1.0, 0.0])
    robot.runtime.forget()
    robot.runtime.receive(0, 1, 0, (0.5, -0.5), 100.0)
    robot.runtime.decide_newest(100.0)
    assert robot.runtime.message_ages()["from_robot_1"] == 5
    assert robot.runtime.silent_peers() == []  # they had no time to say anything


def test_offline_the_same_is_read():
    """A runtime and an inbox, fed alike."""
    robot, box = Robot(), Inbox("robot_0", PEERS)
    rng = np.random.default_rng(0)
    box.begin(0)
    for step in range(12):
        read = box.read(step).copy()
        observation = tuple(float(value) for value in rng.normal(size=2).astype(np.float32))
        assert answer(robot, 0, step, observation) == expected(observation, read)
        for peer, entry in enumerate(PEERS):
            if rng.random() < 0.6:
                data = encode(rng.uniform(-1, 1, entry.size).astype(np.float32), entry.format)
                box.put(peer, 0, step, data, now=step)
                robot.say(peer, 0, step, None, data=data)
