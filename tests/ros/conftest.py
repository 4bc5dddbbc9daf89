"""Teams of untrained students: what flies does not matter here, that it flies right does."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdmarl_core.bundle import load_policy
from kdmarl_core.distil.run import Work, export, write_team
from kdmarl_core.distil.student import StudentTeam
from kdmarl_core.files import executable_prefix
from kdmarl_core.metrics import Evaluation
from kdmarl_core.teacher.teacher import Architecture, TeacherCard
from kdmarl_core.team import load_team

_domains = itertools.count(1 + os.getpid() % 50)


@pytest.fixture
def domain(monkeypatch):
    """A ROS domain of the test's own, so that no test hears another."""
    number = str(next(_domains) % 101)
    monkeypatch.setenv("ROS_DOMAIN_ID", number)
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    return int(number)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory) -> Path:
    """One bundle per robot of the team simple_spread."""
    torch.manual_seed(0)
    team = load_team("simple_spread")
    students = StudentTeam(team)
    with torch.no_grad():
        students.head.weight *= 100  # decided opinions, so that actions differ
    card = TeacherCard(
        task=team.task.spec.name,
        architecture=Architecture(8, 1),
        reward_scale=1.0,
        gamma=0.9,
        gae_lambda=0.9,
        observation_sizes=(18, 18, 18),
        num_actions=5,
        state_size=55,
        weights_sha256="0" * 64,
        command="",
        env_steps=0,
        seed=0,
        training_seconds=0.0,
        evaluation=Evaluation(0.0, 0.0, 1, 0),
    )
    folder = tmp_path_factory.mktemp("team") / "bundles"
    write_team(export(Work(team, None, card, None, 0), students), None, folder, overwrite=False)
    return folder


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
def start_node(tmp_path):
    """Starts a node executable with ROS arguments; ends it when the test ends."""
    children: list[subprocess.Popen[str]] = []

    def start(executable: str, *ros_arguments: str) -> subprocess.Popen[str]:
        program = executable_prefix() / "lib" / "kdmarl_ros" / executable
        child = subprocess.Popen(
            [sys.executable, str(program), "--ros-args", *ros_arguments],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        children.append(child)
        return child

    yield start
    for child in children:
        if child.poll() is None:
            child.kill()
        child.communicate()
