"""Three simulated bases with two driven wheels each: velocities in, odometry out, 50 Hz.

In each robot's namespace: takes `cmd_vel` (geometry_msgs/msg/Twist), publishes `odom`
(nav_msgs/msg/Odometry; pose in the frame `world`, twist in the robot's own axes). A base that
hears nothing for half a second stops.
"""

from __future__ import annotations

import functools
import math
import sys
import time
from dataclasses import dataclass

from geometry_msgs.msg import Twist
from nav_msgs.msg import Odometry
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile

from kdmarl_ros.spin import Stop
from kdmarl_ros.spin import main as spin_main

PERIOD_S = 0.02
COMMAND_TIMEOUT_S = 0.5
# x and y in metres, heading in radians.
STARTS = {
    "robot_0": (-0.45, -0.45, 0.0),
    "robot_1": (-0.30, -0.45, 1.6),
    "robot_2": (-0.45, -0.30, 3.1),
}


@dataclass
class Base:
    """One base's pose, velocities and when it was last commanded."""

    x: float
    y: float
    heading: float
    forwards: float = 0.0  # m/s
    turn: float = 0.0  # rad/s
    commanded_s: float = -math.inf

    def command(self, message: Twist) -> None:
        """Take over the velocities of a message."""
        self.forwards, self.turn = message.linear.x, message.angular.z
        self.commanded_s = time.monotonic()

    def move(self, seconds: float) -> None:
        """Drive on for so long."""
        if time.monotonic() - self.commanded_s > COMMAND_TIMEOUT_S:
            self.forwards = self.turn = 0.0
        self.x += self.forwards * math.cos(self.heading) * seconds
        self.y += self.forwards * math.sin(self.heading) * seconds
        self.heading += self.turn * seconds

    def odometry(self, robot: str) -> Odometry:
        """Pose and velocities as a message."""
        message = Odometry(child_frame_id=f"{robot}/base_link")
        message.header.frame_id = "world"
        message.pose.pose.position.x = self.x
        message.pose.pose.position.y = self.y
        message.pose.pose.orientation.z = math.sin(self.heading / 2)
        message.pose.pose.orientation.w = math.cos(self.heading / 2)
        message.twist.twist.linear.x = self.forwards
        message.twist.twist.angular.z = self.turn
        return message


class Bases(Node):
    """All bases in one process."""

    def __init__(self) -> None:
        super().__init__("bases")
        self._bases = {robot: Base(*start) for robot, start in STARTS.items()}
        newest = QoSProfile(depth=1)
        for robot, base in self._bases.items():
            publisher = self.create_publisher(Odometry, f"{robot}/odom", newest)
            self.create_subscription(Twist, f"{robot}/cmd_vel", base.command, newest)
            self.create_timer(PERIOD_S, functools.partial(self._step, robot, base, publisher))

    def run(self, stop: Stop) -> None:
        """Simulate until asked to stop."""
        executor = SingleThreadedExecutor()
        executor.add_node(self)
        while not stop.requested:
            executor.spin_once(timeout_sec=0.1)

    def close(self) -> None:
        """Nothing is left moving: the bases exist in this process only."""

    def _step(self, robot: str, base: Base, publisher: Publisher[Odometry]) -> None:
        base.move(PERIOD_S)
        message = base.odometry(robot)
        message.header.stamp = self.get_clock().now().to_msg()
        publisher.publish(message)


if __name__ == "__main__":
    sys.exit(spin_main(Bases))
