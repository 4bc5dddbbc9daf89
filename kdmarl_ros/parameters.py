"""Parameters of the nodes: one frozen dataclass per node, each field described and ranged.

A field without a default is required. All are read-only: a node takes its configuration at
start-up.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from kdmarl_core.bundle import SECURITY
from kdmarl_core.errors import UserError, did_you_mean
from kdmarl_ros.qos import RELIABILITIES

P = TypeVar("P")

_TYPES = {
    bool: Parameter.Type.BOOL,
    int: Parameter.Type.INTEGER,
    float: Parameter.Type.DOUBLE,
    str: Parameter.Type.STRING,
}


def _field(
    description: str,
    default: Any = dataclasses.MISSING,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    metadata = {"description": description, "low": low, "high": high, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class PolicyParameters:
    """Parameters of `policy_node`."""

    bundle: str = _field("folder of the bundle: model.onnx and manifest.json")
    mode: str = _field(
        "when to act: once per step that arrived whole, or at a rate on the newest values",
        "lock_step",
        choices=("lock_step", "real_time"),
    )
    rate_hz: float = _field(
        "decisions per second in real time; 0: the manifest's", 0.0, low=0.0, high=1000.0
    )
    timeout_s: float = _field(
        "silence before the safe action; 0: three periods, at least 0.1 s", 0.0, low=0.0, high=60.0
    )
    sensor_reliability: str = _field(
        "QoS of the sensor subscriptions", "best_effort", choices=tuple(RELIABILITIES)
    )
    autostart: bool = _field("configure and activate at start-up", True)
    security: str = _field(
        "signatures: not looked at, checked where there is one, or enforced with secured topics",
        "check",
        choices=SECURITY,
    )
    trusted_keys: str = _field("folder of the public keys whose signatures are trusted", "")
    allow_unsecured_middleware: bool = _field(
        "enforce signatures although the middleware does not secure topics", False
    )


@dataclass(frozen=True)
class BridgeParameters:
    """Parameters of `bridge_node`."""

    team: str = _field("name of a team that ships, or a team file")
    results: str = _field("file that gets one JSON line per finished episode")
    episodes: int = _field("episodes to play", 100, low=1, high=1_000_000_000)
    seed: int = _field("base seed of the episodes", 0, low=0, high=2**31 - 1)
    step_deadline_s: float = _field(
        "wait for a robot's action before its safe action is used", 1.0, low=0.001, high=3600.0
    )
    join_timeout_s: float = _field(
        "wait for all robots before the first episode", 30.0, low=0.1, high=3600.0
    )
    recorded: bool = _field("wait for the recorder before the first episode", False)
    security: str = _field("enforce: refuse to run on open topics", "off", choices=SECURITY)
    allow_unsecured_middleware: bool = _field(
        "run with enforced security although the middleware does not secure topics", False
    )


@dataclass(frozen=True)
class RecorderParameters:
    """Parameters of `recorder_node`."""

    team: str = _field("name of a team that ships, or a team file")
    bundles: str = _field("folder with one bundle per robot: their manifests are recorded, too")
    recording: str = _field("file to write; one of that name is replaced")


def declare(node: Node, kind: type[P]) -> P:
    """Declare all fields of dataclass `kind` on a node and read their values.

    Raises:
        UserError: a required parameter is not set, or a value has the wrong type, is out of range
        or
            is not one of the choices.
    """
    hints = typing.get_type_hints(kind)
    values = {
        field.name: _declare_one(node, field, hints[field.name])
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
    }
    return kind(**values)


def check_names(kind: type[Any], names: typing.Iterable[str], where: str) -> None:
    """Raise a `UserError` if a parameter file sets what the node does not have."""
    valid = [field.name for field in dataclasses.fields(kind)]
    for name in names:
        if name not in valid and name != "use_sim_time":
            raise UserError(f"{where}: unknown parameter '{name}'; {did_you_mean(name, valid)}")


def _declare_one(node: Node, field: dataclasses.Field[Any], hint: type) -> Any:
    where = f"{node.get_fully_qualified_name()}: parameter {field.name}"
    descriptor = _descriptor(field, hint)
    try:
        if field.default is dataclasses.MISSING:
            parameter: Parameter[Any] = node.declare_parameter(
                field.name, _TYPES[hint], descriptor
            )
        else:
            parameter = node.declare_parameter(field.name, field.default, descriptor)
    except InvalidParameterTypeException as error:
        raise UserError(f"{where}: {error}; correct the parameter file") from None
    except InvalidParameterValueException as error:
        raise UserError(f"{where}: {' '.join(str(error).split())}; correct it") from None
    value = parameter.value
    if value is None:
        raise UserError(
            f"{where}: not set ({field.metadata['description']}); set it with -p "
            f"{field.name}:=..., or in a parameter file under this very node name"
        )
    choices = field.metadata["choices"]
    if choices and value not in choices:
        raise UserError(f"{where}: unknown value '{value}'; {did_you_mean(value, choices)}")
    return value


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
