"""People above the policy: emergency stops, a manual override, and the lifecycle under abuse."""

import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from ros_driver import ROBOT, TRIES, driving, observations
from std_msgs.msg import Bool, Int32
from std_srvs.srv import SetBool

from kdmarl_ros import qos, topics
from kdmarl_ros.console import Console
from kdmarl_ros.msg import AgentAction
from kdmarl_ros.oversight import ROBOT as BY_ROBOT
from kdmarl_ros.oversight import SWARM, Override, StopLatch, latch

SAFE, POLICY = AgentAction.STATUS_SAFE, AgentAction.STATUS_POLICY
OVERRIDE = AgentAction.STATUS_OVERRIDE
PHASES = 8  # of a step in which a signal comes; benchmarks/faults.py tries 100


@pytest.fixture
def sensors(domain, policies):
    with driving(domain, policies[0].manifest) as driver:
        yield driver


@pytest.fixture
def node(start_node, bundles):
    def start(*more):
        return start_node(
            "policy_node", "-r", f"__ns:=/{ROBOT}", "-p", f"bundle:={bundles / ROBOT}",
            "-p", "timeout_s:=0.5", "-p", "sensor_reliability:=reliable", *more,
        )  # fmt: skip

    return start


def until_only(sensors, status):
    """Stream until what is heard has this status, and that it stays so for a while."""
    for _ in range(TRIES if status == POLICY else 1):
        first = sensors.step + 1
        sensors.stream_until(
            lambda n=first: any(a.step >= n and a.status == status for a in sensors.actions)
        )
        sensors.actions.clear()
        last = sensors.step + 20
        sensors.stream_until(lambda n=last: sensors.step > n and sensors.actions)
        heard = {action.status for action in sensors.actions}
        if heard == {status} or OVERRIDE in heard:
            break
    assert heard == {status}


@pytest.mark.ros
@pytest.mark.parametrize("name", [topics.EMERGENCY_STOP, topics.SWARM_STOP])
def test_a_stop_wins_outlives_the_node_and_is_released_on_purpose(sensors, node, name):
    child = node("-p", "mode:=real_time", "-p", "rate_hz:=50.0")
    sensors.until_listened_to()
    until_only(sensors, POLICY)
    override = sensors.publisher(Int32, topics.OVERRIDE, qos.COMMAND)
    sensors.stop(True, name)
    until_only(sensors, SAFE)
    assert {a.action for a in sensors.actions} == {sensors.manifest.safe_index}
    assert sensors.stopped[-1] is True
    # A person's override does not move a stopped robot.
    override.publish(Int32(data=2))
    until_only(sensors, SAFE)
    sensors.until_reported("stopped by", level=DiagnosticStatus.ERROR, meanwhile=sensors.send_new)
    # Neither does another life of its node, even of one that was killed.
    child.kill()
    child.wait()
    node("-p", "mode:=real_time", "-p", "rate_hz:=50.0")
    sensors.until_listened_to()
    until_only(sensors, SAFE)
    # Who did not stop it cannot release it.
    other = {topics.EMERGENCY_STOP, topics.SWARM_STOP} - {name}
    sensors.stop(False, other.pop())
    until_only(sensors, SAFE)
    sensors.stop(False, name)
    until_only(sensors, POLICY)
    assert sensors.stopped[-1] is False


@pytest.mark.ros
def test_a_stop_by_service_in_lock_step(sensors, node):
    node()
    sensors.until_listened_to()
    observation = observations(sensors.manifest, 1)[0]
    before = sensors.answer(observation, 1, 0)
    sensors.actions.clear()
    name = f"/{ROBOT}/{topics.EMERGENCY_STOP}"
    answer = sensors.call_at(SetBool, name, SetBool.Request(data=True))
    assert answer.success
    assert "stopped by service" in answer.message
    sensors.until(lambda: sensors.actions)  # at once, not with the next step
    sensors.send(observation, 1, 1)
    sensors.until(lambda: sensors.actions[-1].step == 1)
    assert {a.status for a in sensors.actions} == {SAFE}
    # A button that says again and again that it is not pressed releases nothing.
    for _ in range(3):
        sensors.stop(False, topics.EMERGENCY_STOP)
        sensors.spin(0.2)
    assert sensors.stopped[-1] is True
    assert sensors.call_at(SetBool, name, SetBool.Request(data=False)).message == "not stopped"
    assert sensors.answer(observation, 1, 2).action == before.action


@pytest.mark.ros
def test_a_stop_that_was_asked_for_before_the_node_was_there(sensors, node):
    """Latched by whoever asked, heard by the node that comes later."""
    publisher = sensors.node.create_publisher(Bool, topics.SWARM_STOP, qos.LATCHED)
    publisher.publish(Bool(data=True))
    node()
    sensors.until_listened_to()
    sensors.until_reported("stopped by swarm")
    sensors.send_new()
    sensors.until(lambda: sensors.actions)
    assert sensors.actions[-1].status == SAFE


@pytest.mark.ros
def test_a_release_of_long_ago_releases_nothing(sensors, node):
    """Latched by whoever released a robot once, heard by the node that comes back stopped."""
    for name, who in ((topics.EMERGENCY_STOP, BY_ROBOT), (topics.SWARM_STOP, SWARM)):
        publisher = sensors.node.create_publisher(Bool, sensors.topic(name), qos.LATCHED)
        publisher.publish(Bool(data=False))
        assert latch("", ROBOT).set(who, True) == ""
    node("-p", "mode:=real_time", "-p", "rate_hz:=50.0")
    sensors.until_listened_to()
    until_only(sensors, SAFE)
    sensors.until_reported("stopped by robot since", meanwhile=sensors.send_new)
    assert StopLatch(latch("", ROBOT).path).stopped
    assert sensors.stopped == [True]


SLOW_DISK = """
import sys, time
from kdmarl_ros import oversight, {module}
keep = oversight.StopLatch.set
def slowly(*arguments):
    time.sleep(1.0)
    return keep(*arguments)
oversight.StopLatch.set = slowly
sys.exit({module}.main())
"""


@pytest.mark.ros
@pytest.mark.parametrize(("module", "own"), [("policy_node", []), ("policy_host", ["--"])])
def test_a_node_that_ends_waits_until_a_slow_disk_has_recorded_its_stop(
    sensors, bundles, tmp_path, module, own
):
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW_DISK.format(module=module), *own, "--ros-args",
         "-r", f"__ns:=/{ROBOT}", "-p", f"bundle:={bundles / ROBOT}"],
        cwd=tmp_path,
    )  # fmt: skip
    try:
        sensors.until_listened_to()
        stop = sensors.publisher(Bool, topics.EMERGENCY_STOP, qos.LATCHED)
        stop.publish(Bool(data=True))
        sensors.until(lambda: sensors.stopped[-1])
        assert not latch("", ROBOT).stopped
        child.terminate()
        assert child.wait(timeout=30) == 0
    finally:
        child.kill()
        child.wait()
    assert latch("", ROBOT).stopped


@pytest.mark.ros
def test_a_person_flies_as_long_as_commands_come(sensors, node):
    node("-p", "override_timeout_s:=0.3")
    sensors.until_listened_to()
    publisher = sensors.publisher(Int32, topics.OVERRIDE, qos.COMMAND)

    def fly(action):
        publisher.publish(Int32(data=action))
        sensors.send_new()

    for action in (1, 4):
        sensors.actions.clear()
        sensors.until(
            lambda n=action: any((a.status, a.action) == (OVERRIDE, n) for a in sensors.actions),
            meanwhile=lambda n=action: fly(n),
        )
    sensors.until_reported("a person chooses", meanwhile=lambda: fly(4))
    until_only(sensors, POLICY)
    sensors.until_reported("dropping override", meanwhile=lambda: fly(99))
    until_only(sensors, POLICY)
    # -1 gives the robot back at once.
    sensors.until(lambda: sensors.actions[-1].status == OVERRIDE, meanwhile=lambda: fly(2))
    sensors.until(lambda: sensors.actions[-1].status == POLICY, meanwhile=lambda: fly(-1))


@pytest.mark.ros
def test_a_person_who_flies_a_robot_that_senses_nothing_flies_it_at_its_rate(sensors, node):
    rate_hz = 2.0
    node("-p", "mode:=real_time", "-p", f"rate_hz:={rate_hz}", "-p", "timeout_s:=0.1")
    sensors.until_listened_to()
    publisher = sensors.publisher(Int32, topics.OVERRIDE, qos.COMMAND)

    def flown():
        return [a.header.stamp for a in sensors.actions if a.status == OVERRIDE]

    sensors.until(lambda: len(flown()) >= 6, meanwhile=lambda: publisher.publish(Int32(data=4)))
    first, *_, last = (stamp.sec + stamp.nanosec / 1e9 for stamp in flown())
    assert len(flown()) <= (last - first) * rate_hz + 2
    # Nor is what a person or nobody chose among the policy's figures.
    publisher.publish(Int32(data=-1))
    sensors.until_reported("waiting for")
    assert sensors.values()["latency_p99_ms"] == "0.000"
    sensors.until_acting()
    sensors.actions.clear()
    sensors.until(lambda: len([a for a in sensors.actions if a.status == SAFE]) > 8)
    sensors.until_reported("stale")
    assert float(sensors.values()["compute_p50_ms"]) > 0


# Row 30


@pytest.mark.ros
def test_no_action_follows_the_safe_one_of_a_deactivation(sensors, node):
    node("-p", "timeout_s:=5.0")
    sensors.until_listened_to()
    rng = random.Random(0)
    transitions = [
        Transition.TRANSITION_ACTIVATE,
        Transition.TRANSITION_DEACTIVATE,
        Transition.TRANSITION_CLEANUP,
        Transition.TRANSITION_CONFIGURE,
    ]
    # What leads from state to state; all else must be refused and change nothing.
    allowed = {
        "active": {Transition.TRANSITION_DEACTIVATE: "inactive"},
        "inactive": {
            Transition.TRANSITION_ACTIVATE: "active",
            Transition.TRANSITION_CLEANUP: "unconfigured",
        },
        "unconfigured": {Transition.TRANSITION_CONFIGURE: "inactive"},
    }
    state = "active"
    for _ in range(40):
        transition = rng.choice(transitions)
        was = state
        for _ in range(3):
            sensors.send_new()
        assert sensors.change(transition) == (transition in allowed[state])
        state = allowed[state].get(transition, state)
        if was == "active" and state == "inactive":
            sensors.until(lambda: sensors.actions and sensors.actions[-1].status == SAFE)
        if state != "active":
            heard = len(sensors.actions)
            sensors.send_new()
            sensors.spin(0.05)
            assert all(a.status == SAFE for a in sensors.actions[heard:])


# Row 22


@pytest.mark.ros
@pytest.mark.slow
def test_a_signal_in_any_phase_ends_in_the_safe_action(domain, start_node, bundles, policies):
    phases = {f"phase_{i}": phase for i, phase in enumerate(np.linspace(0.0, 0.02, PHASES))}
    children = {
        name: start_node(
            "policy_node", "-r", f"__ns:=/{name}", "-p", f"robot:={ROBOT}",
            "-p", f"bundle:={bundles / ROBOT}", "-p", "mode:=real_time", "-p", "rate_hz:=50.0",
            "-p", "timeout_s:=0.5",
        )
        for name in phases
    }  # fmt: skip
    for name, phase in phases.items():
        with driving(domain, policies[0].manifest, name) as sensors:
            sensors.until_listened_to()
            sensors.until_acting()
            sensors.spin(float(phase))
            children[name].send_signal(signal.SIGTERM)
            assert children[name].wait(timeout=10) == 0
            sensors.until(lambda heard=sensors: heard.actions[-1].status == SAFE)
            sensors.spin(0.1)  # nothing follows
            assert sensors.actions[-1].status == SAFE


# Without nodes


def test_stops_are_kept_by_who_asked(tmp_path):
    path = tmp_path / "deep" / "robot.json"
    kept = StopLatch(path)
    assert not kept.stopped
    assert kept.set(BY_ROBOT, True) == ""
    assert kept.set(SWARM, True) == ""
    again = StopLatch(path)
    assert again.stopped
    assert "by robot since" in again.reason
    again.set(BY_ROBOT, False)
    assert StopLatch(path).stopped
    again.set(SWARM, False)
    assert not StopLatch(path).stopped
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("owner", [BY_ROBOT, SWARM])
@pytest.mark.parametrize("content", ["", "{", "[]", "\x00\x00", '"x"'])
def test_a_damaged_record_stops_until_its_owner_releases_it(tmp_path, content, owner):
    path = tmp_path / "robot.json"
    path.write_text(content)
    kept = StopLatch(path, owner)
    assert kept.stopped
    assert kept.set(owner, False) == ""
    assert not kept.stopped
    assert not StopLatch(path, owner).stopped


def test_a_stop_that_cannot_be_kept_holds_and_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    kept = StopLatch(tmp_path / "file" / "robot.json")
    assert "cannot be written" in kept.set(BY_ROBOT, True)
    assert kept.stopped


def test_a_stop_that_could_not_be_kept_is_kept_as_soon_as_it_can_be(tmp_path):
    place = tmp_path / "file"
    place.write_text("")
    kept = StopLatch(place / "robot.json")
    for _ in range(3):
        assert "cannot be written" in kept.set(BY_ROBOT, True)
    place.unlink()
    assert kept.set(SWARM, False) == ""  # whoever asks for whatever
    assert StopLatch(place / "robot.json").reason == kept.reason


class Robot:
    """A console without its node: what is asked of it, and the times at which it braked."""

    def __init__(self, folder, name=ROBOT, brake=lambda: None):
        self.node = MagicMock()
        self.node.get_namespace.return_value = f"/{name}"
        self.braked = []

        def record_and_brake():
            self.braked.append(name)
            brake()

        self.console = Console(self.node, MagicMock(), str(folder), record_and_brake)
        self.path = latch(str(folder), name).path

    def hear(self, topic, stopped):
        """A message on a topic, as the node takes it."""
        for call in self.node.create_subscription.call_args_list:
            if call.args[1] == topic:
                return call.args[2](Bool(data=stopped))
        raise KeyError(topic)

    def serve(self, stopped):
        answer = self.node.create_service.call_args.args[2]
        return answer(SetBool.Request(data=stopped), SetBool.Response())

    def told(self):
        """What was published of whether it is stopped."""
        publish = self.node.create_publisher.return_value.publish
        return [call.args[0].data for call in publish.call_args_list]


@pytest.fixture
def disk(monkeypatch):
    """Nothing is recorded before it is set, but for how long nobody waits."""
    free = threading.Event()
    keep = StopLatch.set

    def slowly(*arguments):
        free.wait(2.0)
        return keep(*arguments)

    monkeypatch.setattr(StopLatch, "set", slowly)
    return free


def test_a_robot_goes_on_braking_while_a_slow_disk_records_its_stop(tmp_path, disk):
    def brake():
        if len(robot.braked) > 3:
            disk.set()

    robot = Robot(tmp_path, brake=brake)
    assert robot.serve(True).success
    assert robot.console.stopped
    assert len(robot.braked) > 3


def test_no_robot_of_a_process_waits_for_the_record_of_another_ones_stop(tmp_path, disk):
    robots = [Robot(tmp_path, f"robot_{i}") for i in range(3)]
    for robot in robots:
        robot.hear(topics.SWARM_STOP, True)
        assert robot.console.stopped
        assert robot.told() == [False, True]
    assert [robot.braked for robot in robots] == [["robot_0"], ["robot_1"], ["robot_2"]]
    assert not any(robot.path.exists() for robot in robots)
    disk.set()
    for robot in robots:
        assert robot.console.recorded(10.0)
        assert "by swarm since" in StopLatch(robot.path).reason
        assert "by swarm since" in robot.console.reason


@pytest.mark.parametrize("last", [True, False])
def test_stops_and_releases_in_a_row_end_as_the_last_one_says(tmp_path, disk, last):
    robot = Robot(tmp_path)
    for stopped in (True, False, True, False, True, last):
        robot.hear(topics.EMERGENCY_STOP, stopped)
        if stopped:
            assert robot.console.stopped
    disk.set()
    assert robot.console.recorded(10.0)
    assert robot.console.stopped == StopLatch(robot.path).stopped == last
    assert robot.told()[-1] is last


def test_a_release_waits_for_its_record_and_gives_way_to_a_stop(tmp_path, disk):
    robot = Robot(tmp_path)
    disk.set()
    robot.hear(topics.EMERGENCY_STOP, True)
    assert robot.console.recorded(10.0)
    disk.clear()
    robot.hear(topics.EMERGENCY_STOP, False)
    assert robot.console.stopped
    assert not robot.console.recorded(0.0)
    robot.hear(topics.SWARM_STOP, True)
    disk.set()
    assert robot.console.recorded(10.0)
    assert StopLatch(robot.path).reason == robot.console.reason
    assert robot.console.reason.startswith("by swarm")
    assert robot.told() == [False, True]
    assert robot.braked == [ROBOT]  # it stood already


def test_a_stop_that_cannot_be_recorded_is_reported_later(tmp_path):
    (tmp_path / "file").write_text("")
    robot = Robot(tmp_path / "file")
    robot.hear(topics.EMERGENCY_STOP, True)
    assert robot.console.recorded(10.0)
    assert robot.console.stopped
    assert robot.console.trouble.startswith("the stop will not outlive this process: ")
    assert "cannot be written" in robot.console.trouble


def test_a_release_that_cannot_be_recorded_is_none_and_said_so(tmp_path, monkeypatch):
    robot = Robot(tmp_path)
    assert robot.serve(True).success

    def fail(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", fail)
    answer = robot.serve(False)
    assert not answer.success
    assert answer.message.startswith("stopped by service since")
    assert robot.console.stopped
    said = f"it stays stopped, since its release cannot be kept: {robot.path}: cannot be written"
    assert said in answer.message
    assert robot.console.trouble.startswith(said)


def test_an_override_ends_by_itself():
    override = Override(5, timeout_s=0.5)
    assert override.action(0.0) is None
    assert not override.set(5, 0.0)
    assert not override.set(-2, 0.0)
    assert override.set(3, 1.0)
    assert [override.action(t) for t in (1.0, 1.5, 1.51)] == [3, 3, None]
    override.set(3, 2.0)
    override.set(-1, 2.1)
    assert override.action(2.1) is None
