"""Planned processes as launch actions: of launch files alone, since `launch` is not everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launch.actions import ExecuteProcess
from launch_ros.actions import Node

from kdmarl_ros import launch_arguments
from kdmarl_ros.deployment import PACKAGE, Process

RESPAWN_DELAY_S = 1.0


def flying(process: Process, given: Mapping[str, str]) -> Node | ExecuteProcess:
    """A process of one robot or of several, with what `launch_arguments.ROBOT` asks of it."""
    options = {
        "respawn": launch_arguments.switch("respawn", given["respawn"]),
        "respawn_delay": RESPAWN_DELAY_S,
    }
    level = launch_arguments.log_level(given)
    if not process.hosted:
        return node(process, level, **options)
    return ExecuteProcess(
        cmd=process.command("--log-level", level),
        additional_env=dict(process.environment),
        output="screen",
        **options,
    )


def node(process: Process, log_level: str, **options: Any) -> Node:
    """A process of one node."""
    return Node(
        package=PACKAGE,
        executable=process.executable,
        name=process.name,
        namespace=process.namespace or None,
        parameters=[process.parameters],
        ros_arguments=[*process.enclave_arguments, "--log-level", log_level],
        additional_env=dict(process.environment),
        output="screen",
        **options,
    )
