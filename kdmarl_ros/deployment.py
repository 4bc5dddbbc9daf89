"""Team and bundles become the processes that the command line and the launch files start."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kdmarl_core.bundle import Manifest, read_bundle
from kdmarl_core.errors import UserError, did_you_mean
from kdmarl_core.files import bundles_folder, executable_prefix, share_folder
from kdmarl_core.schema import read_yaml
from kdmarl_core.team import Team, load_bundles, load_team
from kdmarl_ros import topics
from kdmarl_ros.parameters import PolicyParameters, check_values
from kdmarl_ros.safety import default_timeout_s
from kdmarl_ros.sensor_map import load_map

PACKAGE = "kdmarl_ros"
ALL = "all.yaml"
TYPES = "types"
PATHS = ("bundle", "sensor_map")  # parameters whose relative paths begin at their file
SIM_TIME = "use_sim_time"  # rclpy's own
Value = str | int | float | bool


@dataclass(frozen=True)
class Process:
    """One node in a process of its own."""

    executable: str  # in lib/kdmarl_ros
    name: str  # the node's
    namespace: str  # empty: the root
    parameters: dict[str, Value]

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
    overrides: Mapping[str, Value] = MappingProxyType({}),
) -> Deployment:
    """Check everything that can be checked before anything starts, and list the processes.

    Args:
        team: name of a team that ships, or a team file.
        bundles: folder with one bundle per robot; empty: where `kdmarl distil` writes by default.
        robots: folder of the robots' parameter files; empty: the one that ships.
        episodes: how many to play.
        seed: base seed of the episodes.
        results: the bridge's results file.
        overrides: parameters of every robot that win over its files.

    Raises:
        UserError: the team, a bundle or a parameter file cannot be used.
    """
    checked = load_team(team)
    folder = Path(bundles) if bundles else bundles_folder(checked.name)
    policies = load_bundles(checked, folder)
    files = _robots_folder(robots)
    _refuse_strangers(files, [robot.name for robot in checked.robots])
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
    processes = tuple(
        _plan(robot.name, files, folder / robot.name, policy.manifest, overrides)
        for robot, policy in zip(checked.robots, policies, strict=True)
    )
    return Deployment(checked, processes, bridge, results)


def plan_robot(
    robot: str,
    *,
    bundle: str,
    robots: str = "",
    overrides: Mapping[str, Value] = MappingProxyType({}),
) -> Process:
    """One robot's process, checked as `plan_swarm` does.

    Args:
        robot: its name, which becomes its namespace.
        bundle: folder of its bundle.
        robots: folder of the robots' parameter files; empty: the one that ships.
        overrides: parameters that win over its files.

    Raises:
        UserError: the name, the bundle or a parameter file cannot be used.
    """
    if not (robot.isidentifier() and robot.isascii()):
        raise UserError(f"robot '{robot}': not a valid namespace; use letters, digits and '_'")
    manifest, _ = read_bundle(Path(bundle))
    return _plan(robot, _robots_folder(robots), Path(bundle), manifest, overrides)


def launch_overrides(rate: str, use_sim_time: str) -> dict[str, Value]:
    """Launch arguments, which are texts, as parameters of robots.

    Raises:
        UserError: `rate` is no number, or `use_sim_time` neither true nor false.
    """
    if use_sim_time.lower() not in ("true", "false"):
        raise UserError(f"use_sim_time: '{use_sim_time}' must be true or false; correct it")
    overrides: dict[str, Value] = {SIM_TIME: use_sim_time.lower() == "true"}
    if rate:
        try:
            overrides["rate_hz"] = float(rate)
        except ValueError:
            raise UserError(f"rate: '{rate}' is not a number; give decisions per second") from None
    return overrides


def robot_parameters(robot: str, folder: Path) -> dict[str, Value]:
    """The parameters of one robot's files: `all`, over them its type's, over them its own.

    The type is what the parameter `robot_type` says in the robot's own file or, if it has none
    there, in `all.yaml`. A robot without a file of its own needs such a type.

    Raises:
        UserError: a file is missing, names another node, or sets what the node does not take.
    """
    shared = read_parameters(folder / ALL, f"/**/{topics.POLICY_NODE}")
    own: dict[str, Value] = {}
    path = folder / f"{robot}.yaml"
    if path.is_file() or not shared.get("robot_type"):
        own = read_parameters(path, f"/{robot}/{topics.POLICY_NODE}")
    name = own.get("robot_type", shared.get("robot_type", ""))
    of_type: dict[str, Value] = {}
    if name:
        path = folder / TYPES / f"{name}.yaml"
        of_type = read_parameters(path, f"/**/{topics.POLICY_NODE}")
        if of_type.get("robot_type", name) != name:
            raise UserError(
                f"{path}: robot_type: '{of_type['robot_type']}' is not '{name}', which the file's "
                "name says; remove it"
            )
    return {**shared, **of_type, **own}


def read_parameters(path: Path, node: str) -> dict[str, Value]:
    """The parameters that a ROS parameter file sets for one node, paths in it made absolute.

    Raises:
        UserError: the file is missing, names another node (ROS would ignore it silently), or sets
            what the node does not take.
    """
    document = read_yaml(path)
    for name in document:
        if name != node:
            raise UserError(
                f"{path}: node name '{name}' is not '{node}', so its parameters would be "
                f"ignored; {did_you_mean(str(name), [node])}"
            )
    section = document.get(node)
    if not isinstance(section, dict) or list(section) != ["ros__parameters"]:
        raise UserError(f"{path}: {node}: must hold the one key 'ros__parameters'; correct it")
    parameters = section["ros__parameters"]
    if not isinstance(parameters, dict | None):
        raise UserError(
            f"{path}: {node}: ros__parameters: expected a mapping, got {parameters!r}; correct it"
        )
    values = _flat(parameters or {})
    check_values(PolicyParameters, values, f"{path}: {node}")
    for key in PATHS:
        if values.get(key):
            values[key] = str((path.parent / values[key]).absolute())
    return values


def _flat(parameters: Mapping[Any, Any], above: str = "") -> dict[str, Any]:
    """Nested keys joined by points, as ROS does."""
    values: dict[str, Any] = {}
    for key, value in parameters.items():
        if isinstance(value, Mapping):
            values |= _flat(value, f"{above}{key}.")
        else:
            values[f"{above}{key}"] = value
    return values


def _plan(
    robot: str, files: Path, bundle: Path, manifest: Manifest, overrides: Mapping[str, Value]
) -> Process:
    check_values(PolicyParameters, overrides, f"{robot}: overrides")
    parameters: dict[str, Any] = robot_parameters(robot, files)
    parameters |= {"bundle": str(bundle.absolute()), **overrides}
    try:
        given = PolicyParameters(**{k: v for k, v in parameters.items() if k != SIM_TIME})
    except UserError as error:
        raise UserError(f"{robot}: {error}") from None
    if given.sensor_map:
        rate_hz = given.rate_hz or manifest.rate_hz
        timeout_s = given.timeout_s or default_timeout_s(rate_hz)
        load_map(Path(given.sensor_map), manifest, f"/{robot}", timeout_s)
    return Process(
        executable="policy_node",
        name=topics.POLICY_NODE,
        namespace=robot,
        parameters=parameters,
    )


def _robots_folder(given: str) -> Path:
    return Path(given) if given else share_folder() / "config" / "robots"


def _refuse_strangers(folder: Path, robots: list[str]) -> None:
    """Refuse a file of no robot while a robot has none: its name may be misspelt."""
    files = {path.stem for path in folder.glob("*.yaml")} - {Path(ALL).stem}
    without = [robot for robot in robots if robot not in files]
    for stranger in sorted(files - set(robots)):
        if without:
            raise UserError(
                f"{folder / stranger}.yaml: no robot of the team is called '{stranger}'; "
                f"{did_you_mean(stranger, without)} A file of no robot is allowed once every "
                "robot has one"
            )


def _as_yaml(value: Value) -> str:
    return json.dumps(value)  # JSON is YAML, and quotes what needs it
