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
from kdmarl_ros.declare import declare, refuse_undeclared
from kdmarl_ros.parameters import RecorderParameters
from kdmarl_ros.recording import Channel, RecordingWriter
from kdmarl_ros.spin import Stop
from kdmarl_ros.spin import main as spin_main
from kdmarl_ros.team_topics import (
    action_topics,
    message_topics,
    model_topics,
    recorded_topics,
    sensor_topics,
)

POLL_S = 0.003
LOOK_FOR_ROBOTS_S = 0.02
# At the end: so long must nothing come any more, and so long it is waited for that.
QUIET_S = 0.1
LEAVE_S = 1.0


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
        self._sensors = len(self._topics) - len(sensor_topics(team))  # the first of them
        models = model_topics(team)
        self._models = [number for number, topic in enumerate(self._topics) if topic in models]
        self._awaited = [
            topic.name
            for some in (action_topics, message_topics, sensor_topics)
            for topic in some(team)
        ]
        self._awaited.append(topics.STEP)
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
        self._taken = [0] * len(self._topics)
        try:
            self._writer = RecordingWriter(
                self._path, channels, manifests, json.loads(given.robots)
            )
        except OSError as error:
            raise self._stopped(error) from None

    def run(self, stop: Stop) -> None:
        """Record until asked to stop, then what is still on its way."""
        self._listen(0, self._sensors)
        try:
            while not (stop.requested or self._misses_nothing()):
                self._take_all()
                time.sleep(LOOK_FOR_ROBOTS_S)
            self._listen(self._sensors, len(self._topics))
            while not stop.requested:
                self._take_all()
                time.sleep(POLL_S)
            left_s = quiet_s = time.monotonic()
            while (now_s := time.monotonic()) < min(quiet_s + QUIET_S, left_s + LEAVE_S):
                if self._take_all():
                    quiet_s = now_s
                time.sleep(POLL_S)
            self._writer.close()
        except OSError as error:
            self._writer.abandon()
            raise self._stopped(error) from None
        self.get_logger().info(f"{self._path}: {sum(self._taken)} messages recorded")

    def close(self) -> None:
        """Nothing moves without the recorder."""
        self._writer.abandon()

    def _misses_nothing(self) -> bool:
        """Whether the run may begin, as it does when sensors are listened to.

        A robot whose model has come, which is latched, has found the subscription to it, and those
        that were made before. And a subscription hears at once whom this process has found before.
        """
        found = all(self._taken[model] for model in self._models)
        return found and all(map(self.count_publishers, self._awaited))

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
        count = 0
        for channel, subscription in enumerate(self._heard):
            handle = subscription.handle
            for _ in range(subscription.qos_profile.depth):  # what comes meanwhile has its turn
                taken: Any = handle.take_message(subscription.msg_type, True)
                if not taken:
                    break
                data, info = taken
                self._writer.write(
                    channel, data, info["received_timestamp"], info["source_timestamp"]
                )
                self._taken[channel] += 1
                count += 1
        return count

    def _stopped(self, error: OSError) -> UserError:
        return UserError(
            f"{self._path}: recording ended after {sum(self._taken)} messages ({error.strerror}); "
            "the run goes on without it"
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
