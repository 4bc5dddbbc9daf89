"""Parameter files of robots: what all share, what a type adds, what one robot sets itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdmarl_core.errors import UserError, did_you_mean
from kdmarl_core.files import share_folder
from kdmarl_core.schema import read_yaml
from kdmarl_ros import topics
from kdmarl_ros.parameter_checks import check_values
from kdmarl_ros.parameters import PolicyParameters

ALL = "all.yaml"
TYPES = "types"
# Relative ones begin at their file.
PATHS = ("bundle", "sensor_map", "state_directory", "trusted_keys")
Value = str | int | float | bool


def robots_folder(given: str) -> Path:
    """The folder that is given, or the one that ships."""
    return Path(given) if given else share_folder() / "config" / "robots"


def robot_parameters(robot: str, folder: Path) -> dict[str, Value]:
    """The parameters of one robot's files: `all`, over them its type's, over them its own.

    The type is what the parameter `robot_type` says in the robot's own file or, if it has none
    there, in `all.yaml`. A robot without a file of its own needs such a type.

    Raises:
        UserError: a file is missing, names another node, or sets what the node does not take.
    """
    merged: dict[str, Value] = {}
    for values in _layers(robot, folder).values():
        merged |= values
    return merged


def where_set(robot: str, folder: Path, name: str) -> Path:
    """The file that decides on a parameter of a robot; `all`, if none sets it."""
    setting = [path for path, values in _layers(robot, folder).items() if name in values]
    return setting[-1] if setting else folder / ALL


def _layers(robot: str, folder: Path) -> dict[Path, dict[str, Value]]:
    """What each of a robot's files sets; later ones win."""
    shared = read_parameters(folder / ALL, f"/**/{topics.POLICY_NODE}")
    layers = {folder / ALL: shared}
    own: dict[str, Value] = {}
    own_path = folder / f"{robot}.yaml"
    if own_path.is_file() or not shared.get("robot_type"):
        own = read_parameters(own_path, f"/{robot}/{topics.POLICY_NODE}")
    name = own.get("robot_type", shared.get("robot_type", ""))
    if name:
        path = folder / TYPES / f"{name}.yaml"
        of_type = read_parameters(path, f"/**/{topics.POLICY_NODE}")
        if of_type.get("robot_type", name) != name:
            raise UserError(
                f"{path}: robot_type: '{of_type['robot_type']}' is not '{name}', which the file's "
                "name says; remove it"
            )
        layers[path] = of_type
    return layers | {own_path: own}


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
                f"{path}: node name '{name}' is not '{node}', the one section of such a file; "
                f"{did_you_mean(str(name), [node])}"
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


def refuse_strangers(folder: Path, robots: list[str]) -> None:
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
