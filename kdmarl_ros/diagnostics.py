"""What a node says of itself, on /diagnostics."""

from __future__ import annotations

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

from kdmarl_ros import qos, topics
from kdmarl_ros.health import Report
from kdmarl_ros.qos import NO_EVENTS

REPORTED_EVERY_S = 1.0


class Diagnostics:
    """A node's publisher of one diagnostic status."""

    def __init__(self, node: Node, name: str, hardware_id: str = "") -> None:
        """`name` and `hardware_id` of every status."""
        self._clock, self._name, self._hardware_id = node.get_clock(), name, hardware_id
        self._publisher = node.create_publisher(
            DiagnosticArray, topics.DIAGNOSTICS, qos.DIAGNOSTICS, event_callbacks=NO_EVENTS
        )

    def publish(self, report: Report) -> None:
        """Say it."""
        status = DiagnosticStatus(
            level=bytes([report.level]),
            name=self._name,
            hardware_id=self._hardware_id,
            message=report.message,
            values=[KeyValue(key=key, value=value) for key, value in report.values.items()],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self._clock.now().to_msg()
        self._publisher.publish(array)
