"""One robot's policy, with its bundle and its parameter files.

`ros2 launch kdmarl_ros robot.launch.py robot:=robot_0 bundle:=DIR`
"""

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.launch_description_entity import LaunchDescriptionEntity
from launch.substitutions import LaunchConfiguration

from kdmarl_ros import launch_actions, launch_arguments
from kdmarl_ros.deployment import plan_robot
from launch import LaunchContext, LaunchDescription

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
    """The planned process as a launch action; nothing starts if an argument is refused."""
    given = {name: LaunchConfiguration(name).perform(context) for name, _, _ in ARGUMENTS}
    process = plan_robot(
        given["robot"],
        bundle=given["bundle"],
        robots=given["robots"],
        overrides=launch_arguments.overrides(given),
        security=launch_arguments.security_plan(given),
    )
    return [launch_actions.flying(process, given)]
