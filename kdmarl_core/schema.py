"""Typed reading of YAML and JSON: a mapping becomes a frozen dataclass or one clear error.

Team files, training recipes, manifests and cards are all described by dataclasses; this module is
the only place that checks a document against one. It needs the standard library and PyYAML only,
since a robot's process reads its manifest with it.
"""

import dataclasses
import functools
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from kdmarl_core.errors import UserError, did_you_mean, naming

T = TypeVar("T")


def read_yaml(path: Path) -> Mapping[str, Any]:
    """The mapping at the top of a YAML file.

    Raises:
        UserError: the file is missing, unreadable, not YAML, or not a mapping.
    """
    try:
        document = parse_yaml(read_text(path))
    except ValueError as error:
        raise UserError(f"{path}: not valid YAML ({error}); correct the file") from None
    return _mapping(document, path)


def is_yaml(name_or_path: str) -> bool:
    """Whether a file is meant, not the name of something that ships."""
    return name_or_path.endswith((".yaml", ".yml"))


def read_with_bases(
    path: Path,
    find: Callable[[str, str, Path], Path],
    prepare: Callable[[dict[str, Any], Path], None] = lambda document, path: None,
) -> dict[str, Any]:
    """A YAML file's mapping laid over those of the files that its key `base` leads to.

    Args:
        path: the file.
        find: gives the path of a base; is told its name, who asks for it (for messages), and the
            folder where a relative path begins.
        prepare: changes one file's mapping, which lies at that path, before others lie over it.

    Raises:
        UserError: as `read_yaml` and `find` do, or a base leads back.
    """
    layers: list[dict[str, Any]] = []  # the lowest first, in which order they are laid over
    above: set[Path] = set()
    while True:
        document = dict(read_yaml(path))
        base = document.pop("base", None)
        prepare(document, path)
        layers.insert(0, document)
        if base is None:
            return functools.reduce(laid_over, layers)
        above.add(path.resolve())
        below = find(str(base), f"{path}: base", path.parent)
        if below.resolve() in above:
            raise UserError(f"{path}: base: '{base}' leads back to this file; name another one")
        path = below


def laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of both mappings; where both have one, `above` decides, mapping by mapping."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            value = laid_over(merged[key], value)
        merged[key] = value
    return merged


def read_json(path: Path) -> Mapping[str, Any]:
    """The mapping at the top of a JSON file; raises as `read_yaml` does."""
    return parse_json(read_text(path), path)


def parse_json(text: str, where: Path) -> Mapping[str, Any]:
    """The mapping at the top of a JSON text that was read from `where`."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: not valid JSON ({error}); the file is damaged, make it again"
        ) from None
    return _mapping(document, where)


def from_mapping(kind: type[T], document: Any, where: str) -> T:
    """Build dataclass `kind` from a mapping, checking keys and types all the way down.

    Args:
        kind: a dataclass; fields without a default are required.
        document: what YAML or JSON gave.
        where: file (and key) that error messages begin with.

    Raises:
        UserError: a key is missing, unknown or of the wrong type.
    """
    if not isinstance(document, Mapping):
        raise UserError(f"{where}: expected a mapping, got {document!r}; see the shipped examples")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    for key in document:
        if key not in fields:
            raise UserError(f"{where}: unknown key '{key}'; {did_you_mean(str(key), fields)}")
    values = {}
    for name, field in fields.items():
        if name in document:
            values[name] = _convert(hints[name], document[name], f"{where}: {name}")
        elif _is_required(field):
            raise UserError(f"{where}: missing key '{name}' ({_describe(hints[name])}); add it")
    with naming(where):
        return kind(**values)


def with_changes(document: Mapping[str, Any], changes: Iterable[str]) -> dict[str, Any]:
    """A copy of nested mappings in which the entries `key.key=value` are changed.

    Values are read as YAML. Keys need not exist: what has no meaning is refused by `from_mapping`.

    Raises:
        UserError: a change is not of that form, or leads through something that is no mapping.
    """
    changed = dict(document)
    for change in changes:
        path, equals, text = change.partition("=")
        *parents, key = path.split(".")
        place: dict[str, Any] = changed
        for parent in parents:
            inner = place.get(parent, {})
            if not isinstance(inner, Mapping):
                raise UserError(f"'{change}': '{parent}' holds no keys; give KEY.KEY=VALUE")
            place[parent] = dict(inner)
            place = place[parent]
        if not equals or not key:
            raise UserError(f"'{change}': must be KEY=VALUE or KEY.KEY=VALUE; correct it")
        try:
            place[key] = parse_yaml(text)
        except ValueError:
            raise UserError(f"'{change}': '{text}' is not a YAML value; correct it") from None
    return changed


def check_at_least(low: float, record: object, *names: str) -> None:
    """Raise a `UserError` for the first of these fields that is below `low`."""
    for name in names:
        if getattr(record, name) < low:
            raise UserError(f"{name}: {getattr(record, name)} is below {low}; give at least {low}")


def check_at_most(high: float, record: object, *names: str) -> None:
    """Raise a `UserError` for the first of these fields that is above `high`."""
    for name in names:
        if getattr(record, name) > high:
            raise UserError(
                f"{name}: {getattr(record, name)} is above {high}; give at most {high}"
            )


def check_above_zero(record: object, *names: str) -> None:
    """Raise a `UserError` for the first of these fields that is zero or less."""
    for name in names:
        if getattr(record, name) <= 0:
            raise UserError(f"{name}: {getattr(record, name)} must be above 0; correct it")


def check_share(record: object, *names: str) -> None:
    """Raise a `UserError` for the first of these fields that is not between 0 and 1."""
    for name in names:
        if not 0 <= getattr(record, name) <= 1:
            raise UserError(f"{name}: {getattr(record, name)} must be between 0 and 1; correct it")


class _UniqueKeyLoader(yaml.SafeLoader):
    """The safe loader, which also refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"key '{key.value}' stands twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1 takes 1e-3 for a text: it asks for a point.
_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str) -> Any:
    """What a YAML text holds; a `ValueError` with the reason, in one line, if it is none."""
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # an impossible date; nesting
        raise ValueError(" ".join(str(error).split())) from None


def read_text(path: Path) -> str:
    """A file's text.

    Raises:
        UserError: it is missing or cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def _mapping(document: Any, path: Path) -> Mapping[str, Any]:
    if not isinstance(document, Mapping):
        raise UserError(f"{path}: expected a mapping at the top, got {type(document).__name__}")
    return document


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as type `hint`; ints pass for floats, nothing else is coerced."""
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, where)
    if origin is typing.Literal:
        if value not in arguments:
            options = [str(option) for option in arguments]
            raise UserError(
                f"{where}: unknown value {value!r}; {did_you_mean(str(value), options)}"
            )
        return value
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, Mapping):
        return {
            _convert(arguments[0], key, where): _convert(arguments[1], item, f"{where}: {key}")
            for key, item in value.items()
        }
    if dataclasses.is_dataclass(hint):
        return from_mapping(typing.cast(type, hint), value, where)
    if hint is float:
        # False for NaN, and safe for whole numbers that no float can hold.
        if type(value) in (int, float) and abs(value) <= sys.float_info.max:
            return float(value)
    elif type(value) is hint:
        return value
    raise UserError(f"{where}: expected {_describe(hint)}, got {value!r}; correct it")


def _convert_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    concrete = [option for option in options if option is not type(None)]
    if len(concrete) == 1:
        return _convert(concrete[0], value, where)
    for option in concrete:
        try:
            return _convert(option, value, where)
        except UserError:
            continue
    names = " or ".join(_describe(option) for option in concrete)
    raise UserError(f"{where}: expected {names}, got {value!r}; correct it")


def _describe(hint: Any) -> str:
    names = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false"}
    if hint in names:
        return names[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return f"a list of {_describe(arguments[0])}"
    if origin is dict:
        return "a mapping"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in arguments if option is not type(None))
    if origin is typing.Literal:
        return " or ".join(map(str, arguments))
    return "a mapping" if dataclasses.is_dataclass(hint) else str(hint)
