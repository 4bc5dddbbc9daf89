"""The launch files, where `launch` and `launch_ros` are installed."""

import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from kdmarl_core.bundle.signing import SIGNATURE, make_keys, read_private_key, sign_bundle
from kdmarl_core.files import share_folder
from kdmarl_ros import results
from kdmarl_ros.recording import read_recording

pytest.importorskip("launch", reason="launch is not installed")
pytest.importorskip("launch_ros", reason="launch_ros is not installed")
pytestmark = pytest.mark.ros

RUN = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

source = PythonLaunchDescriptionSource(sys.argv[1])
arguments = [argument.split(":=", 1) for argument in sys.argv[2:]]
service = LaunchService()
service.include_launch_description(
    LaunchDescription([IncludeLaunchDescription(source, launch_arguments=arguments)])
)
sys.exit(service.run())
"""


@pytest.fixture
def launch(domain, tmp_path):
    """Runs a launch file as `ros2 launch` does; ends it when the test ends."""
    children = []

    def start(name, **arguments):
        path = share_folder() / "launch" / name
        given = [f"{key}:={value}" for key, value in arguments.items()]
        child = subprocess.Popen(
            [sys.executable, "-c", RUN, str(path), *given],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        children.append(child)
        return child

    yield start
    for child in children:
        if child.poll() is None:
            family = psutil.Process(child.pid).children(recursive=True)
            for process in [*family, child]:
                process.kill()
        child.communicate()


def node_process(launched, robot):
    """The process of a robot's node, or None."""
    for process in psutil.Process(launched.pid).children(recursive=True):
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if f"__ns:=/{robot}" in command and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def until(condition, timeout_s=60.0):
    give_up = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < give_up, "timed out"
        time.sleep(0.05)
    return found


FIVE = """
base: simple_spread
task: mpe/simple_spread_5
students: simple_spread
robots: 5
"""
ROBOT_ARGUMENTS = {
    *{"robots", "real_time", "rate", "use_sim_time", "record", "log_level", "respawn"},
    *{"security", "trusted_keys", "keystore", "allow_unsecured_middleware"},
}
SWARM_ARGUMENTS = {
    *{"team", "task", "bundles", "episodes", "seed", "results", "hosted"},
    *{"sensor_delay_steps", "action_delay_steps", "sensor_noise", "sensor_loss"},
    "step_deadline_s",
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("swarm.launch.py", SWARM_ARGUMENTS | ROBOT_ARGUMENTS),
        ("robot.launch.py", {"robot", "bundle"} | ROBOT_ARGUMENTS),
    ],
)
def test_arguments_are_documented(name, expected):
    from launch.launch_description_sources import get_launch_description_from_python_launch_file

    path = share_folder() / "launch" / name
    description = get_launch_description_from_python_launch_file(str(path))
    arguments = {argument.name: argument for argument in description.get_launch_arguments()}
    assert set(arguments) == expected
    for argument in arguments.values():
        assert argument.description
        assert argument.description != "no description given"


def test_a_killed_robot_comes_back_into_the_swarm(launch, bundles, tmp_path):
    path = tmp_path / "episodes.jsonl"
    swarm = launch(
        "swarm.launch.py", team="simple_spread", bundles=bundles, episodes=100_000, results=path,
        respawn="true",
    )  # fmt: skip
    until(lambda: len(results.read(path)) > 2)
    victim = node_process(swarm, "robot_1")
    victim.kill()
    heir = until(lambda: node_process(swarm, "robot_1"))
    assert heir.pid != victim.pid

    def missed():
        return [episode.missed_deadlines for episode in results.read(path)]

    until(lambda: any(missed()))  # it was away
    count = len(missed())
    until(lambda: len(missed()) > count + 2)
    assert missed()[-1] == 0  # and is back
    swarm.send_signal(signal.SIGINT)
    swarm.communicate(timeout=30)
    assert swarm.returncode == 0


def test_a_swarm_in_real_time_with_loss(launch, bundles, tmp_path):
    path = tmp_path / "episodes.jsonl"
    swarm = launch(
        "swarm.launch.py", bundles=bundles, task="mpe/simple_spread", episodes=2, results=path,
        real_time="true", rate=50, sensor_loss=0.1, sensor_delay_steps=1,
    )  # fmt: skip
    output, _ = swarm.communicate(timeout=90)
    assert swarm.returncode == 0, output
    for episode in results.read(path):
        assert episode.seconds > 0.9 * episode.steps / 50
        assert len({action for joint in episode.actions for action in joint}) > 1


@pytest.mark.parametrize("hosted", ["false", "true"])
def test_a_fleet_flies_the_students_of_another_team(launch, bundles, tmp_path, hosted):
    path = tmp_path / "episodes.jsonl"
    team = tmp_path / "five.yaml"
    team.write_text(FIVE)
    swarm = launch(
        "swarm.launch.py", team=team, bundles=bundles, episodes=2, results=path, hosted=hosted
    )
    output, _ = swarm.communicate(timeout=90)
    assert swarm.returncode == 0, output
    assert [len(episode.models) for episode in results.read(path)] == [5, 5]


def test_a_recorded_swarm_of_signed_bundles(launch, bundles, tmp_path):
    signed = shutil.copytree(bundles, tmp_path / "signed")
    private, _, _ = make_keys(tmp_path / "keys" / "fleet")
    key = read_private_key(private)
    for place in signed.iterdir():
        sign_bundle(place, key)
    arguments = {
        "team": "simple_spread", "bundles": signed, "episodes": 2, "record": "true",
        "results": tmp_path / "episodes.jsonl", "security": "enforce",
        "trusted_keys": tmp_path / "keys", "allow_unsecured_middleware": "true",
    }  # fmt: skip
    swarm = launch("swarm.launch.py", **arguments)
    output, _ = swarm.communicate(timeout=90)
    assert swarm.returncode == 0, output
    assert "signed by fleet" in output
    assert "topics are NOT secured: no keystore given" in output
    assert len(results.read(tmp_path / "episodes.jsonl")) == 2
    found = read_recording(tmp_path / "recording.mcap").messages
    assert sum(message.topic == "/swarm/step" for message in found) == 50  # 2 x 25
    (signed / "robot_1" / SIGNATURE).unlink()
    swarm = launch("swarm.launch.py", **arguments)
    output, _ = swarm.communicate(timeout=90)
    assert swarm.returncode != 0
    assert "unsigned" in output


def test_one_robot_starts_with_its_files_and_says_what_is_wrong(launch, bundles, tmp_path):
    robot = launch(
        "robot.launch.py", robot="robot_0", bundle=bundles / "robot_0", real_time="true",
        rate="20",
    )  # fmt: skip
    line = until(lambda: "configured: mpe/simple_spread agent_0" in robot.stdout.readline())
    assert line
    robot = launch("robot.launch.py", robot="robot_0", bundle=tmp_path / "none")
    output, _ = robot.communicate(timeout=30)
    assert robot.returncode != 0
    assert f"{tmp_path / 'none' / 'manifest.json'}: no such file" in output
