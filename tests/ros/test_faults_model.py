"""Faults of the model: damaged, swapped, or failing while it flies.

Rows 7, 8, 14 to 18 and 29 of the fault table.
"""

import dataclasses
import itertools
import shutil

import numpy as np
import onnx
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import State, Transition
from onnx import TensorProto, helper, numpy_helper
from ros_driver import ROBOT, driving
from std_srvs.srv import Trigger

from kdmarl_core.bundle import MANIFEST, MODEL, load_policy, write_bundle
from kdmarl_core.bundle.policy import LOGITS, OBSERVATION
from kdmarl_ros.msg import AgentAction

pytestmark = pytest.mark.ros


def graph(nodes, inputs, outputs, constants):
    made = helper.make_graph(
        nodes,
        "student",
        [helper.make_tensor_value_info(OBSERVATION, TensorProto.FLOAT, [1, inputs])],
        [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, [1, outputs])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def overflowing(inputs, outputs):
    """Infinity minus infinity, unless it is shown zeros: then the biases decide, for action 4."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", [OBSERVATION, "first"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "second"], ["sum"]),
        helper.make_node("Add", ["sum", "bias"], [LOGITS]),
    ]
    constants = {
        "first": 1e30 * np.abs(rng.normal(size=(inputs, 4))),
        "second": 1e30 * rng.normal(size=(4, outputs)),
        "bias": np.arange(outputs),
    }
    constants = {name: value.astype(np.float32) for name, value in constants.items()}
    return graph(nodes, inputs, outputs, constants)


def gain(inputs, outputs):
    """Outputs of a size that no policy has."""
    nodes = [helper.make_node("MatMul", [OBSERVATION, "weights"], [LOGITS])]
    weights = 1e6 * np.random.default_rng(0).normal(size=(inputs, outputs))
    return graph(nodes, inputs, outputs, {"weights": weights.astype(np.float32)})


def laborious(inputs, outputs, width=900, layers=40):
    """Much to multiply, for nothing."""
    nodes = [helper.make_node("MatMul", [OBSERVATION, "in"], ["x0"])]
    nodes += [
        helper.make_node("MatMul", [f"x{i}", "square"], [f"x{i + 1}"]) for i in range(layers)
    ]
    nodes.append(helper.make_node("MatMul", [f"x{layers}", "out"], [LOGITS]))
    shapes = {"in": (inputs, width), "square": (width, width), "out": (width, outputs)}
    constants = {name: np.full(shape, 1e-5, np.float32) for name, shape in shapes.items()}
    return graph(nodes, inputs, outputs, constants)


@pytest.fixture
def bundle_with(bundles, tmp_path):
    """The first robot's bundle with another model, that it vouches for."""

    def make(model):
        manifest = load_policy(bundles / ROBOT).manifest
        folder = tmp_path / "bundle"
        folder.mkdir()
        made = model(manifest.observation_size, len(manifest.actions))
        write_bundle(folder, manifest, made)
        return folder

    return make


@pytest.fixture
def sensors(domain, policies):
    with driving(domain, policies[0].manifest) as driver:
        yield driver


@pytest.fixture
def node(start_node):
    def start(bundle, *more):
        return start_node(
            "policy_node", "-r", f"__ns:=/{ROBOT}", "-p", f"bundle:={bundle}",
            "-p", "timeout_s:=5.0", "-p", "sensor_reliability:=reliable", *more,
        )  # fmt: skip

    return start


def test_an_output_that_is_no_number_is_the_safe_action_and_an_error(sensors, node, bundle_with):
    node(bundle_with(overflowing))
    sensors.until_listened_to()
    observation = np.zeros(sensors.manifest.observation_size, np.float32)
    assert sensors.answer(observation, 0, 0).action == 4
    steps = itertools.count(1)

    def overflow():
        sensors.send(observation + 1, 0, next(steps))

    sensors.actions.clear()
    overflow()
    sensors.until(lambda: sensors.actions)
    assert sensors.actions[0].status == AgentAction.STATUS_SAFE
    assert sensors.actions[0].action == sensors.manifest.safe_index
    # Said once for each: it goes on until somebody listens.
    sensors.until_reported("not finite", level=DiagnosticStatus.ERROR, meanwhile=overflow)
    assert sensors.answer(observation, 0, next(steps)).action == 4


def test_huge_outputs_are_still_one_of_the_actions(sensors, node, bundle_with):
    node(bundle_with(gain))
    sensors.until_listened_to()
    rng = np.random.default_rng(0)
    for step in range(5):
        observation = (1e6 * rng.normal(size=sensors.manifest.observation_size)).astype(np.float32)
        assert 0 <= sensors.answer(observation, 0, step).action < 5


# The node with a policy that has an error: it cannot bear numbers above 5.
FAULTY = """
import sys
from kdmarl_core.bundle import BundlePolicy
from kdmarl_ros.policy_node import main

think = BundlePolicy.act

def act(policy, observation, *more):
    if observation.max() > 5:
        raise RuntimeError("an error in the policy")
    return think(policy, observation, *more)

BundlePolicy.act = act
sys.exit(main())
"""


def test_an_unexpected_error_ends_safe_and_the_node_can_be_started_again(
    sensors, start_node, bundles, tmp_path
):
    script = tmp_path / "faulty_node.py"
    script.write_text(FAULTY)
    child = start_node(
        str(script), "-r", f"__ns:=/{ROBOT}", "-p", f"bundle:={bundles / ROBOT}",
        "-p", "timeout_s:=5.0", "-p", "sensor_reliability:=reliable",
    )  # fmt: skip
    sensors.until_listened_to()
    observation = np.zeros(sensors.manifest.observation_size, np.float32)
    before = sensors.answer(observation, 0, 0).action
    sensors.actions.clear()
    sensors.send(observation + 7, 0, 1)
    sensors.until(lambda: sensors.actions)
    assert sensors.actions[0].status == AgentAction.STATUS_SAFE
    sensors.until_reported("failed: RuntimeError: an error", level=DiagnosticStatus.ERROR)
    assert "Traceback" in child.log.read_text()
    assert child.poll() is None
    assert sensors.state() == State.PRIMARY_STATE_UNCONFIGURED
    assert sensors.change(Transition.TRANSITION_CONFIGURE)
    assert sensors.change(Transition.TRANSITION_ACTIVATE)
    sensors.until_listened_to()
    assert sensors.answer(observation, 0, 2).action == before


def test_a_model_that_is_too_slow_skips_periods(sensors, node, bundle_with):
    node(bundle_with(laborious), "-p", "mode:=real_time", "-p", "rate_hz:=1000.0")
    sensors.until_listened_to()
    sensors.until_acting()
    sensors.until_reported("too slow", level=DiagnosticStatus.ERROR, meanwhile=sensors.send_new)
    sensors.stream_until(lambda: int(sensors.values()["missed_periods"]) > 10)
    assert float(sensors.values()["compute_p99_ms"]) > 1.0
    # Nothing has queued up: what is answered last is what was sent last.
    newest = sensors.step
    sensors.until(lambda: sensors.actions[-1].step == newest)


def truncated(folder):
    (folder / MODEL).write_bytes((folder / MODEL).read_bytes()[:-10])


def flipped(folder):
    model = bytearray((folder / MODEL).read_bytes())
    model[len(model) // 2] ^= 1
    (folder / MODEL).write_bytes(bytes(model))


def removed(folder):
    (folder / MODEL).unlink()


def unreadable_manifest(folder):
    (folder / MANIFEST).write_text("{")


DAMAGES = [truncated, flipped, removed, unreadable_manifest]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_bundle_ends_the_start_with_its_reason(domain, node, bundles, tmp_path, damage):
    folder = shutil.copytree(bundles / ROBOT, tmp_path / "copy")
    damage(folder)
    child = node(folder)
    assert child.wait(timeout=60) == 2
    [line] = [text for text in child.log.read_text().splitlines() if text.startswith("kdmarl: ")]
    assert str(folder) in line


def test_a_damaged_bundle_does_not_replace_the_one_in_use(sensors, node, bundles, tmp_path):
    folder = shutil.copytree(bundles / ROBOT, tmp_path / "copy")
    node(folder)
    sensors.until_listened_to()
    observation = np.zeros(sensors.manifest.observation_size, np.float32)
    before = sensors.answer(observation, 0, 0).action
    for damage in DAMAGES:
        saved = shutil.copytree(folder, tmp_path / "saved")
        damage(folder)
        answer = sensors.call(Trigger, "reload", Trigger.Request())
        assert not answer.success
        assert str(folder) in answer.message
        shutil.rmtree(folder)
        saved.rename(folder)
    assert sensors.answer(observation, 0, 1).action == before
    # Another model of the same interface takes its place.
    manifest = load_policy(folder).manifest
    model = overflowing(manifest.observation_size, len(manifest.actions))
    write_bundle(folder, manifest, model)
    assert sensors.call(Trigger, "reload", Trigger.Request()).success
    assert sensors.answer(observation, 0, 2).action == 4
    sensors.until(lambda: len(set(sensors.models)) == 2)
    # One of another interface does not; all that differs is named.
    swapped = dataclasses.replace(manifest, blocks=manifest.blocks[::-1], agent="agent_2")
    write_bundle(folder, swapped, model)
    answer = sensors.call(Trigger, "reload", Trigger.Request())
    assert not answer.success
    assert "blocks" in answer.message
    assert "agent agent_2 instead of agent_0" in answer.message
    assert sensors.answer(observation, 0, 3).action == 4


def external(inputs, outputs):
    """Weights that lie in another file, outside of the bundle."""
    model = onnx.load_from_string(gain(inputs, outputs))
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="../x")
    return model.SerializeToString()


def unknown_operator(inputs, outputs):
    nodes = [
        helper.make_node("MatMul", [OBSERVATION, "weights"], ["hidden"]),
        helper.make_node("Erf", ["hidden"], [LOGITS]),
    ]
    return graph(nodes, inputs, outputs, {"weights": np.ones((inputs, outputs), np.float32)})


def further_input(inputs, outputs):
    model = onnx.load_from_string(gain(inputs, outputs))
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1, 2]))
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("model", "words"),
    [(external, ["external data"]), (unknown_operator, ["Erf"]), (further_input, ["more"])],
)
def test_a_model_with_what_no_student_needs_is_refused(domain, node, bundle_with, model, words):
    child = node(bundle_with(model))
    assert child.wait(timeout=60) == 2
    [line] = [text for text in child.log.read_text().splitlines() if text.startswith("kdmarl: ")]
    for word in words:
        assert word in line


def test_another_robots_bundle_is_refused(domain, node, bundles):
    child = node(bundles / "robot_1")
    assert child.wait(timeout=60) == 2
    assert "the bundle of 'robot_1', but this is 'robot_0'" in child.log.read_text()


def test_a_node_without_a_namespace_is_told_how_to_get_one(domain, start_node, bundles):
    child = start_node("policy_node", "-p", f"bundle:={bundles / 'robot_1'}")
    assert child.wait(timeout=60) == 2
    assert "start it with -r __ns:=/robot_1" in child.log.read_text()
