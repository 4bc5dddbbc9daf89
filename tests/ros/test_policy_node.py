"""One policy node as a robot has it: driven over DDS by a fake set of sensors."""

import dataclasses
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from helpers import write_yaml
from lifecycle_msgs.msg import State, Transition
from rcl_interfaces.srv import DescribeParameters, SetParameters
from rclpy.parameter import Parameter
from ros_driver import ROBOT, Sensors, observations
from std_srvs.srv import Trigger

from kdmarl_ros import topics
from kdmarl_ros.msg import AgentAction
from kdmarl_ros.parameters import PolicyParameters
from kdmarl_ros.spin import PARENT_VARIABLE
from kdmarl_ros.topics import POLICY_NODE

pytestmark = pytest.mark.ros

TIMEOUT_S = 0.4


@pytest.fixture
def sensors(domain, policies):
    fake = Sensors(domain, policies[0].manifest)
    yield fake
    fake.close()


@pytest.fixture
def node(start_node, bundles):
    def start(*more):
        return start_node(
            "policy_node", "-r", f"__ns:=/{ROBOT}", "-p", f"bundle:={bundles / ROBOT}",
            "-p", f"timeout_s:={TIMEOUT_S}", "-p", "sensor_reliability:=reliable", *more,
        )  # fmt: skip

    return start


def test_answers_are_the_bundles(sensors, node, policies):
    node()
    sensors.until_listened_to()
    for step, observation in enumerate(observations(sensors.manifest, 20)):
        answer = sensors.answer(observation, episode=1, step=step)
        assert answer.action == policies[0].act(observation)
        assert answer.compute_time_s > 0


def test_partial_or_bad_input_is_never_acted_on(sensors, node):
    node()
    sensors.until_listened_to()
    good = observations(sensors.manifest, 1)[0]
    sensors.answer(good, episode=1, step=0)
    sensors.actions.clear()
    bad = good.copy()
    bad[0] = np.nan
    name = sensors.manifest.blocks[0].name
    sensors.send(bad, episode=1, step=1)
    sensors.until(lambda: sensors.dropped() == {f"{name}/non_finite": 1})
    sensors.send_block(name, [1.0] * 99, episode=1, step=1)
    sensors.until(lambda: sensors.dropped() == {f"{name}/non_finite": 1, f"{name}/wrong_size": 1})
    # On a busy machine, step 0 may have been asked for and answered twice.
    assert all(
        action.status == AgentAction.STATUS_SAFE for action in sensors.actions if action.step
    )
    assert sensors.answer(good, episode=1, step=2).status == AgentAction.STATUS_POLICY


def test_silence_ends_in_the_safe_action_and_an_error(sensors, node):
    node()
    sensors.until_listened_to()
    sensors.answer(observations(sensors.manifest, 1)[0], episode=3, step=4)
    sensors.actions.clear()
    sensors.until(lambda: sensors.actions, timeout_s=10)
    assert sensors.actions[0].status == AgentAction.STATUS_SAFE
    assert sensors.actions[0].action == sensors.manifest.safe_index
    sensors.until(lambda: sensors.diagnostics[-1:] and "stale" in sensors.diagnostics[-1].message)
    assert sensors.diagnostics[-1].level == DiagnosticStatus.ERROR
    assert sensors.diagnostics[-1].hardware_id == ROBOT


def test_real_time_acts_at_its_rate_on_the_newest_values(sensors, node, policies):
    node("-p", "mode:=real_time", "-p", "rate_hz:=50.0")
    sensors.until_listened_to()
    sensors.until(lambda: sensors.actions)
    assert sensors.actions[0].status == AgentAction.STATUS_SAFE  # nothing seen yet
    observation = observations(sensors.manifest, 1)[0]
    answer = sensors.answer(observation, episode=1, step=0)
    assert answer.action == policies[0].act(observation)
    sensors.actions.clear()
    sensors.until(lambda: any(action.status for action in sensors.actions))  # stale again


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_in_the_safe_action(sensors, node, number):
    child = node()
    sensors.until_listened_to()
    sensors.answer(observations(sensors.manifest, 1)[0], episode=1, step=0)
    sensors.actions.clear()
    child.send_signal(number)
    sensors.until(lambda: sensors.actions)
    assert sensors.actions[0].status == AgentAction.STATUS_SAFE
    assert child.wait(timeout=10) == 0


def test_a_node_that_has_ended_is_gone(sensors, node):
    """Nobody takes it for alive until its lease ends after 20 s, and its shared memory is free."""

    def shared(process):
        maps = Path(f"/proc/{process}/maps").read_text()
        return {Path(path) for path in re.findall(r"/dev/shm/fastdds_[0-9a-f]{16}", maps)}

    of_sensors = shared("self")
    child = node()
    sensors.until_listened_to()
    own = shared(child.pid) - of_sensors
    assert own
    child.terminate()
    assert child.wait(timeout=10) == 0
    assert not any(path.exists() for path in own)
    sensors.until(lambda: POLICY_NODE not in sensors.node.get_node_names(), timeout_s=5)


def test_lifecycle_can_be_driven_from_outside(sensors, node):
    node("-p", "autostart:=false")
    assert sensors.state() == State.PRIMARY_STATE_UNCONFIGURED
    assert sensors.change(Transition.TRANSITION_CONFIGURE)
    sensors.until(lambda: all(p.get_subscription_count() for p in sensors.publishers.values()))
    observation = observations(sensors.manifest, 1)[0]
    sensors.send(observation, episode=1, step=0)
    assert sensors.change(Transition.TRANSITION_ACTIVATE)
    sensors.answer(observation, episode=1, step=1)
    sensors.actions.clear()
    assert sensors.change(Transition.TRANSITION_DEACTIVATE)
    sensors.until(lambda: sensors.actions)
    assert sensors.actions[0].status == AgentAction.STATUS_SAFE
    sensors.actions.clear()
    sensors.send(observation, episode=1, step=2)
    sensors.state()
    assert sensors.actions == []
    assert sensors.change(Transition.TRANSITION_CLEANUP)
    assert sensors.change(Transition.TRANSITION_CONFIGURE)
    assert sensors.change(Transition.TRANSITION_ACTIVATE)
    sensors.answer(observation, episode=1, step=3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "timeot_s:=1.0"], "unknown parameter 'timeot_s'"),
        (["-p", "mode:=real_time", "-p", "sensor_map:=none.yaml"], "none.yaml: no such file"),
    ],
)
def test_nothing_is_left_of_a_configuration_that_fails(sensors, node, arguments, words):
    child = node("-p", "autostart:=false", *arguments)
    assert not sensors.change(Transition.TRANSITION_CONFIGURE)
    for _ in range(2):  # and goes on being said
        sensors.until_reported("failed", words, level=DiagnosticStatus.ERROR)
    names = [sensors.topic(name) for name in (topics.ACTION, topics.MODEL)]
    sensors.until(lambda: not any(sensors.node.count_publishers(name) for name in names))
    assert not sensors.call(Trigger, "reload", Trigger.Request()).success
    assert "Traceback" not in child.log.read_text()
    assert sensors.state() == State.PRIMARY_STATE_UNCONFIGURED


def test_parameters_are_described_and_read_only(sensors, node):
    node()
    sensors.until_listened_to()
    names = [field.name for field in dataclasses.fields(PolicyParameters)]
    names += ["limits.velocity", "max_identical.velocity"]
    request = DescribeParameters.Request(names=names)
    described = sensors.call(DescribeParameters, "describe_parameters", request).descriptors
    assert all(item.description and item.read_only for item in described)
    change = Parameter("timeout_s", value=9.0).to_parameter_msg()
    request = SetParameters.Request(parameters=[change])
    [result] = sensors.call(SetParameters, "set_parameters", request).results
    assert not result.successful
    assert "read-only" in result.reason.replace("_", "-")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["bundle", "not set"]),
        (["-p", "bundle:=/nowhere"], ["/nowhere", "no such file"]),
        (["-p", "bundle:=x", "-p", "mode:=lockstep"], ["mode", "lockstep", "lock_step"]),
        (["-p", "bundle:=x", "-p", "timeout_s:=-1.0"], ["timeout_s", "-1.0"]),
        (["-p", "bundle:=x", "-p", "timeout_s:=soon"], ["timeout_s"]),
        (["-p", "limits.velocity:=[2.0, 1.0]"], ["limits.velocity", "2.0"]),
        (["-p", "limits.velocity:=[2.0]"], ["limits.velocity", "two numbers"]),
        (["-p", "limits.velocty:=[1.0, 2.0]"], ["limits.velocty", "limits.velocity"]),
        (["-p", "timout_s:=1.0"], ["timout_s", "timeout_s"]),
        (
            ["-p", "qos_overrides./robot_0/action.publisher.reliability:=best_effort"],
            ["unknown parameter 'qos_overrides./robot_0/action", "sensor_reliability"],
        ),
        (["-p", "on_stall:=zero"], ["on_stall", "zero", "safe_action"]),
        (
            ["-p", "on_stall:=other_action", "-p", "stall_action:=lft"],
            ["stall_action", "lft", "left"],
        ),
        (["-p", "on_stall:=other_action"], ["stall_action", "not set"]),
        (
            ["-p", "on_stall:=hold", "-p", "sensor_map:=map.yaml", "-p", "mode:=real_time"],
            ["on_stall", "hold", "sensor_map"],
        ),
        (["-p", "robot:=robot_1"], ["robot_0", "robot_1"]),
        (["--params-file", "/nowhere.yaml"], ["/nowhere.yaml"]),
        (["-r", "__ns:=/robot_1"], ["robot_0", "robot_1"]),
    ],
)
def test_bad_parameters_give_one_line_and_code_2(domain, start_node, bundles, arguments, words):
    if arguments and not any("bundle:=" in argument for argument in arguments):
        arguments = ["-p", f"bundle:={bundles / ROBOT}", *arguments]
    namespace = [] if "__ns:=/robot_1" in arguments else ["-r", f"__ns:=/{ROBOT}"]
    child = start_node("policy_node", *namespace, *arguments)
    assert child.wait(timeout=30) == 2
    stderr = child.log.read_text()
    [line] = [line for line in stderr.splitlines() if line.startswith("kdmarl: ")]
    for word in words:
        assert word in line


@pytest.mark.ros
@pytest.mark.parametrize("executable", ["policy_node", "bridge_node"])
def test_a_parameter_file_of_another_node_is_refused(domain, start_node, tmp_path, executable):
    path = write_yaml(tmp_path / "f.yaml", {"/robot_0/polcy": {"ros__parameters": {"seed": 1}}})
    arguments = ["-r", f"__ns:=/{ROBOT}", "--params-file", str(path)]
    child = start_node(executable, *arguments)
    assert child.wait(timeout=30) == 2
    [line] = [line for line in child.log.read_text().splitlines() if line.startswith("kdmarl: ")]
    assert line.startswith(f"kdmarl: {path}: holds parameters only of /robot_0/polcy")


@pytest.mark.ros
@pytest.mark.parametrize("name", ["/**", "/**/policy", "/*/policy", "/robot_0/policy", "nested"])
def test_a_parameter_file_may_name_nodes_as_ros_does(domain, start_node, tmp_path, name):
    """What comes of it shows that the file was heard: its bundle is nowhere."""

    def section():
        return {"ros__parameters": {"bundle": "/nowhere"}}

    document = {"/robot_0": {"policy": section()}} if name == "nested" else {name: section()}
    path = write_yaml(tmp_path / "f.yaml", {"/other/node": section()} | document)
    child = start_node("policy_node", "-r", f"__ns:=/{ROBOT}", "--params-file", str(path))
    assert child.wait(timeout=30) == 2
    assert "/nowhere" in child.log.read_text()


def test_a_refusal_is_said_even_where_the_end_was_asked_for_already(start_node, monkeypatch):
    monkeypatch.setenv(PARENT_VARIABLE, "0")  # a supervisor that is gone
    child = start_node("policy_node", "-r", "__ns:=/robot_0", "-p", "bundle:=nowhere")
    assert child.wait(timeout=30) == 2
    assert "kdmarl: nowhere" in child.log.read_text()
