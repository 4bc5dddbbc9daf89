"""A real robot around its policy: standard topics in, commands out, as its sensor map says."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from rclpy.subscription import Subscription

from kdmarl_ros import qos
from kdmarl_ros.sensor_map import Reading, SensorMap

STOP_WITHIN_S = 1.0  # a node that ends brakes no longer than this, then commands zero


class Body:
    """The entities of a sensor map on a node."""

    def __init__(
        self,
        node: Node,
        sensor_map: SensorMap,
        sensor_profile: QoSProfile,
        on_reading: Callable[[Reading], None],
        on_message: Callable[[Subscription[Any], Any], float | None],
    ) -> None:
        """Listen to all topics of a map and be ready to command.

        Args:
            node: whose topics they become.
            sensor_map: what to listen to and what to command.
            sensor_profile: QoS of the subscriptions.
            on_reading: called with every block that a message brings up to date.
            on_message: told of every message first; returns its age in seconds, or None if it
                is not to be used.
        """
        self._on_any = on_message
        self._node, self._map, self._on_reading = node, sensor_map, on_reading
        self._command = sensor_map.command
        self._engaged = False
        self._publisher: Publisher[Any] = node.create_publisher(
            self._command.message, self._command.topic, qos.ACTION
        )
        self.subscriptions: list[Subscription[Any]] = [
            node.create_subscription(
                source.message,
                source.topic,
                functools.partial(self._on_message, index),
                sensor_profile,
            )
            for index, source in enumerate(sensor_map.sources)
        ]
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = node.create_timer(self._command.period_s, self._on_period, clock=steady)

    @property
    def commanded(self) -> tuple[str, type[Any]]:
        """Full name and type of the topic that moves the base."""
        return self._publisher.topic_name, self._command.message

    def trouble(self) -> str:
        """What keeps the base from moving, in words; empty if nothing does."""
        return self._command.heading_trouble(time.monotonic())

    def act(self, action: int | None) -> None:
        """Head for what an action commands; None: brake, at once, and stand: the safe action."""
        self._engaged = True
        self._command.aim(action)
        if action is None:
            self._publish()

    def stop(self) -> None:
        """Brake to a stand within the limits, then fall silent.

        Returns when the base has been told to stand: those who ask for delivery have got that.
        """
        if not self._engaged:
            return
        self._engaged = False
        self._command.aim(None)
        give_up_s = time.monotonic() + STOP_WITHIN_S
        while not self._command.at_rest and time.monotonic() < give_up_s:
            self._publish()
            time.sleep(max(min(self._command.period_s, give_up_s - time.monotonic()), 0.0))
        self._publisher.publish(self._command.standing(self._stamp()))
        self._publisher.wait_for_all_acked(Duration(seconds=qos.ACKNOWLEDGED_WITHIN_S))

    def forget(self) -> None:
        """What was sensed so far is of another time."""
        self._map.forget()

    def close(self) -> None:
        """Brake, if that has yet to be done, and free all entities."""
        self.stop()
        self._node.destroy_timer(self._timer)
        for subscription in self.subscriptions:
            self._node.destroy_subscription(subscription)
        self._node.destroy_publisher(self._publisher)

    def _on_message(self, source: int, message: object) -> None:
        age_s = self._on_any(self.subscriptions[source], message)
        if age_s is None:
            return
        for reading in self._map.take(source, message, time.monotonic(), age_s):
            self._on_reading(reading)

    def _on_period(self) -> None:
        if self._engaged:
            self._publish()

    def _publish(self) -> None:
        self._publisher.publish(self._command.next(time.monotonic(), self._stamp()))

    def _stamp(self) -> object:
        return self._node.get_clock().now().to_msg()
