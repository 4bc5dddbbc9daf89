"""Students on standard topics: odometry in, velocities out, real processes and real DDS."""

import functools
import itertools
import math
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import ANY, MagicMock, call

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import Twist
from helpers import changed, make_manifest, write_yaml
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from nav_msgs.msg import Odometry
from rcl_interfaces.srv import GetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import parameter_value_to_python
from rclpy.qos import QoSProfile
from std_msgs.msg import Bool, Int32, String
from std_srvs.srv import Trigger

from kdmarl_core.bundle import write_bundle
from kdmarl_core.export import Layer, student_model
from kdmarl_core.files import share_folder
from kdmarl_core.tasks import select_columns
from kdmarl_core.teacher.teacher import load_teacher
from kdmarl_core.team import load_team
from kdmarl_ros.body import Body
from kdmarl_ros.deployment import Process
from kdmarl_ros.parameter_files import robot_parameters
from kdmarl_ros.sensor_map import load_map

pytestmark = pytest.mark.ros

EXAMPLE = Path(__file__).parents[2] / "examples" / "three_robots"
ROBOTS = ["robot_0", "robot_1", "robot_2"]
NEAR_M = 0.3
ACCELERATION = 2.0  # m/s^2
PERIOD_S = 0.05
MAP = {
    "blocks": {
        "velocity": {
            "topic": "odom",
            "type": "nav_msgs/msg/Odometry",
            "fields": ["twist.twist.linear.x", "twist.twist.linear.y"],
        }
    },
    "command": {
        "topic": "cmd_vel",
        "type": "geometry_msgs/msg/Twist",
        "fields": ["linear.x", "linear.y"],
        # Whatever the student chooses, the robot is to move.
        "actions": {name: [1.0, 0.0] for name in ("stay", "left", "right", "down", "up")},
        "velocity": 1.0,
        "acceleration": ACCELERATION,
        "rate_hz": 1 / PERIOD_S,
    },
}


class World:
    """Hears and sends what is outside of the robots."""

    def __init__(self, domain):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node("world", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)

    def close(self):
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def hear(self, kind, topic, callback):
        self.node.create_subscription(kind, topic, callback, QoSProfile(depth=1000))

    def until(self, condition, timeout_s=20.0):
        give_up = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < give_up, "timed out"
            self.executor.spin_once(timeout_sec=0.02)

    def call(self, kind, name, request, again_after_s=20.0):
        """Asked again, as by `ros_driver`, if no answer has come: for what changes nothing."""
        client = self.node.create_client(kind, name)
        assert client.wait_for_service(timeout_sec=20)
        begun_s, futures = time.monotonic(), []

        def answered():
            if time.monotonic() >= begun_s + len(futures) * again_after_s:
                futures.append(client.call_async(request))
            return any(future.done() for future in futures)

        self.until(answered)
        return next(future.result() for future in futures if future.done())


@pytest.fixture
def world(domain):
    made = World(domain)
    yield made
    made.close()


@pytest.fixture
def students(tmp_path):
    """The shipped teacher's actor as every robot's student: what it does not see is always 0."""
    team = load_team("simple_spread")
    teacher, _ = load_teacher(share_folder() / "models" / team.teacher, team.task.spec)
    first, *rest = [Layer(*layer) for layer in teacher.actor.dense_layers()]
    for robot in team.robots:
        folder = tmp_path / "students" / robot.name
        folder.mkdir(parents=True)
        columns = select_columns(robot.agent.blocks, robot.sensors)
        manifest = make_manifest(
            [(block.name, block.size) for block in robot.sensors],
            robot=robot.name,
            agent=robot.agent.name,
        )
        layers = [Layer(np.asarray(first.weight)[columns], first.bias), *rest]
        write_bundle(folder, manifest, student_model(layers))
    return tmp_path / "students"


def test_three_bases_reach_the_landmarks(world, students):
    """The example as it ships; where the bases went is seen here, not believed."""
    starts = runpy.run_path(str(EXAMPLE / "bases.py"))["STARTS"]
    places, commands = {}, {robot: [] for robot in ROBOTS}

    def see(robot, message):
        place = message.pose.pose.position
        places[robot] = (place.x, place.y)

    for robot in ROBOTS:
        world.hear(Odometry, f"/{robot}/odom", functools.partial(see, robot))
        world.hear(Twist, f"/{robot}/cmd_vel", commands[robot].append)
    example = subprocess.Popen(
        [sys.executable, str(EXAMPLE / "run.py"), "--bundles", str(students), "--seconds", "60"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        world.until(lambda: example.poll() is not None, timeout_s=90)
    finally:
        example.kill()
    stdout, stderr = example.communicate()
    assert example.returncode == 0, stdout + stderr
    assert "all landmarks covered" in stdout
    landmarks = np.array([[0.4, 0.3], [-0.4, 0.2], [0.0, -0.4]])

    def farthest_m(of_robots):
        at = np.array([of_robots[robot][:2] for robot in ROBOTS])
        return np.linalg.norm(landmarks[:, None] - at[None], axis=-1).min(1).max()

    assert farthest_m(starts) > 2 * NEAR_M  # negative control
    assert farthest_m(places) < NEAR_M
    # Whoever ends leaves the base standing.
    world.until(lambda: all(sent[-1] == Twist() for sent in commands.values()))
    for sent in commands.values():
        assert max(abs(message.linear.x) for message in sent) <= 1.0
        assert max(abs(message.angular.z) for message in sent) <= 4.0


@pytest.fixture
def start(tmp_path):
    """Starts robot_0's policy node with ROS arguments; `log` of what it returns is its output."""
    children = []

    def run(*arguments):
        robot = Process("policy_node", "policy", "robot_0", {})
        log = tmp_path / f"{len(children)}.log"
        with log.open("w") as output:
            child = subprocess.Popen(
                [*robot.command(), *arguments], stdout=output, stderr=subprocess.STDOUT
            )
        children.append(child)
        child.log = log
        return child

    yield run
    for child in children:
        child.kill()
        child.wait()


@pytest.fixture
def robot(start, tmp_path):
    """Starts a policy node that senses its velocity; returns the process."""

    def run(document=MAP, *more):
        manifest = make_manifest([("velocity", 2)])
        layer = Layer(np.zeros((2, 5), np.float32), np.zeros(5, np.float32))
        (tmp_path / "bundle").mkdir()
        write_bundle(tmp_path / "bundle", manifest, student_model([layer]))
        path = write_yaml(tmp_path / "map.yaml", document)
        return start(
            "-p", f"bundle:={tmp_path / 'bundle'}", "-p", f"sensor_map:={path}",
            "-p", "mode:=real_time", "-p", "rate_hz:=20.0", "-p", "timeout_s:=0.3", *more,
        )  # fmt: skip

    return run


@pytest.fixture
def base(world):
    """A base's odometry, while it is published, and the speeds that it is sent."""

    class Base:
        def __init__(self):
            self.speeds = []
            self.alive = True
            self.age_s = None  # of what is measured, by its own stamp; None: without one
            self._odometry = world.node.create_publisher(
                Odometry, "/robot_0/odom", QoSProfile(depth=1)
            )
            world.hear(Twist, "/robot_0/cmd_vel", lambda m: self.speeds.append(m.linear.x))
            world.node.create_timer(0.02, self._publish)

        def _publish(self):
            if self.alive:
                message = Odometry()
                if self.age_s is not None:
                    measured_s = time.time() - self.age_s
                    message.header.stamp.sec = int(measured_s)
                    message.header.stamp.nanosec = int(measured_s % 1 * 1e9)
                self._odometry.publish(message)

        def until_at_full_speed(self):
            world.until(lambda: self.speeds and self.speeds[-1] == 1.0)

    return Base()


def test_a_stop_brakes_the_base_and_holds_it_until_released(world, robot, base):
    robot()
    base.until_at_full_speed()
    stop = world.node.create_publisher(Bool, "/robot_0/emergency_stop", QoSProfile(depth=1))
    pressing = world.node.create_timer(0.05, lambda: stop.publish(Bool(data=True)))
    world.until(lambda: base.speeds[-1] == 0.0)
    pressing.cancel()
    count = len(base.speeds)
    world.until(lambda: len(base.speeds) > count + 10)  # its odometry goes on, and it stands
    assert set(base.speeds[count:]) == {0.0}
    stop.publish(Bool(data=False))
    base.until_at_full_speed()
    assert_smooth(base.speeds)


def test_a_person_drives_the_base_as_long_as_it_is_told_to(world, robot, base):
    actions = MAP["command"]["actions"] | {"up": [-0.5, 0.0]}
    robot(changed(MAP, "command.actions", actions))
    base.until_at_full_speed()
    override = world.node.create_publisher(Int32, "/robot_0/override", QoSProfile(depth=1))
    sending = world.node.create_timer(0.05, lambda: override.publish(Int32(data=4)))
    world.until(lambda: base.speeds[-1] == -0.5)
    sending.cancel()
    base.until_at_full_speed()
    assert_smooth(base.speeds)


def assert_smooth(speeds):
    """No change above what two periods allow: a delayed command may make up for one."""
    most = max(abs(b - a) for a, b in itertools.pairwise(speeds))
    assert most <= 2 * PERIOD_S * ACCELERATION + 1e-9


def test_a_robot_whose_odometry_ends_brakes_and_goes_on_when_it_is_back(world, robot, base):
    robot()
    base.until_at_full_speed()
    base.alive = False
    world.until(lambda: base.speeds[-1] == 0.0)
    count = len(base.speeds)
    world.until(lambda: len(base.speeds) > count + 3)  # it keeps commanding zero
    assert base.speeds[count:] == [0.0] * (len(base.speeds) - count)
    base.alive = True
    base.until_at_full_speed()
    assert_smooth(base.speeds)


def test_a_base_that_drives_does_not_wait_for_another_model(world, robot, base):
    """It stands first: reading and checking a bundle takes longer than its period."""
    robot()
    base.until_at_full_speed()

    def reload():
        return world.call(Trigger, "/robot_0/policy/reload", Trigger.Request())

    refused = reload()
    assert not refused.success
    assert "deactivate first" in refused.message
    base.until_at_full_speed()
    change = ChangeState.Request()
    change.transition.id = Transition.TRANSITION_DEACTIVATE
    assert world.call(ChangeState, "/robot_0/policy/change_state", change).success
    world.until(lambda: base.speeds[-1] == 0.0)
    assert reload().success
    change.transition.id = Transition.TRANSITION_ACTIVATE
    assert world.call(ChangeState, "/robot_0/policy/change_state", change).success
    base.until_at_full_speed()


def test_a_robot_without_odometry_stands(world, robot, base):
    base.alive = False
    robot()
    world.until(lambda: len(base.speeds) > 10)
    assert set(base.speeds) == {0.0}


@pytest.mark.parametrize("age_s", [10.0, -10.0, None])
def test_odometry_of_the_wrong_time_is_silence_where_stamps_count(world, robot, base, age_s):
    base.age_s = 0.0
    robot(MAP, "-p", "stamps:=header")
    base.until_at_full_speed()
    base.age_s = age_s
    world.until(lambda: base.speeds[-1] == 0.0)
    base.age_s = 0.05
    base.until_at_full_speed()


def test_odometry_that_is_not_newer_is_dropped_unless_the_clock_was_set_back(world, robot, base):
    counts = []

    def see(message):
        for status in message.status:
            counts.extend(v.value for v in status.values if v.key == "dropped/robot_0/odom/old")

    world.hear(DiagnosticArray, "/diagnostics", see)
    base.age_s = -0.9
    robot(MAP, "-p", "stamps:=header")
    base.until_at_full_speed()
    base.age_s = 0.05  # as if the clock had been set back by a second, almost
    base.speeds.clear()
    world.until(lambda: len(base.speeds) > 30)
    assert 0.0 not in base.speeds
    base.age_s = 0.2  # what was measured before the newest
    world.until(lambda: counts)
    base.until_at_full_speed()


def test_a_topic_of_two_names_loses_neither_of_its_readers(world, robot, base):
    """The base's own and, as another name of the same topic, what its heading is read from."""
    heading = {
        "topic": "/robot_0/odom", "type": "nav_msgs/msg/Odometry",
        "heading": "pose.pose.orientation", "ahead_m": 0.5,
    }  # fmt: skip
    document = changed(MAP, "command.differential", heading)
    base.age_s = 0.0
    robot(changed(document, "command.fields", ["linear.x", "angular.z"]), "-p", "stamps:=header")
    base.until_at_full_speed()


def test_what_is_wrong_around_a_base_is_said(world, robot, base, domain):
    said = []
    world.hear(DiagnosticArray, "/diagnostics", lambda m: said.extend(m.status))
    robot()
    base.until_at_full_speed()

    def until_said(*words):
        said.clear()
        world.until(lambda: any(all(word in s.message for word in words) for s in said))
        return [s for s in said if all(word in s.message for word in words)][-1]

    stranger = world.node.create_publisher(Twist, "/robot_0/cmd_vel", QoSProfile(depth=1))
    assert until_said("/robot_0/cmd_vel: /world publishes there, too").level == b"\x02"
    world.node.destroy_publisher(stranger)
    stranger = World(domain)
    stranger.node.create_publisher(String, "/robot_0/odom", QoSProfile(depth=1))
    words = "/robot_0/odom: /world uses std_msgs/msg/String, not nav_msgs/msg/Odometry"
    assert until_said(words).level == b"\x02"
    stranger.close()
    second = world.node.create_publisher(Odometry, "/robot_0/odom", QoSProfile(depth=1))
    assert until_said("/robot_0/odom: 2 publishers").level == b"\x02"
    # A flood of the same topic rests, and is counted.
    ended = threading.Event()

    def flood():
        while not ended.wait(1e-4):
            second.publish(Odometry())

    flooder = threading.Thread(target=flood)
    flooder.start()

    def flooded():
        return any(
            v.key == "flooded//robot_0/odom" and int(v.value) for s in said for v in s.values
        )

    try:
        world.until(flooded)
    finally:
        ended.set()
        flooder.join()


def test_deactivation_brakes_then_falls_silent(world, robot, base):
    robot()
    base.until_at_full_speed()
    request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_DEACTIVATE))
    assert world.call(ChangeState, "/robot_0/policy/change_state", request).success
    world.until(lambda: base.speeds[-1] == 0.0)
    assert_smooth(base.speeds)
    count = len(base.speeds)
    give_up = time.monotonic() + 0.5
    while time.monotonic() < give_up:
        world.executor.spin_once(timeout_sec=0.02)
    assert len(base.speeds) <= count + 1  # the last zero may have been on its way


def test_a_base_has_got_its_last_command_before_its_node_goes_on(tmp_path):
    sensor_map = load_map(
        write_yaml(tmp_path / "map.yaml", MAP), make_manifest([("velocity", 2)]), "/robot_0", 1.0
    )
    node = MagicMock()
    body = Body(node, sensor_map, QoSProfile(depth=1), lambda reading: None, lambda *_: 0.0)
    body.act(None)
    body.stop()
    *_, last, waited = node.create_publisher.return_value.method_calls
    assert last == call.publish(Twist())
    assert waited == call.wait_for_all_acked(ANY)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_with_the_base_at_rest(world, robot, base, number):
    child = robot()
    base.until_at_full_speed()
    child.send_signal(number)
    world.until(lambda: child.poll() is not None and base.speeds[-1] == 0.0)
    assert child.returncode == 0
    assert_smooth(base.speeds)


def test_hostile_odometry_never_moves_or_ends_the_robot(world, robot, base):
    child = robot()
    base.alive = False
    hostile = Odometry()
    hostile.twist.twist.linear.x = math.nan
    publisher = world.node.create_publisher(Odometry, "/robot_0/odom", QoSProfile(depth=1))
    world.node.create_timer(0.01, lambda: publisher.publish(hostile))
    world.until(lambda: publisher.get_subscription_count() and len(base.speeds) > 20)
    hostile.twist.twist.linear.x = 1e300
    count = len(base.speeds)
    world.until(lambda: len(base.speeds) > count + 10)
    assert set(base.speeds) == {0.0}
    assert child.poll() is None
    hostile.twist.twist.linear.x = 0.0
    base.until_at_full_speed()


@pytest.mark.parametrize(
    ("document", "arguments", "words"),
    [
        (MAP | {"command": None}, [], ["map.yaml: command", "a mapping"]),
        (MAP | {"blocks": {}}, [], ["map.yaml: blocks: no 'velocity'"]),
        (MAP, ["-p", "mode:=lock_step"], ["sensor_map", "real_time"]),
        (MAP, ["-p", "sensor_map:=none.yaml"], ["none.yaml: no such file"]),
        (
            changed(
                MAP,
                "blocks.velocity",
                {
                    "topic": "speed",
                    "type": "geometry_msgs/msg/Twist",
                    "fields": ["linear.x", "linear.y"],
                },
            ),
            ["-p", "stamps:=header"],
            ["map.yaml: /robot_0/speed: Twist has no header", "stamps:=receive"],
        ),
    ],
)
def test_bad_maps_give_one_line_and_code_2(domain, robot, document, arguments, words):
    child = robot(document, *arguments)
    assert child.wait(timeout=60) == 2
    lines = child.log.read_text().splitlines()
    [line] = [line for line in lines if line.startswith("kdmarl: ")]
    for word in words:
        assert word in line


def test_ros_itself_lays_the_files_over_one_another_in_the_same_order(world, start, tmp_path):
    """`--params-file` by hand gives a node what the launch files give it."""
    files = {
        "all.yaml": ("/**/policy", {"robot_type": "base", "timeout_s": 1.0, "rate_hz": 1.0}),
        "types/base.yaml": ("/**/policy", {"timeout_s": 2.0, "mode": "real_time"}),
        "robot_0.yaml": ("/robot_0/policy", {"timeout_s": 3.0}),
    }
    (tmp_path / "types").mkdir()
    arguments = ["-p", "autostart:=false", "-p", "bundle:=b"]
    for name, (node, values) in files.items():
        path = write_yaml(tmp_path / name, {node: {"ros__parameters": values}})
        arguments += ["--params-file", str(path)]
    start(*arguments)
    names = ["robot_type", "timeout_s", "rate_hz", "mode"]
    request = GetParameters.Request(names=names)
    # A node that has just come may hear a request before its answer finds the way back.
    service = "/robot_0/policy/get_parameters"
    answer = world.call(GetParameters, service, request, again_after_s=1.0)
    found = dict(zip(names, map(parameter_value_to_python, answer.values), strict=True))
    assert found == robot_parameters("robot_0", tmp_path)
    assert found["timeout_s"] == 3.0
