"""The topics and services by which people stop a robot, or fly it by hand."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

from rclpy.node import Node
from std_msgs.msg import Bool, Int32
from std_srvs.srv import SetBool

from kdmarl_ros import oversight, qos, topics
from kdmarl_ros.spin import MessagesFirst


class Console:
    """See the module's docstring; what stops and overrides mean is decided in `oversight`."""

    def __init__(
        self, node: Node, group: MessagesFirst, state_directory: str, brake: Callable[[], None]
    ) -> None:
        """Make the entities of one robot; they outlive its configurations.

        Args:
            node: the robot's.
            group: the node's callback group.
            state_directory: where stops are kept; empty: the default.
            brake: called at once when a robot that was free is stopped.
        """
        self._logger, self._brake = node.get_logger(), brake
        name = node.get_namespace().strip("/").replace("/", "_") or "robot"
        self._stops = oversight.latch(state_directory, name)
        self.trouble = ""  # why a stop will not outlive the process
        self._override: oversight.Override | None = None
        self.refused_overrides = 0
        self._stopped_topic = node.create_publisher(
            Bool, topics.STOPPED, qos.LATCHED, event_callbacks=qos.NO_EVENTS
        )
        for who, topic in (
            (oversight.ROBOT, topics.EMERGENCY_STOP),
            (oversight.SWARM, topics.SWARM_STOP),
        ):
            hear = functools.partial(self._on_stop, who)
            node.create_subscription(
                Bool, topic, hear, qos.ANY_PUBLISHER, event_callbacks=qos.NO_SUBSCRIPTION_EVENTS
            )
            # Once more for those who asked before this node was there: for stops alone, since a
            # release may be older than the stop that it would undo.
            hear_earlier = functools.partial(self._on_earlier, who)
            latched = node.create_subscription(
                Bool, topic, hear_earlier, qos.LATCHED, event_callbacks=qos.NO_SUBSCRIPTION_EVENTS
            )
            group.be_patient(latched)
        node.create_service(SetBool, topics.EMERGENCY_STOP, self._on_stop_service)
        node.create_subscription(Int32, topics.OVERRIDE, self._on_override, qos.COMMAND)
        self._stopped_topic.publish(Bool(data=self._stops.stopped))
        if self._stops.stopped:
            self._logger.warning(
                f"stopped {self._stops.reason}; what was stopped stays so until it is released"
            )

    @property
    def stopped(self) -> bool:
        """Whether anybody holds the robot stopped."""
        return self._stops.stopped

    @property
    def reason(self) -> str:
        """Who holds the robot stopped, and since when; empty if nobody does."""
        return self._stops.reason

    def allow_overrides(self, actions: int, timeout_s: float) -> None:
        """From now on a person may choose among so many actions, each for so long."""
        self._override = oversight.Override(actions, timeout_s)

    def overridden(self) -> int | None:
        """The action that a person has chosen, if there is one."""
        return self._override.action(time.monotonic()) if self._override else None

    def _on_stop(self, who: str, message: Bool) -> None:
        self._set_stop(who, message.data)

    def _on_earlier(self, who: str, message: Bool) -> None:
        if message.data:
            self._set_stop(who, True)

    def _on_stop_service(
        self, request: SetBool.Request, response: SetBool.Response
    ) -> SetBool.Response:
        trouble = self._set_stop(oversight.ROBOT, request.data)
        held = f"stopped {self.reason}" if self.stopped else "not stopped"
        response.success = not trouble
        response.message = f"{held}; {trouble}" if trouble else held
        return response

    def _set_stop(self, who: str, stopped: bool) -> str:
        before = self.stopped
        # The robot first, the record after it.
        if stopped and not before:
            self._brake()
        self.trouble = self._stops.set(who, stopped)
        if self.trouble:
            self._logger.error(f"the stop will not outlive this process: {self.trouble}")
        if self.stopped != before:
            self._stopped_topic.publish(Bool(data=self.stopped))
            self._logger.warning(f"stopped {self.reason}" if self.stopped else "released")
        return self.trouble

    def _on_override(self, message: Int32) -> None:
        if self._override and not self._override.set(message.data, time.monotonic()):
            self.refused_overrides += 1
