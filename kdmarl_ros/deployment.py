"""Team and bundles become the processes that the command line and the launch files start."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from kdmarl_core.errors import UserError, did_you_mean
from kdmarl_core.files import bundles_folder, executable_prefix, share_folder
from kdmarl_core.schema import read_yaml
from kdmarl_core.team import Robot, Team, load_bundles, load_team
from kdmarl_ros import sros2, topics
from kdmarl_ros.parameters import PolicyParameters, check_names
from kdmarl_ros.security import trust

PACKAGE = "kdmarl_ros"
RECORDING = "recording.mcap"
Value = str | int | float | bool


class SecurityPlan(NamedTuple):
    """What is asked of bundles and of the middleware."""

    level: str = ""  # one of SECURITY; empty: what the parameter files say
    trusted_keys: str = ""  # folder of public keys
    keystore: str = ""  # of SROS2
    allow_unsecured_middleware: bool = False


AS_CONFIGURED = SecurityPlan()


@dataclass(frozen=True)
class Process:
    """One node in a process of its own."""

    executable: str  # in lib/kdmarl_ros
    name: str  # the node's
    namespace: str  # empty: the root
    parameters: dict[str, Value]
    parameter_file: Path | None = None
    enclave: str = ""  # its place in the keystore; empty: topics are not secured
    environment: Mapping[str, str] = field(default_factory=dict)  # beside what is inherited

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
        if self.enclave:
            command += ["--enclave", f"/{self.enclave}"]
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
    recorder: Process | None = None
    warning: str = ""  # what the user must know although the swarm flies

    @property
    def processes(self) -> tuple[Process, ...]:
        """The recorder and robots first: the bridge waits for them."""
        recorder = (self.recorder,) if self.recorder else ()
        return (*recorder, *self.robots, self.bridge)


def plan_swarm(
    team: str,
    *,
    bundles: str = "",
    robots: str = "",
    episodes: int,
    seed: int,
    results: Path,
    security: SecurityPlan = AS_CONFIGURED,
    recording: Path | None = None,
) -> Deployment:
    """Check everything that can be checked before anything starts, and list the processes.

    Args:
        team: name of a team that ships, or a team file.
        bundles: folder with one bundle per robot; empty: where `kdmarl distil` writes by default.
        robots: folder with one parameter file per robot; empty: the one that ships.
        episodes: how many to play.
        seed: base seed of the episodes.
        results: the bridge's results file.
        security: what is asked of bundles and of the middleware.
        recording: file that receives all messages of the run, if any.

    Raises:
        UserError: the team, a bundle, a parameter file or a keystore cannot be used, or security
            is to be enforced where the middleware cannot.
    """
    checked = load_team(team)
    folder = Path(bundles) if bundles else bundles_folder(checked.name)
    load_bundles(checked, folder, trust(security.level or "check", security.trusted_keys))
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
    recorder = None
    if recording:
        if importlib.util.find_spec("mcap") is None:
            raise UserError("recording needs the Python package mcap; install kdmarl[record]")
        bridge.parameters["recorded"] = True
        recorder = Process(
            executable="recorder_node",
            name=topics.RECORDER_NODE,
            namespace="",
            parameters={
                "team": str(checked.path.absolute()),
                "bundles": str(folder.absolute()),
                "recording": str(recording.absolute()),
            },
        )
    processes = tuple(_plan_robot(robot, folder, files) for robot in checked.robots)
    return _secured(Deployment(checked, processes, bridge, results, recorder), security)


def _secured(deployment: Deployment, security: SecurityPlan) -> Deployment:
    """The same processes, told what security is asked of them and where their enclaves are."""
    if not security.level:
        return deployment
    asked: dict[str, Value] = {"security": security.level}
    keystore, warning = None, ""
    if security.level == "enforce":
        keystore, warning = _keystore(deployment, security)
        asked["allow_unsecured_middleware"] = keystore is None
    enclosed = {} if keystore is None else sros2.environment(keystore)

    def secure(process: Process, parameters: Mapping[str, Value]) -> Process:
        return replace(
            process,
            parameters={**process.parameters, **parameters},
            enclave=process.label if keystore else "",
            environment=enclosed,
        )

    of_robots = dict(asked)
    if security.trusted_keys:
        of_robots["trusted_keys"] = str(Path(security.trusted_keys).absolute())
    return replace(
        deployment,
        robots=tuple(secure(robot, of_robots) for robot in deployment.robots),
        bridge=secure(deployment.bridge, asked),
        recorder=deployment.recorder and secure(deployment.recorder, {}),
        warning=warning,
    )


def _keystore(deployment: Deployment, security: SecurityPlan) -> tuple[Path | None, str]:
    """The keystore to use; None, and a warning, where the middleware could not use one."""
    folder = Path(security.keystore)
    if not security.keystore:
        if security.allow_unsecured_middleware:
            return None, "topics are NOT secured: no keystore given"
        raise UserError(
            "security: enforce: no keystore given; make one with "
            f"'kdmarl keystore --team {deployment.team.path}'"
        )
    rights = sros2.team_rights(deployment.team)
    sros2.check_keystore(folder, rights, sros2.ros_domain(os.environ))
    bridge = deployment.bridge
    reason = sros2.unsecured(folder, bridge.label, bridge.name, bridge.namespace)
    if reason is None:
        return folder, ""
    if not security.allow_unsecured_middleware:
        raise UserError(
            f"security: enforce: the middleware cannot keep robots to their own topics ({reason});"
            " use a ROS 2 built with DDS-Security, or allow an unsecured middleware: signatures "
            "are then enforced, topics are open"
        )
    return None, f"topics are NOT secured: {reason}"


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
