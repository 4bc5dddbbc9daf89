"""A team in its simulator: `ros2 launch kdmarl_ros swarm.launch.py team:=simple_spread`."""

from pathlib import Path

from launch.actions import (
    DeclareLaunchArgument,
    IncludeLaunchDescription,
    OpaqueFunction,
    Shutdown,
)
from launch.launch_description_entity import LaunchDescriptionEntity
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from kdmarl_ros.deployment import PACKAGE, launch_overrides, plan_swarm
from launch import LaunchContext, LaunchDescription

ARGUMENTS = (
    ("team", "simple_spread", "name of a team that ships, or a team file"),
    ("bundles", "", "folder with one bundle per robot; empty: runs/bundles/<team>"),
    ("robots", "", "folder of the robots' parameter files; empty: the one that ships"),
    ("episodes", "100", "episodes to play"),
    ("seed", "0", "base seed of the episodes"),
    ("results", "episodes.jsonl", "file that gets one JSON line per finished episode"),
    ("rate", "", "decisions per second in real-time mode; empty: as the parameter files say"),
    ("use_sim_time", "false", "robots stamp with the time of /clock, which the bridge publishes"),
    ("log_level", "info", "debug, info, warn, error or fatal"),
    ("respawn", "false", "start a robot's node again when it ends"),
)
PASSED_ON = ("robots", "rate", "use_sim_time", "log_level", "respawn")
ROBOT_LAUNCH = Path(__file__).with_name("robot.launch.py")


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
    overrides = launch_overrides(given["rate"], given["use_sim_time"])
    deployment = plan_swarm(
        given["team"],
        bundles=given["bundles"],
        robots=given["robots"],
        episodes=int(given["episodes"]),
        seed=int(given["seed"]),
        results=Path(given["results"]),
        overrides=overrides,
    )
    robots = [
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(str(ROBOT_LAUNCH)),
            launch_arguments={
                "robot": process.namespace,
                "bundle": str(process.parameters["bundle"]),
                **{name: given[name] for name in PASSED_ON},
            }.items(),
        )
        for process in deployment.robots
    ]
    bridge = Node(
        package=PACKAGE,
        executable=deployment.bridge.executable,
        name=deployment.bridge.name,
        parameters=[deployment.bridge.parameters],
        ros_arguments=["--log-level", given["log_level"]],
        on_exit=Shutdown(reason="all episodes were played, or the bridge failed"),
        output="screen",
    )
    return [*robots, bridge]
