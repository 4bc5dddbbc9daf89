"""A team in its simulator: `ros2 launch kdmarl_ros swarm.launch.py team:=simple_spread`."""

from pathlib import Path

from launch.actions import (
    DeclareLaunchArgument,
    LogInfo,
    OpaqueFunction,
    Shutdown,
)
from launch.launch_description_entity import LaunchDescriptionEntity
from launch.substitutions import LaunchConfiguration

from kdmarl_ros import launch_actions, launch_arguments
from kdmarl_ros.deployment import new_recording, plan_swarm
from launch import LaunchContext, LaunchDescription

ARGUMENTS = (
    ("team", "simple_spread", "name of a team that ships, or a team file"),
    ("task", "", "task that the team must play; empty: whatever its file says"),
    ("bundles", "", "folder with one bundle per robot; empty: runs/bundles/<team>"),
    ("episodes", "100", "episodes to play"),
    ("seed", "0", "base seed of the episodes"),
    ("results", "episodes.jsonl", "file that gets one JSON line per finished episode"),
    ("hosted", "false", "all robots in one process, for a fleet"),
    *launch_arguments.SIMULATION,
    *launch_arguments.ROBOT,
)


def generate_launch_description() -> LaunchDescription:
    """One process per robot and the bridge; the launch ends with the bridge."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, description in ARGUMENTS
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The planned processes as launch actions."""
    given = {name: LaunchConfiguration(name).perform(context) for name, _, _ in ARGUMENTS}
    results = Path(given["results"])
    record = launch_arguments.switch("record", given["record"])
    level = launch_arguments.log_level(given)
    deployment = plan_swarm(
        given["team"],
        bundles=given["bundles"],
        robots=given["robots"],
        task=given["task"],
        episodes=launch_arguments.number("episodes", given["episodes"]),
        seed=launch_arguments.number("seed", given["seed"]),
        results=results,
        overrides=launch_arguments.overrides(given),
        simulation=launch_arguments.simulation(given),
        security=launch_arguments.security_plan(given),
        recording=new_recording(results) if record else None,
        hosted=launch_arguments.switch("hosted", given["hosted"]),
    )
    robots = [launch_actions.flying(process, given) for process in deployment.flying]
    bridge = launch_actions.node(
        deployment.bridge,
        level,
        on_exit=Shutdown(reason="all episodes were played, or the bridge failed"),
    )
    recorder = deployment.recorder
    warnings = [LogInfo(msg=f"warning: {deployment.warning}")] if deployment.warning else []
    recorders = [launch_actions.node(recorder, level)] if recorder else []
    return [*warnings, *recorders, *robots, bridge]
