"""The topics that a sensor map listens to."""

from __future__ import annotations

from typing import NamedTuple

from kdmarl_core.errors import UserError


class Source(NamedTuple):
    """A topic to subscribe to."""

    topic: str
    message: type


class Sources:
    """Topics that are listened to, each once."""

    def __init__(self, namespace: str) -> None:
        """Of the robot with that namespace, such as /robot_0."""
        self._parent, _, self.robot = namespace.rstrip("/").rpartition("/")
        self.listed: list[Source] = []

    def index(self, topic: str, message: type, where: str) -> int:
        """The number of a topic, which is listened to from now on."""
        for index, source in enumerate(self.listed):
            if source.topic == topic:
                if source.message is not message:
                    raise UserError(
                        f"{where}: type: topic '{topic}' is of another type elsewhere in the "
                        "file; correct one of them"
                    )
                return index
        self.listed.append(Source(topic, message))
        return len(self.listed) - 1

    def of_peer(self, peer: str, topic: str) -> str:
        """A topic of the robot's own, in the namespace of another one beside it."""
        return f"{self._parent}/{peer}/{topic}"
