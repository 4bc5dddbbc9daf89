"""Records a run into one MCAP file, in a process of its own.

It polls instead of being woken up by each message: what waits is taken a few hundred times per
second, whatever the rate of the run, so that the processes of the run are left alone. Messages
are neither decoded nor encoded again. If the file cannot be written, recording ends; the run does
not.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.subscription import Subscription

from kdmarl_core.bundle import MANIFEST
from kdmarl_core.errors import UserError
from kdmarl_core.team import load_team
from kdmarl_ros import qos, topics
from kdmarl_ros.parameters import RecorderParameters, declare, refuse_undeclared
from kdmarl_ros.recording import Channel, RecordingWriter
from kdmarl_ros.spin import Stop
from kdmarl_ros.spin import main as spin_main
from kdmarl_ros.team_topics import action_topics, recorded_topics, sensor_topics

POLL_S = 0.003
LOOK_FOR_ROBOTS_S = 0.02


class RecorderNode(Node):
    """`recorder_node`: see the module's docstring; parameters in `RecorderParameters`."""

    def __init__(self) -> None:
        # It never spins: services would be offered and never answered.
        super().__init__(
            topics.RECORDER_NODE,
            start_parameter_services=False,
            parameter_overrides=[Parameter("start_type_description_service", value=False)],
        )
        given = declare(self, RecorderParameters)
        refuse_undeclared(self)
        team = load_team(given.team)
        self._topics = recorded_topics(team)
        self._actions = [topic.name for topic in action_topics(team)]
        self._before_sensors = len(self._topics) - len(sensor_topics(team))
        self._path = Path(given.recording)
        channels = [
            Channel(f"/{topic.name.strip('/')}", _type_name(topic.kind), topic.offered)
            for topic in self._topics
        ]
        manifests = {
            robot.name: (Path(given.bundles) / robot.bundle / MANIFEST).read_text(encoding="utf-8")
            for robot in team.robots
        }
        self._heard: list[Subscription[Any]] = []
        self._count = 0
        try:
            self._writer = RecordingWriter(
                self._path, channels, manifests, json.loads(given.robots)
            )
        except OSError as error:
            raise self._stopped(error) from None

    def run(self, stop: Stop) -> None:
        """Record until asked to stop, then what is still on its way."""
        self._listen(0, self._before_sensors)
        # The bridge begins when its sensor topics are listened to: by then, the robots' answers
        # must be heard.
        while not (stop.requested or all(map(self.count_publishers, self._actions))):
            time.sleep(LOOK_FOR_ROBOTS_S)
        self._listen(self._before_sensors, len(self._topics))
        try:
            while self._take_all() or not stop.requested:
                time.sleep(POLL_S)
            self._writer.close()
        except OSError as error:
            self._writer.abandon()
            raise self._stopped(error) from None
        self.get_logger().info(f"{self._path}: {self._count} messages recorded")

    def close(self) -> None:
        """Nothing moves without the recorder."""
        self._writer.abandon()

    def _listen(self, first: int, last: int) -> None:
        for name, kind, offered in self._topics[first:last]:
            self._heard.append(
                self.create_subscription(
                    kind,
                    name,
                    _never_called,
                    qos.recorded(offered),
                    event_callbacks=qos.NO_SUBSCRIPTION_EVENTS,
                    raw=True,
                )
            )

    def _take_all(self) -> int:
        """Write everything that waits; returns how much it was."""
        before = self._count
        for channel, subscription in enumerate(self._heard):
            handle = subscription.handle
            while taken := handle.take_message(subscription.msg_type, True):
                data, info = taken
                self._writer.write(
                    channel, data, info["received_timestamp"], info["source_timestamp"]
                )
                self._count += 1
        return self._count - before

    def _stopped(self, error: OSError) -> UserError:
        return UserError(
            f"{self._path}: recording ended after {self._count} messages ({error.strerror}); the "
            "run goes on without it"
        )


def _never_called(data: bytes) -> None:
    """Messages are taken by hand."""


def _type_name(kind: Any) -> str:
    package, middle, _ = kind.__module__.split(".")
    return f"{package}/{middle}/{kind.__name__}"


def main(args: list[str] | None = None) -> int:
    """Run the node; returns the exit code."""
    return spin_main(RecorderNode, args)


if __name__ == "__main__":
    sys.exit(main())
