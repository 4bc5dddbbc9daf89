"""Recordings and their replay, on messages made by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import dense_layers, make_manifest, make_model
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from std_msgs.msg import Header

from kdmarl_core.bundle import MANIFEST, BundlePolicy, write_bundle
from kdmarl_core.export import GruWeights, student_model
from kdmarl_ros import qos
from kdmarl_ros.msg import AgentAction, FeatureBlock
from kdmarl_ros.recording import (
    Channel,
    RecordingWriter,
    message_definition,
    offered_qos,
    read_recording,
)
from kdmarl_ros.replay import replay

BLOCKS = [("position", 2), ("landmarks", 6)]
STEPS, EPISODES = 6, 3
SENSORS = [f"/robot_0/sensors/{name}" for name, _ in BLOCKS]
ACTION = "/robot_0/action"
FEATURE, DECISION = "kdmarl_ros/msg/FeatureBlock", "kdmarl_ros/msg/AgentAction"
CHANNELS = [
    *(Channel(topic, FEATURE, qos.sensor("reliable")) for topic in SENSORS),
    Channel(ACTION, DECISION, qos.ACTION),
]


def feed_forward():
    manifest = make_manifest(BLOCKS)
    return BundlePolicy(manifest, make_model(manifest, scale=3.0))


def recurrent():
    manifest = make_manifest(BLOCKS)
    student = manifest.student.__class__("gru", 4, 0, 0, 4)
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(shape) for shape in ((8, 12), (12,), (4, 12), (12,))]
    gru = GruWeights(*(weight.astype(np.float32) * 2 for weight in weights))
    model = student_model([gru, dense_layers([4, 5], scale=3.0)[0]])
    return BundlePolicy(make_manifest(BLOCKS, student=student), model)


POLICIES = pytest.mark.parametrize("make", [feed_forward, recurrent])


def run_of(policy, seed=0):
    """Messages of a run in lock-step: (channel, message), in the order of publication."""
    rng = np.random.default_rng(seed)
    messages, chosen = [], set()
    for episode in range(EPISODES):
        policy.reset()
        for step in range(STEPS):
            values = rng.normal(size=8).astype(np.float32)
            stamp = {"episode": episode, "step": step}
            for channel, part in enumerate((values[:2], values[2:])):
                messages.append((channel, FeatureBlock(data=part.tolist(), **stamp)))
            action = policy.act(values)
            chosen.add(action)
            messages.append((2, AgentAction(action=action, **stamp)))
    assert len(chosen) > 1
    return messages


def write(path, messages, order=None, finish=True):
    """A recording; `order` is that of arrival, where it is not that of publication."""
    manifests = {"robot_0": json.dumps({"robot": "robot_0"})}
    writer = RecordingWriter(path, CHANNELS, manifests)
    for index in range(len(messages)) if order is None else order:
        channel, message = messages[index]
        writer.write(channel, bytes(serialize_message(message)), 10_000 + index, 1_000 + index)
    if finish:
        writer.close()
    return path


def replayed(path, policy):
    return replay(read_recording(path), policy, str(path))


def index_of(messages, episode, step, channel=2):
    return next(
        i
        for i, (c, m) in enumerate(messages)
        if (c, m.episode, m.step) == (channel, episode, step)
    )


# The file


def test_another_reader_understands_the_file(tmp_path):
    """rosbags knows neither our code nor our messages: definitions come from the file."""
    messages = run_of(feed_forward())
    path = write(tmp_path / "run.mcap", messages)
    store = get_typestore(Stores.EMPTY)
    with Reader(path) as reader:
        assert {c.topic: c.msgtype for c in reader.connections} == {
            channel.topic: channel.type_name for channel in CHANNELS
        }
        for connection in reader.connections:
            assert connection.ext.offered_qos_profiles[0].depth == 1
            definition = connection.msgdef.data
            store.register(get_types_from_msg(definition, connection.msgtype))
        found = [
            (connection.topic, store.deserialize_cdr(data, connection.msgtype))
            for connection, _, data in reader.messages()
        ]
    assert len(found) == len(messages)
    for (topic, theirs), (channel, ours) in zip(found, messages, strict=True):
        assert topic == CHANNELS[channel].topic
        assert (theirs.episode, theirs.step) == (ours.episode, ours.step)
        if channel < 2:
            assert theirs.data.tolist() == list(ours.data)
        else:
            assert theirs.action == ours.action


def test_definitions_hold_what_they_refer_to():
    text = message_definition("visualization_msgs/msg/MarkerArray")
    for name in ("visualization_msgs/Marker", "geometry_msgs/Pose", "geometry_msgs/Point",
                 "std_msgs/Header", "builtin_interfaces/Time", "std_msgs/ColorRGBA"):  # fmt: skip
        assert text.count(f"MSG: {name}\n") == 1
    assert text.startswith("Marker[] markers")


def test_an_unknown_definition_is_named(refusal):
    assert "nowhere/msg/Nothing" in refusal(message_definition, "nowhere/msg/Nothing")


def test_quality_of_service_is_written_as_rosbag2_does():
    text = offered_qos(qos.LATCHED)
    assert "durability: transient_local" in text
    assert "reliability: reliable" in text


def test_what_was_written_is_read_in_the_order_of_publication(tmp_path):
    messages = run_of(feed_forward())
    order = np.random.default_rng(0).permutation(len(messages)).tolist()
    recording = read_recording(write(tmp_path / "run.mcap", messages, order))
    assert [m.published_ns for m in recording.messages] == list(
        range(1_000, 1_000 + len(messages))
    )
    assert json.loads(recording.manifests["robot_0"])["robot"] == "robot_0"
    assert not recording.cut_off


def test_a_recording_that_was_cut_off_is_read_so_far(tmp_path):
    path = write(tmp_path / "run.mcap", run_of(feed_forward()) * 2000)
    whole = len(read_recording(path).messages)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    recording = read_recording(path)
    assert recording.cut_off
    assert 0 < len(recording.messages) < whole


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x89MCAP0\r\n", bytes(10_000)])
def test_what_is_no_recording_is_refused(tmp_path, content, refusal):
    path = tmp_path / "run.mcap"
    path.write_bytes(content)
    assert str(path) in refusal(read_recording, path)
    assert "no_such" in refusal(read_recording, tmp_path / "no_such.mcap")


# Replay


@POLICIES
def test_a_run_agrees_with_its_own_bundle(tmp_path, make):
    """Even if blocks arrived in another order than they were published in."""
    messages = run_of(make())
    order = sorted(range(len(messages)), key=lambda index: messages[index][0])
    found = replayed(write(tmp_path / "run.mcap", messages, order), make())
    assert found == ("robot_0", EPISODES * STEPS, 0, 0, None)


@POLICIES
def test_an_altered_action_is_found(tmp_path, make):
    messages = run_of(make())
    names = make().manifest.actions
    for episode, step in ((2, 1), (1, 4)):
        altered = messages[index_of(messages, episode, step)][1]
        before, altered.action = altered.action, (altered.action + 1) % 5
    found = replayed(write(tmp_path / "run.mcap", messages), make())
    assert found.compared == EPISODES * STEPS
    assert found.difference == (1, 4, names[before], names[(before + 1) % 5])


def test_another_bundle_is_found(tmp_path):
    messages = run_of(feed_forward())
    manifest = make_manifest(BLOCKS)
    other = BundlePolicy(manifest, make_model(manifest, seed=1, scale=3.0))
    assert replayed(write(tmp_path / "run.mcap", messages), other).difference is not None


def test_a_state_that_is_not_reset_is_found(tmp_path):
    """What a recurrent student remembers must not leak into the next episode."""
    policy = recurrent()
    reset, policy.reset = policy.reset, lambda: None
    messages = run_of(policy)
    policy.reset = reset
    difference = replayed(write(tmp_path / "run.mcap", messages), recurrent()).difference
    assert difference is not None
    assert difference.episode > 0


@POLICIES
def test_repetitions_change_nothing(tmp_path, make):
    """The bridge repeats a step that was not answered in time."""
    messages = run_of(make())
    at = index_of(messages, 1, 3, channel=0)
    messages[at:at] = messages[at : at + 3]
    found = replayed(write(tmp_path / "run.mcap", messages), make())
    assert found.difference is None
    assert found.compared == EPISODES * STEPS + 1


@pytest.mark.parametrize(("make", "unknown"), [(feed_forward, 1), (recurrent, STEPS - 2)])
def test_what_was_not_recorded_is_not_compared(tmp_path, make, unknown):
    """After a gap, a recurrent student's state is unknown until the next episode."""
    messages = run_of(make())
    del messages[index_of(messages, 1, 2, channel=1)]
    found = replayed(write(tmp_path / "run.mcap", messages), make())
    assert (found.unknown, found.difference) == (unknown, None)
    assert found.compared == EPISODES * STEPS - unknown


def test_safe_actions_are_not_the_policys(tmp_path):
    messages = run_of(feed_forward())
    answer = messages[index_of(messages, 0, 0)][1]
    answer.status, answer.action = AgentAction.STATUS_SAFE, 0
    found = replayed(write(tmp_path / "run.mcap", messages), feed_forward())
    assert found == ("robot_0", EPISODES * STEPS - 1, 1, 0, None)


def test_memory_of_a_step_that_was_not_the_policys_is_not_known(tmp_path):
    """A node that recovers from a silence does not decide: what it remembers differs then."""
    policy = recurrent()
    messages = run_of(policy)
    place = index_of(messages, 1, 2)
    messages[place][1].status = AgentAction.STATUS_SAFE
    messages[index_of(messages, 1, 4)][1].action = 99
    found = replayed(write(tmp_path / "run.mcap", messages), policy)
    assert (found.safe, found.unknown) == (1, STEPS - 3)
    assert found.difference is None


def test_messages_that_cannot_be_used_are_named(tmp_path, refusal):
    writer = RecordingWriter(tmp_path / "run.mcap", CHANNELS, {})
    writer.write(0, b"\x00\x01\x00\x00short", 0, 0)
    writer.close()
    message = refusal(replayed, tmp_path / "run.mcap", feed_forward())
    assert "/robot_0/sensors/position" in message
    header = Channel(ACTION, "std_msgs/msg/Header", qos.ACTION)
    writer = RecordingWriter(tmp_path / "run.mcap", [header], {})
    writer.write(0, bytes(serialize_message(Header())), 0, 0)
    writer.close()
    message = refusal(replayed, tmp_path / "run.mcap", feed_forward())
    assert "std_msgs/msg/Header" in message


def test_another_robots_recording_is_refused(tmp_path, refusal):
    manifest = make_manifest(BLOCKS, robot="robot_7")
    path = write(tmp_path / "run.mcap", run_of(feed_forward()))
    assert "'robot_7'" in refusal(replayed, path, BundlePolicy(manifest, make_model(manifest)))


def test_the_command(tmp_path, kdmarl):
    bundle = tmp_path / "robot_0"
    bundle.mkdir()
    manifest = make_manifest(BLOCKS)
    write_bundle(bundle, manifest, make_model(manifest, scale=3.0))
    messages = run_of(feed_forward())
    path = write(tmp_path / "run.mcap", messages)
    done = kdmarl("replay", path, "--bundle", bundle)
    assert done.code == 0, done.err
    assert "18" in done.out
    [figures] = json.loads(kdmarl("replay", path, "--bundle", bundle, "--json").out)
    assert figures["compared"] == 18
    messages[index_of(messages, 2, 5)][1].action = 77
    done = kdmarl("replay", write(path, messages), "--bundle", bundle)
    assert done.code == 2
    assert "robot_0: episode 2, step 5: the bundle chooses" in done.err
    assert "the recording has number 77" in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert Path(bundle / MANIFEST).exists()
