"""One robot's policy, with its bundle and its parameter files.

`ros2 launch kdmarl_ros robot.launch.py robot:=robot_0 bundle:=DIR`
"""

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.launch_description_entity import LaunchDescriptionEntity
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from kdmarl_ros import launch_arguments
from kdmarl_ros.deployment import PACKAGE, plan_robot
from launch import LaunchContext, LaunchDescription

RESPAWN_DELAY_S = 1.0
ARGUMENTS = (
    ("robot", None, "name of the robot: its namespace"),
    ("bundle", None, "folder of its bundle: model.onnx and manifest.json"),
    *launch_arguments.ROBOT,
)


def generate_launch_description() -> LaunchDescription:
    """One managed node that configures and activates itself."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, description in ARGUMENTS
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The planned process as a launch action."""
    given = {name: LaunchConfiguration(name).perform(context) for name, _, _ in ARGUMENTS}
    process = plan_robot(
        given["robot"],
        bundle=given["bundle"],
        robots=given["robots"],
        overrides=launch_arguments.overrides(given),
        security=launch_arguments.security_plan(given),
    )
    level = launch_arguments.log_level(given)  # refused before anything starts
    node = Node(
        package=PACKAGE,
        executable=process.executable,
        name=process.name,
        namespace=process.namespace,
        parameters=[process.parameters],
        ros_arguments=[*process.enclave_arguments, "--log-level", level],
        additional_env=dict(process.environment),
        respawn=LaunchConfiguration("respawn"),
        respawn_delay=RESPAWN_DELAY_S,
        output="screen",
    )
    return [node]
