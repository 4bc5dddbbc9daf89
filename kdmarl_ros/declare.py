"""A node's parameters, declared and read as its dataclass in `parameters` says.

What differs by sensor block, such as `limits.velocity`, is declared once the blocks are known.
What is given but never declared is refused.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from kdmarl_core.errors import UserError, did_you_mean, naming
from kdmarl_core.schema import read_yaml
from kdmarl_ros.parameters import BlockParameters

P = TypeVar("P")

_TYPES = {
    bool: Parameter.Type.BOOL,
    int: Parameter.Type.INTEGER,
    float: Parameter.Type.DOUBLE,
    str: Parameter.Type.STRING,
    tuple[float, ...]: Parameter.Type.DOUBLE_ARRAY,
}


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
    with naming(node.get_fully_qualified_name()):
        return kind(**values)


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
        if not node.has_parameter(name):
            remedy = did_you_mean(name, declared)
            if name.startswith("qos_overrides."):
                remedy = "QoS is fixed, but for a policy's sensor_reliability; remove it"
            raise UserError(
                f"{node.get_fully_qualified_name()}: unknown parameter '{name}'; {remedy}"
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
