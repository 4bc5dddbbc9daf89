"""Runs that are recorded, and runs whose recording fails."""

import json
import time
from pathlib import Path

import psutil
import pytest
from helpers import TALKING_TEAM, write_yaml
from rclpy.serialization import deserialize_message

from kdmarl_core.bundle import MANIFEST, Disturbance, load_policy
from kdmarl_core.evaluate import BundlePlayer, play
from kdmarl_core.files import share_folder
from kdmarl_core.team import load_team
from kdmarl_core.team_bundles import load_bundles
from kdmarl_ros import qos, results, topics
from kdmarl_ros.msg import AgentAction, FeatureBlock, PeerMessage, StepResult
from kdmarl_ros.recording import read_recording
from kdmarl_ros.replay import replay
from kdmarl_ros.team_topics import recorded_topics

pytestmark = pytest.mark.ros

EPISODES, STEPS = 3, 25
KINDS = {
    f"kdmarl_ros/msg/{kind.__name__}": kind
    for kind in (AgentAction, FeatureBlock, PeerMessage, StepResult)
}
RUN = ["swarm", "--team", "simple_spread", "--episodes", str(EPISODES), "--json"]


def test_a_run_is_recorded_whole_and_agrees_with_its_bundles(domain, bundles, kdmarl, tmp_path):
    done = kdmarl(*RUN, "--bundles", str(bundles), "--record", "--output", "out")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "out" / "recording.mcap"
    recording = read_recording(path)
    assert not recording.cut_off
    team = load_team("simple_spread")
    for robot in team.robots:
        text = (bundles / robot.name / MANIFEST).read_text()
        assert json.loads(recording.manifests[robot.name]) == json.loads(text)
    counts = dict.fromkeys((f"/{name.strip('/')}" for name, _, _ in recorded_topics(team)), 0)
    for message in recording.messages:
        counts[message.topic] += 1
    for topic, count in counts.items():
        if "/sensors/" in topic or topic.endswith("/action") or topic == "/swarm/step":
            assert count >= EPISODES * STEPS, topic
        elif topic != "/diagnostics":  # sent once per second: a short run may end before
            assert count > 0, topic
    done = kdmarl("replay", str(path), "--bundle", str(bundles), "--json")
    assert done.returncode == 0, done.stderr
    for found in json.loads(done.stdout):
        assert found["compared"] >= EPISODES * STEPS
        assert (found["unknown"], found["difference"]) == (0, None)


@pytest.mark.slow
def test_a_recorder_that_is_held_up_misses_nothing(
    domain, write_bundles, start_kdmarl, patient, tmp_path
):
    """As a busy machine does it, for longer: the others keep what it has yet to get."""
    team_file = write_yaml(tmp_path / "talking.yaml", TALKING_TEAM)
    bundles = write_bundles(load_team(str(team_file)))
    played = 70  # more messages than are kept
    assert played * STEPS > qos.RECORDED_DEPTH
    swarm = start_kdmarl(
        "swarm", "--team", str(team_file), "--bundles", str(bundles), "--episodes", str(played),
        *patient, "--record", "--output", "out",
    )  # fmt: skip
    episodes = tmp_path / "out" / "episodes.jsonl"

    def until_played(count):
        give_up = time.monotonic() + 60
        while len(results.read(episodes)) < count:
            assert time.monotonic() < give_up
            time.sleep(0.005)

    until_played(2)
    [recorder] = [
        child
        for child in psutil.Process(swarm.pid).children()
        if any(word.endswith("recorder_node") for word in child.cmdline())
    ]
    for _ in range(3):
        before = len(results.read(episodes))
        recorder.suspend()
        until_played(before + 5)
        recorder.resume()
        time.sleep(0.05)
    assert swarm.poll() is None
    _, stderr = swarm.communicate(timeout=60)
    assert swarm.returncode == 0, stderr
    found = {}
    for message in read_recording(tmp_path / "out" / "recording.mcap").messages:
        kind = KINDS.get(message.type_name)
        if kind is not None:
            stamp = deserialize_message(message.data, kind)
            found.setdefault(message.topic, set()).add((stamp.episode, stamp.step))
    assert {topic.rpartition("/")[2] for topic in found} >= {"action", "step", "message"}
    for topic, stamps in found.items():
        missing = {(episode, step) for episode in range(played) for step in range(STEPS)} - stamps
        assert not missing, (topic, sorted(missing))


def test_limits_of_a_robot_hold_in_its_replay_too(domain, bundles, kdmarl, tmp_path):
    shared = {"robot_type": "narrow", "limits": {"landmarks": [-0.1, 0.1], "others": [0.0, 0.1]}}
    of_type = {"sensor_reliability": "reliable"}
    for name, values in {"all": shared, "types/narrow": of_type}.items():
        path = tmp_path / "robots" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_yaml(path, {"/**/policy": {"ros__parameters": values}})
    done = kdmarl(
        *RUN, "--bundles", str(bundles), "--robots", str(path.parents[1]), "--record",
        "--output", "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    path = tmp_path / "out" / "recording.mcap"
    done = kdmarl("replay", str(path), "--bundle", str(bundles), "--json")
    assert done.returncode == 0, done.stderr
    recording = read_recording(path)
    assert recording.parameters["robot_1"]["limits.landmarks"] == [-0.1, 0.1]
    # Negative control: without them, the replay differs.
    unlimited = replay(
        recording._replace(parameters={}), load_policy(bundles / "robot_0"), str(path)
    )
    assert unlimited.difference is not None


@pytest.mark.parametrize("disturbance", [Disturbance(), Disturbance(0.3, 2)])
def test_what_robots_told_each_other_is_recorded_and_replayed(
    domain, write_bundles, kdmarl, patient, tmp_path, disturbance
):
    """Also with loss and delay that are rehearsed; the same as offline."""
    team_file = write_yaml(tmp_path / "talking.yaml", TALKING_TEAM)
    team = load_team(str(team_file))
    bundles = write_bundles(team)
    values = {
        "sensor_reliability": "reliable",
        "message_loss": disturbance.loss,
        "message_delay_steps": disturbance.delay_steps,
    }
    of_type = tmp_path / "robots" / "types" / "slow.yaml"
    write_yaml(of_type, {"/**/policy": {"ros__parameters": values}})
    done = kdmarl(
        "swarm", "--team", str(team_file), "--bundles", str(bundles), "--episodes", str(EPISODES),
        *patient, "--record", "--output", "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    player = BundlePlayer(load_bundles(team, bundles), team, disturbance)
    offline = list(play(team.task.make_reference(), player, episodes=EPISODES, seed=0))
    flown = results.read(tmp_path / "out" / "episodes.jsonl")
    assert [[list(joint) for joint in episode.actions] for episode in flown] == [
        episode.actions for episode in offline
    ]
    path = tmp_path / "out" / "recording.mcap"
    done = kdmarl("replay", str(path), "--bundle", str(bundles), "--json")
    assert done.returncode == 0, done.stderr
    for found in json.loads(done.stdout):
        assert found["compared"] >= EPISODES * STEPS
        assert (found["unknown"], found["difference"]) == (0, None)
    # Negative control: robots that had heard nothing, or all of it, would have done other things.
    recording, listener = read_recording(path), load_policy(bundles / "robot_2")
    told = f"/{topics.of_robot('robot_0', topics.MESSAGE)}"
    silent = [message for message in recording.messages if message.topic != told]
    assert len(recording.messages) - len(silent) == EPISODES * STEPS
    others = [recording._replace(messages=silent)]
    if disturbance.loss:
        others.append(recording._replace(parameters={}))
    for other in others:
        assert replay(other, listener, str(path)).difference is not None


@pytest.mark.parametrize("place", ["full disk", "read-only"])
def test_a_run_goes_on_without_its_recording(domain, bundles, kdmarl, tmp_path, place):
    """Fault: the recording cannot be written. /dev/full is a disk that is always full."""
    if place == "full disk" and not Path("/dev/full").is_char_device():
        pytest.skip("there is no /dev/full")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "episodes.jsonl").touch()
    if place == "full disk":
        (folder / "recording.mcap").symlink_to("/dev/full")
    else:
        (folder / "recording.mcap").mkdir()
    done = kdmarl(*RUN, "--bundles", str(bundles), "--record", "--output", "out", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert len(results.read(folder / "episodes.jsonl")) == EPISODES
    assert json.loads(done.stdout)["missed_deadlines"] == 0
    [line] = [line for line in done.stderr.splitlines() if "warning" in line]
    assert "recording ended" in line
    assert {"full disk": "No space left", "read-only": "Is a directory"}[place] in line


def test_the_layout_shows_what_a_run_publishes():
    """Foxglove says nothing of a topic that is not there."""
    path = share_folder() / "config" / "foxglove" / "swarm.json"
    layout = json.loads(path.read_text())
    team = load_team("simple_spread")
    known = {f"/{name.strip('/')}" for name, _, _ in recorded_topics(team)}
    panels = layout["configById"]
    text = json.dumps(panels)
    for topic in ("/swarm/markers", "/swarm/step", "/diagnostics"):
        assert f'"{topic}' in text
        assert topic in known

    def leaves(node):
        return [node] if isinstance(node, str) else leaves(node["first"]) + leaves(node["second"])

    assert sorted(leaves(layout["layout"])) == sorted(panels)
    shown = {
        path["value"].split(".")[0] for panel in panels.values() for path in panel.get("paths", [])
    }
    assert shown <= known
