"""Team and bundles become the processes that the command line and the launch files start."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, cast

from kdmarl_core.bundle import Manifest, Trust, admit
from kdmarl_core.errors import UserError, naming
from kdmarl_core.files import bundles_folder, executable_prefix, share_folder
from kdmarl_core.team import Robot, Team, load_team
from kdmarl_core.team_bundles import load_bundles, refuse_missing_bundles
from kdmarl_ros import sros2, topics
from kdmarl_ros.parameter_checks import check_blocks, check_values
from kdmarl_ros.parameter_files import (
    Value,
    refuse_strangers,
    robot_parameters,
    robots_folder,
    where_set,
)
from kdmarl_ros.parameters import (
    BridgeParameters,
    PolicyParameters,
    refuse_bundle_of_another,
    refuse_to_share,
    whose_bundle,
)
from kdmarl_ros.safety import default_timeout_s
from kdmarl_ros.security import trust
from kdmarl_ros.sensor_map import SensorMap, load_map
from kdmarl_ros.sros2 import Rights

PACKAGE = "kdmarl_ros"
RECORDING = "recording.mcap"
SIM_TIME = "use_sim_time"  # rclpy's own
ALLOW_UNSECURED = "allow_unsecured_middleware"
FASTDDS_PROFILES = "FASTDDS_DEFAULT_PROFILES_FILE"


class SecurityPlan(NamedTuple):
    """What is asked of bundles and of the middleware."""

    level: str = ""  # one of SECURITY; empty: what the parameter files say
    trusted_keys: str = ""  # folder of public keys
    keystore: str = ""  # of SROS2
    allow_unsecured_middleware: bool = False

    def parameters(self) -> dict[str, Value]:
        """What robots are told of it, over their files.

        Raises:
            UserError: there is a keystore that would not be used.
        """
        told: dict[str, Value] = {}
        if self.keystore and self.level != "enforce":
            raise UserError(
                f"keystore: {self.keystore}: topics are secured only where security is to be "
                "enforced; ask for that, too, or give no keystore"
            )
        if self.level:
            told["security"] = self.level
        if self.trusted_keys:
            told["trusted_keys"] = str(Path(self.trusted_keys).absolute())
        if self.allow_unsecured_middleware:
            told[ALLOW_UNSECURED] = True
        return told


AS_CONFIGURED = SecurityPlan()


@dataclass(frozen=True)
class Process:
    """One node in a process of its own."""

    executable: str  # in lib/kdmarl_ros
    name: str  # the node's
    namespace: str  # empty: the root
    parameters: dict[str, Value]
    enclave: str = ""  # its place in the keystore; empty: topics are not secured
    environment: Mapping[str, str] = field(default_factory=dict)  # beside what is inherited
    hosted: tuple[Process, ...] = ()  # whose nodes are all in this one

    @property
    def label(self) -> str:
        """For people and log files: the robot, or the node where there is none."""
        return self.namespace or self.name

    @property
    def enclave_arguments(self) -> list[str]:
        """The ROS arguments that name its enclave, if it has one."""
        return ["--enclave", f"/{self.enclave}"] if self.enclave else []

    def ros_arguments(self) -> list[str]:
        """What its node is told, as ROS arguments."""
        arguments = ["--ros-args"]
        if self.namespace:
            arguments += ["-r", f"__ns:=/{self.namespace}"]
        arguments += self.enclave_arguments
        for key, value in self.parameters.items():
            arguments += ["-p", f"{key}:={_as_yaml(value)}"]
        return arguments

    def command(self, *more: str) -> list[str]:
        """The command line that starts it with this interpreter; more ROS arguments come last."""
        program = executable_prefix() / "lib" / PACKAGE / self.executable
        command = [sys.executable, str(program), *self.ros_arguments(), *more]
        for process in self.hosted:
            command += ["--", *process.ros_arguments()]
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
    host: Process | None = None  # of all robots; None: each has a process of its own

    @property
    def flying(self) -> tuple[Process, ...]:
        """The processes that the robots are in."""
        return (self.host,) if self.host else self.robots

    @property
    def processes(self) -> tuple[Process, ...]:
        """The recorder and robots first: the bridge waits for them."""
        recorder = (self.recorder,) if self.recorder else ()
        return (*recorder, *self.flying, self.bridge)


def plan_swarm(
    team: str,
    *,
    bundles: str = "",
    robots: str = "",
    episodes: int,
    seed: int,
    results: Path,
    task: str = "",
    overrides: Mapping[str, Value] = MappingProxyType({}),
    simulation: Mapping[str, Value] = MappingProxyType({}),
    security: SecurityPlan = AS_CONFIGURED,
    recording: Path | None = None,
    hosted: bool = False,
) -> Deployment:
    """Check everything that can be checked before anything starts, and list the processes.

    Args:
        team: name of a team that ships, or a team file.
        bundles: folder with one bundle per robot; empty: where `kdmarl distil` writes by default.
        robots: folder of the robots' parameter files; empty: the one that ships.
        episodes: how many to play.
        seed: base seed of the episodes.
        results: the bridge's results file.
        task: what the team must play; empty: whatever its file says.
        overrides: parameters of every robot that win over its files.
        simulation: further parameters of the bridge, such as `SimulationSettings`.
        security: what is asked of bundles and of the middleware.
        recording: file that receives all messages of the run, if any.
        hosted: all robots in one process, not each in its own.

    Raises:
        UserError: the team, a bundle, a parameter file or a keystore cannot be used, or security
            is to be enforced where the middleware cannot.
    """
    checked = load_team(team)
    if task and task != checked.task.spec.name:
        raise UserError(
            f"{checked.path}: task: {checked.task.spec.name} is not {task}, which was asked for; "
            "choose another team, or no task"
        )
    folder = _bundles_folder(checked, bundles)
    refuse_missing_bundles(checked, folder)
    files = robots_folder(robots)
    names = [robot.name for robot in checked.robots]
    refuse_strangers(files, names)
    if recording:
        overrides = {**overrides, "recorded": True}
    told = {**overrides, **security.parameters()}
    planned = [_robot_of(robot, files, folder, told) for robot in checked.robots]
    policies = load_bundles(checked, folder, {robot.name: robot.trust for robot in planned})
    for robot, policy in zip(planned, policies, strict=True):
        refuse_bundle_of_another(robot.given, robot.name, policy.manifest.robot)
    timing = _timing(planned, [policy.manifest for policy in policies], files)
    processes = tuple(robot.process for robot in planned)
    environment = _middleware(recording is not None)
    bridge = Process(
        executable="bridge_node",
        name=topics.BRIDGE_NODE,
        namespace="",
        environment=environment,
        parameters={
            "team": str(checked.path.absolute()),
            "results": str(results.absolute()),
            "episodes": episodes,
            "seed": seed,
            **{key: overrides[key] for key in ("rate_hz", "recorded") if key in overrides},
            **timing,
            **simulation,
            **({"security": security.level} if security.level else {}),
        },
    )
    check_values(BridgeParameters, bridge.parameters, "bridge")
    BridgeParameters(**cast("dict[str, Any]", bridge.parameters))
    recorder = None
    if recording:
        if importlib.util.find_spec("mcap") is None:
            raise UserError("recording needs the Python package mcap; install kdmarl[record]")
        recorder = Process(
            executable="recorder_node",
            name=topics.RECORDER_NODE,
            namespace="",
            environment=environment,
            parameters={
                "team": str(checked.path.absolute()),
                "bundles": str(folder.absolute()),
                "recording": str(recording.absolute()),
                "robots": json.dumps({robot.name: robot.parameters for robot in planned}),
            },
        )
    host = _host(planned, security) if hosted else None
    deployment = Deployment(checked, processes, bridge, results, recorder, host=host)
    if security.level != "enforce":
        return deployment
    keystore, warning = _keystore(sros2.team_rights(checked), bridge, security)
    enclosed = tuple(_enclosed(robot, keystore) for robot in processes)
    return replace(
        deployment,
        robots=enclosed,
        host=host and replace(host, hosted=enclosed),
        bridge=_enclosed(bridge, keystore),
        recorder=recorder and _enclosed(recorder, keystore),
        warning=warning,
    )


def new_recording(results: Path) -> Path:
    """A recording beside results; those of their earlier episodes stay."""
    first = results.with_name(RECORDING)
    names = itertools.chain(
        [first], (first.with_stem(f"{first.stem}_{n}") for n in itertools.count(2))
    )
    return next(path for path in names if not path.exists())


def plan_robot(
    robot: str,
    *,
    bundle: str,
    robots: str = "",
    overrides: Mapping[str, Value] = MappingProxyType({}),
    security: SecurityPlan = AS_CONFIGURED,
) -> Process:
    """One robot's process, checked as `plan_swarm` does.

    Args:
        robot: its name, which becomes its namespace.
        bundle: folder of its bundle.
        robots: folder of the robots' parameter files; empty: the one that ships.
        overrides: parameters that win over its files.
        security: what is asked of its bundle and of the middleware.

    Raises:
        UserError: the name, the bundle, a parameter file or the keystore cannot be used.
    """
    if not (robot.isidentifier() and robot.isascii()):
        raise UserError(f"robot '{robot}': not a valid namespace; use letters, digits and '_'")
    told = {**overrides, **security.parameters()}
    planned = _robot(robot, robots_folder(robots), Path(bundle), told)
    manifest = planned.admit()
    check_blocks(planned.parameters, [block.name for block in manifest.blocks], robot)
    sensor_map = planned.sensor_map(manifest)
    if security.level != "enforce":
        return planned.process
    blocks = [block.name for block in manifest.blocks]
    inputs = topics.inputs(blocks, masked=manifest.legal_actions_vary)
    rights = sros2.robot_rights(
        robot,
        inputs,
        sensor_map,
        tells=manifest.message is not None,
        peers=[peer.robot for peer in manifest.peers],
    )
    keystore, _ = _keystore({robot: rights}, planned.process, security)
    return _enclosed(planned.process, keystore)


def sensor_maps(team: Team, bundles: str, robots: str) -> dict[str, SensorMap]:
    """The sensor maps of a team's robots, of those whose parameter files name one.

    Args:
        team: whose robots.
        bundles: folder with one bundle per robot; empty: where `kdmarl distil` writes by default.
        robots: folder of the robots' parameter files.

    Raises:
        UserError: a parameter file, a map or the bundle of a robot with a map cannot be used.
    """
    maps = {}
    for robot in team.robots:
        folder = _bundles_folder(team, bundles)
        planned = _robot_of(robot, Path(robots), folder, {})
        if planned.given.sensor_map:
            sensor_map = planned.sensor_map(planned.admit())
            assert sensor_map is not None
            maps[robot.name] = sensor_map
    return maps


def _enclosed(process: Process, keystore: Path | None) -> Process:
    """The same process in its enclave; without a keystore, on open topics as the user allows."""
    parameters = dict(process.parameters)
    if process.executable != "recorder_node":
        parameters[ALLOW_UNSECURED] = keystore is None
    if keystore is None:
        return replace(process, parameters=parameters)
    return replace(
        process,
        parameters=parameters,
        enclave=process.label,
        environment={**process.environment, **sros2.environment(keystore)},
    )


def _keystore(
    rights: Mapping[str, Rights], probe: Process, security: SecurityPlan
) -> tuple[Path | None, str]:
    """The keystore to use; None, and a warning, where the middleware could not use one.

    Args:
        rights: what it must give, by enclave.
        probe: the process whose enclave the middleware is tried with.
        security: what is asked.
    """
    folder = Path(security.keystore)
    if not security.keystore:
        if security.allow_unsecured_middleware:
            return None, "topics are NOT secured: no keystore given"
        raise UserError("security: enforce: no keystore given; make one with 'kdmarl keystore'")
    sros2.check_keystore(folder, rights, sros2.ros_domain(os.environ))
    reason = sros2.unsecured(folder, probe.label, probe.name, probe.namespace)
    if reason is None:
        return folder, ""
    if not security.allow_unsecured_middleware:
        raise UserError(
            f"security: enforce: the middleware cannot keep robots to their own topics ({reason});"
            " use a ROS 2 built with DDS-Security, or allow an unsecured middleware: signatures "
            "are then enforced, topics are open"
        )
    return None, f"topics are NOT secured: {reason}"


def in_time(real_time: bool, rate_hz: float | None) -> dict[str, Value]:
    """When robots and bridge act, as far as it is not left to the parameter files."""
    told: dict[str, Value] = {"mode": "real_time"} if real_time else {}
    return told if rate_hz is None else told | {"rate_hz": rate_hz}


def _timing(
    robots: Sequence[_Robot], manifests: Sequence[Manifest], files: Path
) -> dict[str, Value]:
    """What the bridge is told of its robots' mode and rate, which must be alike.

    Raises:
        UserError: they are not, or a robot would listen to real sensors.
    """
    modes = [robot.given.mode for robot in robots]
    rates = [
        robot.given.rate_hz or manifest.rate_hz if robot.given.mode == "real_time" else 0.0
        for robot, manifest in zip(robots, manifests, strict=True)
    ]
    for robot, mode, rate_hz in zip(robots, modes, rates, strict=True):
        if robot.given.sensor_map:
            raise UserError(
                f"{where_set(robot.name, files, 'sensor_map')}: sensor_map: {robot.name} would "
                "listen to real sensors, which no bridge publishes; start it with "
                "robot.launch.py, or leave the map out"
            )
        for key, own, first in (("mode", mode, modes[0]), ("rate_hz", rate_hz, rates[0])):
            if own != first:
                setting = robot if key in robot.parameters else robots[0]
                raise UserError(
                    f"{where_set(setting.name, files, key)}: {key}: {own} of {robot.name} is not "
                    f"{first} of {robots[0].name}, but one bridge plays for both; make them equal"
                )
    return {"mode": modes[0], "rate_hz": rates[0]} if modes[0] == "real_time" else {}


class _Robot(NamedTuple):
    """What one robot's node is told."""

    name: str
    parameters: dict[str, Any]
    given: PolicyParameters  # the same, without those of blocks

    @property
    def trust(self) -> Trust:
        return trust(self.given.security, self.given.trusted_keys)

    @property
    def process(self) -> Process:
        return Process(
            executable="policy_node",
            name=topics.POLICY_NODE,
            namespace=self.name,
            parameters=self.parameters,
            environment=_middleware(self.given.recorded),
        )

    def admit(self) -> Manifest:
        """The manifest of its bundle, if that is this robot's."""
        robot = whose_bundle(self.given, self.name)
        manifest = admit(Path(self.given.bundle), self.trust, robot).manifest
        refuse_bundle_of_another(self.given, self.name, manifest.robot)
        return manifest

    def sensor_map(self, manifest: Manifest) -> SensorMap | None:
        """Its sensor map, if it has one, checked against its bundle."""
        if not self.given.sensor_map:
            return None
        rate_hz = self.given.rate_hz or manifest.rate_hz
        timeout_s = self.given.timeout_s or default_timeout_s(rate_hz)
        return load_map(Path(self.given.sensor_map), manifest, f"/{self.name}", timeout_s)


def _robot(name: str, files: Path, bundle: Path, overrides: Mapping[str, Value]) -> _Robot:
    if name in topics.RESERVED:
        raise UserError(f"robot '{name}': that name is the swarm's own; choose another")
    check_values(PolicyParameters, overrides, f"{name}: overrides")
    parameters: dict[str, Any] = robot_parameters(name, files)
    parameters |= {"bundle": str(bundle.absolute()), **overrides}
    fields = {field.name for field in dataclasses.fields(PolicyParameters)}
    with naming(name):
        given = PolicyParameters(**{k: v for k, v in parameters.items() if k in fields})
    return _Robot(name, parameters, given)


def _robot_of(robot: Robot, files: Path, bundles: Path, told: Mapping[str, Value]) -> _Robot:
    """A team's robot; one that flies another team's student is told whose bundle that is."""
    borrowed = {"robot": robot.bundle} if robot.flies else {}
    planned = _robot(robot.name, files, bundles / robot.bundle, {**borrowed, **told})
    check_blocks(planned.parameters, [block.name for block in robot.blocks], robot.name)
    return planned


def _host(robots: list[_Robot], security: SecurityPlan) -> Process:
    """One process of all robots."""
    if security.level == "enforce" and security.keystore:
        raise UserError(
            f"keystore: {security.keystore}: robots that are hosted in one process share its "
            "rights, and none can be kept to its own topics; do not host them"
        )
    for robot in robots:
        refuse_to_share(robot.given, robot.name)
    return Process(
        executable="policy_host",
        name=topics.POLICY_HOST,
        namespace="",
        parameters={},
        environment=_middleware(any(robot.given.recorded for robot in robots)),
        hosted=tuple(robot.process for robot in robots),
    )


def _middleware(recorded: bool) -> dict[str, str]:
    """What Fast DDS is told, where the user does not tell it anything; others do not read it."""
    if not recorded or FASTDDS_PROFILES in os.environ:
        return {}
    return {FASTDDS_PROFILES: str(share_folder() / "config" / "fastdds" / "recorded.xml")}


def _bundles_folder(team: Team, given: str) -> Path:
    return Path(given) if given else bundles_folder(team.students.name)


def _as_yaml(value: Value) -> str:
    return json.dumps(value)  # JSON is YAML, and quotes what needs it
