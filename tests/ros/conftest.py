"""Teams of untrained students: what flies does not matter here, that it flies right does."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import make_teacher, opinionated

from kdmarl_core.bundle import load_policy
from kdmarl_core.distil.recipe import load_recipe
from kdmarl_core.distil.run import Work, export, write_team
from kdmarl_core.distil.student import StudentTeam
from kdmarl_core.files import executable_prefix
from kdmarl_core.team import Team, load_team

_domains = itertools.count(1 + os.getpid() % 50)


@pytest.fixture
def domain(monkeypatch):
    """A ROS domain of the test's own, so that no test hears another."""
    number = str(next(_domains) % 101)
    monkeypatch.setenv("ROS_DOMAIN_ID", number)
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    return int(number)


@pytest.fixture(scope="session")
def write_bundles(tmp_path_factory):
    """Makes a folder with one bundle per robot of a team."""

    def write(team: Team) -> Path:
        torch.manual_seed(0)
        students = opinionated(StudentTeam(team))
        work = Work(team, *make_teacher(team.task.spec), load_recipe(team.recipe), seed=0)
        folder = tmp_path_factory.mktemp("team") / "bundles"
        write_team(export(work, students), None, folder, overwrite=False)
        return folder

    return write


@pytest.fixture(scope="session")
def bundles(write_bundles) -> Path:
    """One bundle per robot of the team simple_spread."""
    return write_bundles(load_team("simple_spread"))


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
