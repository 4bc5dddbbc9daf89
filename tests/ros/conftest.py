"""Teams of untrained students: what flies does not matter here, that it flies right does."""

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from helpers import make_manifest, make_model, write_yaml

from kdmarl_core.bundle import StudentEntry, load_policy, message_entry, write_bundle
from kdmarl_core.files import executable_prefix
from kdmarl_core.team import Team, load_team

# Of the workers that share a run, each has domains of its own.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
DOMAINS = 100 // WORKERS * WORKERS

ENDS_WITHIN_S = 10.0  # a fraction of it, unless a test has stopped the process or made it deaf

_tests = itertools.count(os.getpid())


@pytest.fixture
def domain(monkeypatch, tmp_path):
    """A ROS domain of the test's own, so that no test hears another."""
    return own_domain(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def module_domain(tmp_path_factory):
    """A ROS domain of the module's own, for nodes that its tests share."""
    with pytest.MonkeyPatch.context() as patch:
        yield own_domain(patch, tmp_path_factory.mktemp("home"))


def own_domain(patch: pytest.MonkeyPatch, folder: Path) -> int:
    """Sets the environment that nodes are started in."""
    number = 1 + (next(_tests) * WORKERS + WORKER) % DOMAINS
    patch.setenv("ROS_HOME", str(folder / "ros"))  # stops and logs are the test's own
    patch.setenv("ROS_DOMAIN_ID", str(number))
    patch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    return number


@pytest.fixture(scope="session")
def write_bundles(tmp_path_factory):
    """Makes a folder with one bundle per robot of a team."""

    def write(team: Team) -> Path:
        folder = tmp_path_factory.mktemp("team") / "bundles"
        for index, robot in enumerate(team.robots):
            student, told = robot.student, robot.messages
            state_size = student.width if student.network == "gru" else 0
            manifest = make_manifest(
                [(block.name, block.size) for block in robot.blocks],
                team=team.name,
                robot=robot.name,
                task=team.task.spec.name,
                agent=robot.agent.name,
                rate_hz=team.task.spec.rate_hz,
                actions=robot.agent.actions,
                safe_action=robot.safe_action,
                legal_actions_vary=team.task.spec.legal_actions_vary,
                student=StudentEntry(student.network, student.width, 0, 0, state_size),
                message=told and message_entry(told.size, told.format, told.receivers, 10.0),
                peers=robot.peers,
            )
            (folder / robot.name).mkdir(parents=True)
            write_bundle(folder / robot.name, manifest, make_model(manifest, seed=index))
        return folder

    return write


@pytest.fixture(scope="session")
def bundles(write_bundles) -> Path:
    """One bundle per robot of the team simple_spread."""
    return write_bundles(load_team("simple_spread"))


@pytest.fixture(scope="session")
def battle(write_bundles, tmp_path_factory) -> SimpleNamespace:
    """A team of SMAX with memory, each robot with other random sensors in every episode."""
    folder = tmp_path_factory.mktemp("battle")
    robot = {
        "sensors": ["allies", "enemies", "own"],
        "safe_action": "stop",
        "student": {"network": "gru", "width": 8},
        "random_features": [20, 30],
    }
    robots = {f"robot_{i}": {"agent": f"ally_{i}"} | robot for i in range(3)}
    document = {"task": "smax/3m", "teacher": "nobody", "robots": robots}
    path = write_yaml(folder / "battle.yaml", document)
    team = load_team(str(path))
    return SimpleNamespace(path=path, team=team, bundles=write_bundles(team))


@pytest.fixture
def policies(bundles):
    """The same bundles, opened offline."""
    team = load_team("simple_spread")
    return [load_policy(bundles / robot.name) for robot in team.robots]


@pytest.fixture
def kdmarl(tmp_path):
    """Runs the `kdmarl` command in an empty folder; returns the finished process."""

    def run(*arguments: str, timeout_s: float = 90) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kdmarl_ros.cli", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    return run


@pytest.fixture
def start_kdmarl(tmp_path):
    """As `kdmarl`, without waiting for the end, which comes with the test's at the latest."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "kdmarl_ros.cli", *arguments],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.resume()
            process.terminate()
            try:
                process.communicate(timeout=ENDS_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


@contextlib.contextmanager
def starting_nodes(folder: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts node executables with ROS arguments; ends them when the block ends."""
    children: list[subprocess.Popen[str]] = []

    def start(executable: str, *ros_arguments: str) -> subprocess.Popen[str]:
        program = executable_prefix() / "lib" / "kdmarl_ros" / executable
        with (folder / f"{len(children)}.err").open("w") as log:
            child = subprocess.Popen(
                [sys.executable, str(program), "--ros-args", *ros_arguments],
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=log,
                text=True,
            )
        child.log = Path(log.name)
        children.append(child)
        return child

    try:
        yield start
    finally:
        # Asked first: what is killed leaves shared memory behind, which others may stumble over.
        for child in children:
            child.terminate()
        for child in children:
            try:
                child.wait(ENDS_WITHIN_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@pytest.fixture
def start_node(tmp_path):
    """As `starting_nodes`, until the test ends."""
    with starting_nodes(tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def start_shared_node(tmp_path_factory):
    """As `starting_nodes`, until the module ends."""
    with starting_nodes(tmp_path_factory.mktemp("nodes")) as start:
        yield start


@pytest.fixture
def patient(tmp_path):
    """Options that wait for processes that a busy machine lets wait."""
    values = {"/**/policy": {"ros__parameters": {"robot_type": "slow", "timeout_s": 30.0}}}
    (tmp_path / "robots" / "types").mkdir(parents=True)
    write_yaml(tmp_path / "robots" / "all.yaml", values)
    of_type = {"/**/policy": {"ros__parameters": {"sensor_reliability": "reliable"}}}
    write_yaml(tmp_path / "robots" / "types" / "slow.yaml", of_type)
    return ["--robots", str(tmp_path / "robots"), "--step-deadline-s", "30"]
