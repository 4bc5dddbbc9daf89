"""Parameters of the nodes: one frozen dataclass per node, each field described and ranged.

A field without a default is required. All are read-only: a node takes its configuration at
start-up. What differs by sensor block, such as `limits.velocity`, is declared once the blocks are
known. What is given but never declared is refused.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from kdmarl_core.bundle import HIGHEST_RATE_HZ, SECURITY
from kdmarl_core.errors import UserError, did_you_mean, unknown
from kdmarl_core.schema import read_yaml
from kdmarl_ros.fields import described
from kdmarl_ros.qos import RELIABILITIES
from kdmarl_ros.safety import STALL_BEHAVIOURS
from kdmarl_ros.simulation import SimulationSettings

P = TypeVar("P")

# ROS tells whole numbers from others by their point.
_EXPECTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number with a point, such as 1.0",
    str: "a text",
    tuple[float, ...]: "a list of numbers with a point, such as [0.0, 1.0]",
}

_TYPES = {
    bool: Parameter.Type.BOOL,
    int: Parameter.Type.INTEGER,
    float: Parameter.Type.DOUBLE,
    str: Parameter.Type.STRING,
    tuple[float, ...]: Parameter.Type.DOUBLE_ARRAY,
}


@dataclass(frozen=True)
class PolicyParameters:
    """Parameters of `policy_node`."""

    bundle: str = described("folder of the bundle: model.onnx and manifest.json")
    mode: str = described(
        "when to act: once per step that arrived whole, or at a rate on the newest values",
        "lock_step",
        choices=("lock_step", "real_time"),
    )
    rate_hz: float = described(
        "decisions per second in real time; 0: the manifest's", 0.0, low=0.0, high=HIGHEST_RATE_HZ
    )
    timeout_s: float = described(
        "silence before the safe action; 0: three periods, at least 0.1 s", 0.0, low=0.0, high=60.0
    )
    sensor_reliability: str = described(
        "QoS of the sensor subscriptions", "best_effort", choices=tuple(RELIABILITIES)
    )
    autostart: bool = described("configure and activate at start-up", True)
    robot_type: str = described(
        "name of the robot's type: the launch lays the parameters of that type under its own", ""
    )
    sensor_map: str = described(
        "file that maps topics to blocks and actions to commands; empty: sensors/<block> only", ""
    )
    robot: str = described(
        "whose bundle it must be; empty: the last part of the node's namespace", ""
    )
    stamps: str = described(
        "when a message was measured: on receipt, or by its header's stamp",
        "receive",
        choices=("receive", "header"),
    )
    recover_after: int = described(
        "good messages of each input after a silence, before it is acted on again",
        1,
        low=1,
        high=1000,
    )
    on_stall: str = described(
        "what to publish while inputs cannot be used: the safe action; the last choice for "
        "stall_hold_s, then the safe action; the last choice; the action stall_action",
        "safe_action",
        choices=STALL_BEHAVIOURS,
    )
    stall_hold_s: float = described("how long hold_then_safe holds", 0.5, low=0.0, high=60.0)
    stall_action: str = described("name of the action that other_action means", "")
    message_delay_steps: int = described(
        "age at which peers' messages can be read; 0: the manifest's", 0, low=0, high=1000
    )
    message_loss: float = described(
        "share of peers' messages that are lost on purpose, to rehearse that",
        0.0,
        low=0.0,
        high=1.0,
    )
    override_timeout_s: float = described(
        "how long a person's action holds after it was last sent", 0.5, low=0.01, high=60.0
    )
    state_directory: str = described(
        "folder of what outlives the node, such as a stop; empty: ~/.ros/kdmarl/domain_<id>", ""
    )
    sole_publisher: bool = described(
        "refuse to activate while another node publishes this robot's actions", False
    )
    security: str = described(
        "signatures: not looked at, checked where there is one, or enforced with secured topics",
        "check",
        choices=SECURITY,
    )
    trusted_keys: str = described("folder of the public keys whose signatures are trusted", "")
    allow_unsecured_middleware: bool = described(
        "enforce signatures although the middleware does not secure topics", False
    )
    recorded: bool = described(
        "keep actions and messages until those who listen have got them, a recorder among them",
        False,
    )

    def __post_init__(self) -> None:
        if self.on_stall == "other_action" and not self.stall_action:
            raise UserError(
                "stall_action: not set, but on_stall is other_action; name that action"
            )
        if self.stall_action and self.on_stall != "other_action":
            raise UserError(
                f"stall_action: {self.stall_action} is for on_stall other_action, not "
                f"{self.on_stall}; change one"
            )
        if self.sensor_map and self.on_stall != "safe_action":
            raise UserError(
                f"on_stall: {self.on_stall} is for robots without sensor_map: a base brakes; "
                "leave one out"
            )
        if self.sensor_map and self.mode != "real_time":
            raise UserError(
                f"sensor_map: mode is {self.mode}, but real sensors know no steps; set mode to "
                "real_time"
            )


def refuse_to_share(given: PolicyParameters, where: str) -> None:
    """Raise a `UserError` if a robot cannot share its process with others.

    While one works, the others wait: what takes seconds is for a process of its own.
    """
    for name, value in (
        ("sensor_map", given.sensor_map),  # its base brakes before its node ends
        ("sole_publisher", given.sole_publisher),  # looks around for seconds
    ):
        if value:
            raise UserError(
                f"{where}: parameter {name}: '{value}' would hold up the other robots of the "
                "process; leave it out, or do not host this team"
            )


@dataclass(frozen=True)
class BlockParameters:
    """Parameters that each sensor block has, as `limits.velocity`."""

    limits: tuple[float, ...] = described(
        "least and greatest value; what is beyond is clipped and counted", ()
    )
    max_identical: int = described(
        "equal messages in a row before the block counts as frozen; 0: any number",
        0,
        low=0,
        high=1_000_000,
    )


@dataclass(frozen=True)
class BridgeParameters(SimulationSettings):
    """Parameters of `bridge_node`."""

    team: str = described("name of a team that ships, or a team file")
    results: str = described("file that gets one JSON line per finished episode")
    episodes: int = described("episodes to play", 100, low=1, high=1_000_000_000)
    mode: str = described(
        "when to step: once all robots have answered, or at a rate",
        "lock_step",
        choices=("lock_step", "real_time"),
    )
    rate_hz: float = described(
        "steps per second in real time; 0: the task's", 0.0, low=0.0, high=HIGHEST_RATE_HZ
    )
    seed: int = described("base seed of the episodes", 0, low=0, high=2**31 - 1)
    join_timeout_s: float = described(
        "wait for all robots before the first episode", 30.0, low=0.1, high=3600.0
    )
    state_directory: str = described(
        "folder of what outlives the node, such as a stop; empty: ~/.ros/kdmarl/domain_<id>", ""
    )
    recorded: bool = described(
        "wait for the recorder before the first episode, and keep for it what it has yet to get",
        False,
    )
    security: str = described("enforce: refuse to run on open topics", "off", choices=SECURITY)
    allow_unsecured_middleware: bool = described(
        "run with enforced security although the middleware does not secure topics", False
    )

    def __post_init__(self) -> None:
        if self.mode == "real_time":
            return
        remedy = "go by real time (--real-time, real_time:=true or mode:=real_time)"
        if self.sensor_loss:
            raise UserError(
                f"sensor_loss: {self.sensor_loss:g} in lock-step, which repeats what got lost; "
                f"{remedy}, or set no loss"
            )
        if self.rate_hz:
            raise UserError(
                f"rate_hz: {self.rate_hz:g} in lock-step, which goes as fast as robots answer; "
                f"{remedy}, or set no rate"
            )


@dataclass(frozen=True)
class RecorderParameters:
    """Parameters of `recorder_node`."""

    team: str = described("name of a team that ships, or a team file")
    bundles: str = described("folder with one bundle per robot: their manifests are recorded, too")
    recording: str = described("file to write; one of that name is replaced")
    robots: str = described("the robots' own parameters as JSON: they are recorded, too", "{}")


def declare(node: Node, kind: type[P], arguments: Sequence[str] | None = None) -> P:
    """Declare all fields of dataclass `kind` on a node and read their values.

    Args:
        node: the node.
        kind: of its parameters.
        arguments: ROS arguments of this node alone; None: those of the process.

    Raises:
        UserError: a required parameter is not set, or a value has the wrong type, is out of range,
            is not one of the choices or does not go with another; or a parameter file is given
            that has nothing for this node.
    """
    _refuse_files_of_others(node, sys.argv if arguments is None else arguments)
    hints = typing.get_type_hints(kind)
    values = {
        field.name: _declare_one(node, field, hints[field.name], field.name)
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
    }
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{node.get_fully_qualified_name()}: {error}") from None


def _refuse_files_of_others(node: Node, arguments: Sequence[str]) -> None:
    """ROS would ignore such a file: the node's name in it may be misspelt."""
    own = node.get_fully_qualified_name()
    for option, path in itertools.pairwise(arguments):
        if option != "--params-file":
            continue
        names = list(_node_names(read_yaml(Path(path))))
        if not any(_is_name_of(name, own) for name in names):
            found = f"only of {', '.join(names)}" if names else "of nobody"
            raise UserError(
                f"{path}: holds parameters {found}, so that '{own}' would ignore it; correct the "
                "node's name in it"
            )


def _node_names(document: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Names of the nodes that a ROS parameter file has sections of, with their wildcards."""
    for key, value in document.items():
        name = f"{above}/{str(key).strip('/')}"
        if isinstance(value, Mapping):
            if "ros__parameters" in value:
                yield name
            yield from _node_names(
                {k: v for k, v in value.items() if k != "ros__parameters"}, name
            )


def _is_name_of(name: str, node: str) -> bool:
    """Whether a name, in which * is one part and ** any number of parts, is a node's."""
    parts = {"*": "/[^/]+", "**": "(/[^/]+)*"}
    pattern = "".join(parts.get(part, f"/{re.escape(part)}") for part in name.split("/")[1:])
    return re.fullmatch(pattern, node) is not None


def check_values(kind: type[Any], values: Mapping[str, Any], where: str) -> None:
    """Raise a `UserError` for what a node would refuse, or overlook, when it starts.

    Args:
        kind: dataclass of the node's parameters.
        values: some of them, by name.
        where: file and key that the message begins with.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind) | {"use_sim_time": bool}
    of_blocks = {field.name: field for field in dataclasses.fields(BlockParameters)}
    block_hints = typing.get_type_hints(BlockParameters)
    for name, value in values.items():
        head, of_block, _ = name.partition(".")
        if of_block and kind is PolicyParameters and head in of_blocks:
            _check_value(of_blocks[head], block_hints[head], value, f"{where}: {name}")
        elif name not in hints:
            valid = [*fields, *of_blocks] if kind is PolicyParameters else fields
            raise UserError(f"{where}: unknown parameter '{name}'; {did_you_mean(name, valid)}")
        else:
            _check_value(fields.get(name), hints[name], value, f"{where}: {name}")


def _check_value(field: dataclasses.Field[Any] | None, hint: Any, value: Any, where: str) -> None:
    if hint == tuple[float, ...]:
        right = isinstance(value, list) and all(type(item) is float for item in value)
    else:
        right = type(value) is hint
    if not right:
        raise UserError(f"{where}: expected {_EXPECTED[hint]}, got {value!r}; correct it")
    if field is None:  # rclpy's own
        return
    low, high = field.metadata["low"], field.metadata["high"]
    if low is not None and not low <= value <= high:
        raise UserError(f"{where}: {value} is not between {low} and {high}; correct it")
    choices = field.metadata["choices"]
    if choices and value not in choices:
        raise UserError(f"{where}: unknown value '{value}'; {did_you_mean(value, choices)}")


def check_blocks(values: Mapping[str, Any], blocks: Sequence[str], where: str) -> None:
    """Raise a `UserError` if a parameter is of a block that a robot does not have."""
    heads = {field.name for field in dataclasses.fields(BlockParameters)}
    for name in values:
        head, of_block, block = name.partition(".")
        if of_block and head in heads and block not in blocks:
            raise unknown("block", block, blocks, f"{where}: {name}")


def declare_for_blocks(node: Node, blocks: Sequence[str]) -> dict[str, BlockParameters]:
    """Declare the parameters of every block, and read their values; raises as `declare` does."""
    hints = typing.get_type_hints(BlockParameters)
    return {
        block: BlockParameters(
            **{
                field.name: _declare_one(node, field, hints[field.name], f"{field.name}.{block}")
                for field in dataclasses.fields(BlockParameters)
            }
        )
        for block in blocks
    }


def refuse_undeclared(node: Node) -> None:
    """Raise a `UserError` if a parameter was given that the node does not have.

    ROS would ignore it, and a misspelt timeout would leave the default.
    """
    declared = node.list_parameters([], 0).names
    # rclpy has no public way to ask what was given.
    for name in node._parameter_overrides:
        if not node.has_parameter(name) and not name.startswith("qos_overrides."):
            raise UserError(
                f"{node.get_fully_qualified_name()}: unknown parameter '{name}'; "
                f"{did_you_mean(name, declared)}"
            )


def _declare_one(node: Node, field: dataclasses.Field[Any], hint: type, name: str) -> Any:
    where = f"{node.get_fully_qualified_name()}: parameter {name}"
    descriptor = _descriptor(field, hint)
    # The type of an empty list cannot be told: such a parameter is declared without a value.
    valueless = field.default in (dataclasses.MISSING, ())
    if node.has_parameter(name):  # from an earlier configuration; what was given stays given
        return _value(node.get_parameter_or(name).value, field)
    try:
        if valueless:
            parameter: Parameter[Any] = node.declare_parameter(name, _TYPES[hint], descriptor)
        else:
            parameter = node.declare_parameter(name, field.default, descriptor)
    except InvalidParameterTypeException as error:
        raise UserError(f"{where}: {error}; correct the parameter file") from None
    except InvalidParameterValueException as error:
        raise UserError(f"{where}: {' '.join(str(error).split())}; correct it") from None
    value = _value(parameter.value, field)
    if value is dataclasses.MISSING:
        raise UserError(
            f"{where}: not set ({field.metadata['description']}); set it with -p "
            f"{name}:=..., or in a parameter file under this very node name"
        )
    choices = field.metadata["choices"]
    if choices and value not in choices:
        raise UserError(f"{where}: unknown value '{value}'; {did_you_mean(value, choices)}")
    return value


def _value(found: Any, field: dataclasses.Field[Any]) -> Any:
    if found is None:
        return field.default
    return tuple(found) if isinstance(field.default, tuple) else found


def _descriptor(field: dataclasses.Field[Any], hint: type) -> ParameterDescriptor:
    low, high = field.metadata["low"], field.metadata["high"]
    choices = field.metadata["choices"]
    descriptor = ParameterDescriptor(
        description=field.metadata["description"],
        additional_constraints=f"one of: {', '.join(choices)}" if choices else "",
        read_only=True,
    )
    if low is not None and hint is float:
        descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
    if low is not None and hint is int:
        descriptor.integer_range = [IntegerRange(from_value=low, to_value=high)]
    return descriptor
