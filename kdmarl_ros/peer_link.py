"""What a robot hears of its peers and tells them: the topics of messages in both directions."""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Iterator
from typing import Any

from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.subscription import Subscription

from kdmarl_core.bundle import FORMATS, Manifest
from kdmarl_ros import graph, qos, topics
from kdmarl_ros.msg import PeerMessage
from kdmarl_ros.policy_runtime import Heard, Told
from kdmarl_ros.spin import Polled

LARGEST_VALUE_BYTES = max(form.bits for form in FORMATS.values()) // 8


class PeerLink:
    """See the module's docstring. Messages wait until they are fetched, and wake nobody up."""

    def __init__(self, node: Node, manifest: Manifest, *, recorded: bool) -> None:
        """Make the topics that a robot's manifest lists; none for a robot without messages.

        Args:
            node: theirs.
            manifest: the robot's.
            recorded: others than its peers get its messages, too.
        """
        self._node = node
        own = node.get_namespace()
        self._receivers = {  # namespaces of those who are to listen
            topics.beside(own, robot)
            for robot in (manifest.message.to if manifest.message else ())
        }
        self._heard: list[Subscription[Any]] = [  # in the order of the manifest
            node.create_subscription(
                PeerMessage,
                topics.of_peer(own, peer.robot, topics.MESSAGE),
                _never_called,
                qos.HEARD,
                callback_group=Polled(),
                event_callbacks=qos.NO_SUBSCRIPTION_EVENTS,
            )
            for peer in manifest.peers
        ]
        # Of a message that is longer than any of its peer, what shows that is kept.
        self._most = [peer.size * LARGEST_VALUE_BYTES + 1 for peer in manifest.peers]
        self._fetched: list[deque[Heard]] = [deque(maxlen=qos.HEARD.depth) for _ in self._heard]
        self._message = PeerMessage(training=manifest.training_number)
        self._told: Publisher[PeerMessage] | None = None
        if manifest.message:
            self._told = node.create_publisher(
                PeerMessage,
                topics.MESSAGE,
                qos.kept(qos.TOLD, for_recorder=recorded),
                event_callbacks=qos.NO_EVENTS,
            )

    @property
    def heard_topics(self) -> list[str]:
        """Full names of the topics that are listened to."""
        return [subscription.topic_name for subscription in self._heard]

    @property
    def told_topics(self) -> list[str]:
        """The full name of the topic that is published; none if nothing is told."""
        return [self._told.topic_name] if self._told else []

    @property
    def linked(self) -> bool:
        """Whether all peers that are to be heard, and all that are to listen, are found."""
        if self._told is not None:
            there = graph.listening_namespaces(self._node, self._told.topic_name)
            everybody = self._told.get_subscription_count() >= len(there)  # a recorder, too
            if not (everybody and self._receivers <= set(there)):
                return False
        return all(subscription.get_publisher_count() > 0 for subscription in self._heard)

    def fetch(self) -> None:
        """Take what has come. Done while nothing is to be decided, it delays no decision."""
        taken_s = time.monotonic()
        for index, (subscription, kept) in enumerate(zip(self._heard, self._fetched, strict=True)):
            for _ in range(qos.HEARD.depth):
                taken: Any = subscription.handle.take_message(PeerMessage, False)
                if not taken:
                    break
                message = taken[0]
                data = bytes(message.data[: self._most[index]])
                at, of = (message.episode, message.step), message.training
                kept.append(Heard(index, *at, message.bits, data, taken_s, of))

    def hear(self) -> Iterator[Heard]:
        """What peers have sent since they were last listened to, of each the newest few."""
        self.fetch()
        for kept in self._fetched:
            yield from kept
            kept.clear()

    def tell(self, told: Told) -> None:
        """Publish what the policy says to its peers."""
        if self._told is not None:
            message = self._message
            message.episode, message.step = told.stamp
            message.bits = told.bits
            message.data = array("B", told.data)
            self._told.publish(message)

    def close(self) -> None:
        """Free what ROS holds."""
        for subscription in self._heard:
            self._node.destroy_subscription(subscription)
        if self._told is not None:
            self._node.destroy_publisher(self._told)


def _never_called(message: PeerMessage) -> None:
    """Messages of peers are taken by hand."""
