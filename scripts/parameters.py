"""Prints the nodes' parameters as docs/interfaces.md has them; with --write, puts them there."""

from __future__ import annotations

import dataclasses
import sys
import typing
from pathlib import Path

from kdmarl_core.experiments.table import markdown_table, put_between
from kdmarl_ros.parameters import (
    BlockParameters,
    BridgeParameters,
    PolicyParameters,
    RecorderParameters,
)

PAGE = Path(__file__).resolve().parent.parent / "docs" / "interfaces.md"
NODES = {
    "policy_node": PolicyParameters,
    "policy_node, for each block": BlockParameters,
    "bridge_node": BridgeParameters,
    "recorder_node": RecorderParameters,
}
TYPES = {"tuple[float, ...]": "list of float"}


def tables() -> str:
    """One table per node, with a heading."""
    header = ["parameter", "type", "default", "meaning"]
    parts = [
        f"### {title}\n\n{markdown_table([*map(_row, _fields(kind))], header)}"
        for title, kind in NODES.items()
    ]
    return "\n".join(parts)


def _fields(kind: type) -> list[tuple[str, dataclasses.Field[typing.Any]]]:
    """Fields by name; those of blocks as they are spelt for one."""
    of_block = ".<block>" if kind is BlockParameters else ""
    return [(field.name + of_block, field) for field in dataclasses.fields(kind)]


def _row(named: tuple[str, dataclasses.Field[typing.Any]]) -> list[str]:
    name, field = named
    told = dict(field.metadata)
    meaning = told["description"]
    if told["choices"]:
        meaning += f" ({', '.join(f'`{choice}`' for choice in told['choices'])})"
    elif told["low"] is not None:
        meaning += f" ({told['low']:,.10g} to {told['high']:,.10g})"
    required = field.default is dataclasses.MISSING
    default = "required" if required else _spelt(field.default)
    type_name = TYPES.get(str(field.type), str(field.type))
    return [f"`{name}`", type_name, default, meaning.replace("<", r"\<")]


def _spelt(value: object) -> str:
    """A value as a parameter file has it; nothing of one that is empty."""
    if value in ("", ()):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"`{value}`" if isinstance(value, str) else f"{value}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        put_between(PAGE, "parameters", tables())
    else:
        print(tables(), end="")
