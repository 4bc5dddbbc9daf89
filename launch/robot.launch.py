"""One robot's policy, with its bundle and its parameter file.

`ros2 launch kdmarl_ros robot.launch.py robot:=robot_0 bundle:=DIR parameters:=FILE`
"""

from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from kdmarl_ros.deployment import PACKAGE
from kdmarl_ros.topics import POLICY_NODE
from launch import LaunchDescription

ARGUMENTS = (
    ("robot", None, "name of the robot: its namespace"),
    ("bundle", None, "folder of its bundle: model.onnx and manifest.json"),
    ("parameters", None, "its parameter file, under the node name /<robot>/policy"),
    ("log_level", "info", "debug, info, warn, error or fatal"),
    ("respawn", "false", "start the node again when it ends"),
)


def generate_launch_description() -> LaunchDescription:
    """One managed node that configures and activates itself."""
    robot = LaunchConfiguration("robot")
    node = Node(
        package=PACKAGE,
        executable="policy_node",
        name=POLICY_NODE,
        namespace=robot,
        parameters=[
            LaunchConfiguration("parameters"),
            {"bundle": LaunchConfiguration("bundle")},
        ],
        ros_arguments=["--log-level", LaunchConfiguration("log_level")],
        respawn=LaunchConfiguration("respawn"),
        output="screen",
    )
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, description in ARGUMENTS
    ]
    return LaunchDescription([*declared, node])
