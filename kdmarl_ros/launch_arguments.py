"""Launch arguments, which are texts, and what they say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from kdmarl_core.bundle import SECURITY
from kdmarl_core.errors import UserError, unknown
from kdmarl_ros.deployment import ALLOW_UNSECURED, RECORDING, SIM_TIME, SecurityPlan, in_time
from kdmarl_ros.parameter_files import Value
from kdmarl_ros.simulation import SimulationSettings

LOG_LEVELS = ("debug", "info", "warn", "error", "fatal")
# Name, default and description of launch arguments: of every robot, and of the simulation.
ROBOT = (
    ("robots", "", "folder of the robots' parameter files; empty: the one that ships"),
    ("real_time", "false", "act at a rate instead of once per step; false: as configured"),
    ("rate", "", "decisions per second in real time; empty: as configured"),
    (SIM_TIME, "false", "stamp with the time of /clock, which the bridge publishes"),
    ("record", "false", f"keep what a recorder has yet to get; a swarm writes {RECORDING}"),
    ("log_level", "info", f"one of: {', '.join(LOG_LEVELS)}"),
    ("respawn", "false", "start a robot's node again when it ends"),
    ("security", "", "off, check or enforce; empty: as the parameter files say"),
    ("trusted_keys", "", "folder of trusted public keys; empty: as the parameter files say"),
    ("keystore", "", "of 'kdmarl keystore', to enforce security"),
    (ALLOW_UNSECURED, "false", "enforce signatures although topics are open"),
)
SIMULATION = tuple(
    (item.name, str(item.default), item.metadata["description"])
    for item in dataclasses.fields(SimulationSettings)
)


def overrides(arguments: Mapping[str, str]) -> dict[str, Value]:
    """Launch arguments, which are texts, as parameters of robots.

    Raises:
        UserError: `rate` is no number, or a switch neither true nor false.
    """
    rate = arguments["rate"]
    told = in_time(
        switch("real_time", arguments["real_time"]),
        number("rate", rate, float) if rate else None,
    )
    if switch("record", arguments["record"]):
        told["recorded"] = True
    return {SIM_TIME: switch(SIM_TIME, arguments[SIM_TIME]), **told}


def simulation(arguments: Mapping[str, str]) -> dict[str, Value]:
    """The launch arguments `SIMULATION`, which are texts, as parameters of the bridge."""
    return {
        item.name: number(item.name, arguments[item.name], type(item.default))
        for item in dataclasses.fields(SimulationSettings)
    }


def number(name: str, text: str, kind: Any = int) -> Any:
    """A launch argument that is a number of kind `int` or `float`; a `UserError` if it is not."""
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise UserError(f"{name}: '{text}' is not {what}; correct it") from None


def security_plan(arguments: Mapping[str, str]) -> SecurityPlan:
    """Launch arguments of security, which are texts, as a plan.

    Raises:
        UserError: one is not what it can be.
    """
    level = arguments["security"]
    if level and level not in SECURITY:
        raise unknown("level", level, SECURITY, "security")
    return SecurityPlan(
        level,
        arguments["trusted_keys"],
        arguments["keystore"],
        switch(ALLOW_UNSECURED, arguments[ALLOW_UNSECURED]),
    )


def log_level(arguments: Mapping[str, str]) -> str:
    """The launch argument of that name; a `UserError` if it is none that ROS knows."""
    level = arguments["log_level"]
    if level.lower() not in LOG_LEVELS:
        raise unknown("level", level, LOG_LEVELS, "log_level")
    return level


def switch(name: str, text: str) -> bool:
    """A launch argument that is true or false; a `UserError` if it is neither."""
    if text.lower() not in ("true", "false"):
        raise UserError(f"{name}: '{text}' must be true or false; correct it")
    return text.lower() == "true"
