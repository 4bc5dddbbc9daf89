"""Fields of ROS messages by name: `twist.twist.linear.x`, `data[0]`, `position[left_wheel]`.

Message types come from the installed packages, by their full name; every name is checked against
the type before the first message arrives. No ROS client here.
"""

from __future__ import annotations

import importlib
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdmarl_core.errors import UserError, did_you_mean, unknown

NUMBER = "number"
ARRAY = "array of numbers"
OTHER = "other"
QUATERNION_TOLERANCE = 0.1  # of the squared length: 1 for a rotation, 0 for a field never set

_TYPE = re.compile(r"([a-z][a-z0-9_]*)/msg/([A-Z]\w*)", re.ASCII)
_PART = r"([a-zA-Z]\w*)(?:\[([^\[\]]+)\])?"
_PATH = re.compile(rf"{_PART}(?:\.{_PART})*", re.ASCII)
_ARRAY_TYPE = re.compile(r"sequence<([^,>]+)(?:, *\d+)?>|([^\[]+)\[(\d+)\]")
_FLOATS = {"float", "double"}
_INTEGERS = {"int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"}
_NUMBERS = _FLOATS | _INTEGERS | {"boolean", "octet"}

Get = Callable[[Any], Any]


@dataclass(frozen=True)
class Field:
    """A field of a message type and how to read it."""

    type_name: str  # as the message declares it
    get: Get

    @property
    def kind(self) -> str:
        """`NUMBER`, `ARRAY` or `OTHER`."""
        if self.type_name in _NUMBERS:
            return NUMBER
        element, _ = _element(self.type_name)
        return ARRAY if element in _NUMBERS else OTHER


@dataclass(frozen=True)
class Setter:
    """Writes a number into one field of a message."""

    name: str
    type_name: str
    container: Get
    key: str | int  # attribute, or index in an array

    def set(self, message: Any, value: float) -> None:
        """Write the value, rounded where the field holds whole numbers."""
        number = value if self.type_name in _FLOATS else round(value)
        container = self.container(message)
        if isinstance(self.key, str):
            setattr(container, self.key, number)
            return
        while len(container) <= self.key:
            container.append(0)
        container[self.key] = number

    def check(self, value: float, where: str) -> None:
        """Refuse a value that the field cannot hold."""
        if self.type_name in _INTEGERS:
            bounds = np.iinfo(self.type_name)
            if not bounds.min <= value <= bounds.max:
                raise UserError(
                    f"{where}: {value:g} does not fit into {self.name}, a {self.type_name} of "
                    f"{bounds.min} to {bounds.max}; correct it"
                )


def message_class(name: str, where: str) -> type:
    """The class of an installed message type, such as `nav_msgs/msg/Odometry`.

    Raises:
        UserError: no such type is installed.
    """
    match = _TYPE.fullmatch(name)
    if match is None:
        raise UserError(
            f"{where}: '{name}' is not the name of a message type; write package/msg/Type, such "
            "as nav_msgs/msg/Odometry"
        )
    package, short = match.groups()
    try:
        module = importlib.import_module(f"{package}.msg")
    except ImportError:
        raise UserError(
            f"{where}: '{name}': no package '{package}' with messages is installed; install it, "
            "or correct the name"
        ) from None
    found = getattr(module, short, None)
    if not isinstance(found, type) or not hasattr(found, "get_fields_and_field_types"):
        names = [key for key, value in vars(module).items() if isinstance(value, type)]
        raise unknown("message type", short, names, f"{where}: {package}")
    return found


def has_header(message: type) -> bool:
    """Whether a message type begins with a stamp and a frame."""
    return _fields(message).get("header") == "std_msgs/Header"


def find_field(message: type, path: str, where: str, order_by: str | None = None) -> Field:
    """The field at a dotted path; in brackets stands an index, or an element's name.

    Args:
        message: its class.
        path: such as `pose.pose.position.x`, `data[0]` or `position[left_wheel]`.
        where: file and key that error messages begin with.
        order_by: path of the array of texts that names the elements, for names in brackets.

    Raises:
        UserError: there is no such field.
    """
    names = None if order_by is None else _find_names(message, order_by, where)
    parts = _parts(path, where)
    steps: list[_Step] = []
    type_name, current = "", message
    for name, key in parts:
        if type_name:
            current = _nested(type_name, path, name, where)
        type_name = _field_type(current, name, path, where)
        steps.append(_attribute(name))
        if key:
            type_name, length = _array(type_name, name, path, where)
            steps.append(_element_step(key, length, names, path, where))
    if any(key for _, key in parts):
        return Field(type_name, lambda received: _walk(steps, received))
    return Field(type_name, operator.attrgetter(path))


def find_setter(message: type, path: str, where: str) -> Setter:
    """How to write a number to a dotted path; an index in brackets may stand at its end.

    Raises:
        UserError: there is no such field, or it holds no number.
    """
    field = find_field(message, path, where)
    if field.type_name not in _FLOATS | _INTEGERS:
        raise UserError(
            f"{where}: '{path}' is {field.type_name}, not a number; name one element as in "
            "data[0], or another field"
        )
    head, _, last = path.rpartition(".")
    if "[" in head:
        raise UserError(f"{where}: '{path}': an index may stand at the end only; correct it")
    name, bracket, index = last.partition("[")
    if not bracket:
        container = operator.attrgetter(head) if head else _itself
        return Setter(path, field.type_name, container, name)
    array = operator.attrgetter(f"{head}.{name}" if head else name)
    return Setter(path, field.type_name, array, int(index.rstrip("]")))


_Step = Callable[[Any, Any], Any]  # of a value and the whole message


def find_heading(message: type, name: str, where: str) -> Callable[[Any], float]:
    """A function that reads the heading in radians from a quaternion field; NaN: there is none."""
    field = find_field(message, name, where)
    if field.type_name != "geometry_msgs/Quaternion":
        raise UserError(
            f"{where}: '{name}' is {field.type_name}, not geometry_msgs/Quaternion; name an "
            "orientation, such as pose.pose.orientation"
        )

    def heading_rad(received: Any) -> float:
        try:
            return _heading_rad(field.get(received))
        except IndexError:  # an element that this message does not have
            return math.nan

    return heading_rad


def _walk(steps: list[_Step], received: Any) -> Any:
    value = received
    for step in steps:
        value = step(value, received)
    return value


def _itself(message: Any) -> Any:
    return message


def _attribute(name: str) -> _Step:
    get = operator.attrgetter(name)
    return lambda value, _: get(value)


def _element_step(
    key: str, length: int | None, names: Field | None, path: str, where: str
) -> _Step:
    if key.isdecimal():
        index = int(key)
        if length is not None and index >= length:
            raise UserError(
                f"{where}: '{path}': the array has {length} elements, counted from 0; correct it"
            )
        return lambda value, _: value[index]
    if names is None:
        raise UserError(
            f"{where}: '{path}': '{key}' is a name; say with 'order_by' which field names the "
            "elements, or give an index"
        )
    return lambda value, received: value[list(names.get(received)).index(key)]


def _find_names(message: type, path: str, where: str) -> Field:
    names = find_field(message, path, f"{where}: order_by")
    if _element(names.type_name)[0] != "string":
        raise UserError(
            f"{where}: order_by: '{path}' is {names.type_name}, not an array of texts; name the "
            "field with the elements' names"
        )
    return names


def _parts(path: str, where: str) -> list[tuple[str, str]]:
    if _PATH.fullmatch(path) is None:
        raise UserError(
            f"{where}: '{path}' is not a field; write names with points between them, such as "
            "pose.pose.position.x or data[0]"
        )
    return re.findall(_PART, path)


def _fields(message: type) -> Mapping[str, str]:
    fields: Mapping[str, str] = message.get_fields_and_field_types()  # type: ignore[attr-defined]
    return fields


def _field_type(message: type, name: str, path: str, where: str) -> str:
    fields = _fields(message)
    if name not in fields:
        raise UserError(
            f"{where}: '{path}': {message.__name__} has no field '{name}'; "
            f"{did_you_mean(name, fields)}"
        )
    return fields[name]


def _nested(type_name: str, path: str, name: str, where: str) -> type:
    package, slash, short = type_name.partition("/")
    if not slash or _element(type_name)[0]:
        raise UserError(
            f"{where}: '{path}': {type_name} has no field '{name}'; choose an element as in "
            "poses[0], or end the name before it"
        )
    return message_class(f"{package}/msg/{short}", where)


def _array(type_name: str, name: str, path: str, where: str) -> tuple[str, int | None]:
    element, length = _element(type_name)
    if not element:
        raise UserError(f"{where}: '{path}': '{name}' is {type_name}, not an array; correct it")
    return element, length


def _element(type_name: str) -> tuple[str, int | None]:
    """Type of an array's elements and its fixed length, if any; an empty name for no array."""
    match = _ARRAY_TYPE.fullmatch(type_name)
    if match is None:
        return "", None
    sequence, fixed, length = match.groups()
    return (sequence, None) if sequence else (fixed, int(length))


def _heading_rad(q: Any) -> float:
    length = q.w * q.w + q.x * q.x + q.y * q.y + q.z * q.z
    if not abs(length - 1.0) < QUATERNION_TOLERANCE:
        return math.nan
    return math.atan2(2 * (q.w * q.z + q.x * q.y), q.w * q.w + q.x * q.x - q.y * q.y - q.z * q.z)
