"""What a node would refuse, or overlook, found before it starts."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from kdmarl_core.errors import UserError, did_you_mean, unknown
from kdmarl_ros.parameters import BlockParameters, PolicyParameters

# ROS tells whole numbers from others by their point.
_EXPECTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number with a point, such as 1.0",
    str: "a text",
    tuple[float, ...]: "a list of numbers with a point, such as [0.0, 1.0]",
}


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
