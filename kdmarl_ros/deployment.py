"""Team and bundles become the processes that the command line and the launch files start."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from kdmarl_core.errors import UserError, did_you_mean
from kdmarl_core.files import bundles_folder, executable_prefix, share_folder
from kdmarl_core.schema import read_yaml
from kdmarl_core.team import Robot, Team, load_bundles, load_team
from kdmarl_ros import topics
from kdmarl_ros.parameters import PolicyParameters, check_names

PACKAGE = "kdmarl_ros"
Value = str | int | float | bool


@dataclass(frozen=True)
class Process:
    """One node in a process of its own."""

    executable: str  # in lib/kdmarl_ros
    name: str  # the node's
    namespace: str  # empty: the root
    parameters: dict[str, Value]
    parameter_file: Path | None = None

    @property
    def label(self) -> str:
        """For people and log files: the robot, or the node where there is none."""
        return self.namespace or self.name

    def command(self) -> list[str]:
        """The command line that starts it with this interpreter."""
        program = executable_prefix() / "lib" / PACKAGE / self.executable
        command = [sys.executable, str(program), "--ros-args"]
        if self.namespace:
            command += ["-r", f"__ns:=/{self.namespace}"]
        if self.parameter_file:
            command += ["--params-file", str(self.parameter_file)]
        for key, value in self.parameters.items():
            command += ["-p", f"{key}:={_as_yaml(value)}"]
        return command


@dataclass(frozen=True)
class Deployment:
    """The processes of a swarm."""

    team: Team
    robots: tuple[Process, ...]
    bridge: Process
    results: Path

    @property
    def processes(self) -> tuple[Process, ...]:
        """Robots first: the bridge waits for them."""
        return (*self.robots, self.bridge)


def plan_swarm(
    team: str,
    *,
    bundles: str = "",
    robots: str = "",
    episodes: int,
    seed: int,
    results: Path,
) -> Deployment:
    """Check everything that can be checked before anything starts, and list the processes.

    Args:
        team: name of a team that ships, or a team file.
        bundles: folder with one bundle per robot; empty: where `kdmarl distil` writes by default.
        robots: folder with one parameter file per robot; empty: the one that ships.
        episodes: how many to play.
        seed: base seed of the episodes.
        results: the bridge's results file.

    Raises:
        UserError: the team, a bundle or a parameter file cannot be used.
    """
    checked = load_team(team)
    folder = Path(bundles) if bundles else bundles_folder(checked.name)
    load_bundles(checked, folder)
    files = Path(robots) if robots else share_folder() / "config" / "robots"
    bridge = Process(
        executable="bridge_node",
        name=topics.BRIDGE_NODE,
        namespace="",
        parameters={
            "team": str(checked.path.absolute()),
            "results": str(results.absolute()),
            "episodes": episodes,
            "seed": seed,
        },
    )
    processes = tuple(_plan_robot(robot, folder, files) for robot in checked.robots)
    return Deployment(checked, processes, bridge, results)


def check_parameter_file(path: Path, robot: str) -> None:
    """Refuse a file that ROS would silently ignore.

    Raises:
        UserError: the file is missing, names another node, or sets an unknown parameter.
    """
    document = read_yaml(path)
    expected = f"/{robot}/{topics.POLICY_NODE}"
    for node in document:
        if node != expected:
            raise UserError(
                f"{path}: node name '{node}' is not '{expected}', so its parameters would be "
                f"ignored; {did_you_mean(str(node), [expected])}"
            )
    section = document.get(expected)
    if not isinstance(section, dict) or list(section) != ["ros__parameters"]:
        raise UserError(f"{path}: {expected}: must hold the one key 'ros__parameters'; correct it")
    parameters = section["ros__parameters"]
    if not isinstance(parameters, dict | None):
        raise UserError(
            f"{path}: {expected}: ros__parameters: expected a mapping, got {parameters!r}; "
            "correct it"
        )
    check_names(PolicyParameters, map(str, parameters or {}), f"{path}: {expected}")


def _plan_robot(robot: Robot, bundles: Path, files: Path) -> Process:
    path = files / f"{robot.name}.yaml"
    check_parameter_file(path, robot.name)
    return Process(
        executable="policy_node",
        name=topics.POLICY_NODE,
        namespace=robot.name,
        parameters={"bundle": str((bundles / robot.name).absolute())},
        parameter_file=path.absolute(),
    )


def _as_yaml(value: Value) -> str:
    return json.dumps(value)  # JSON is YAML, and quotes what needs it
