"""The topics and services by which people stop a robot, or fly it by hand."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from rclpy.node import Node
from std_msgs.msg import Bool, Int32
from std_srvs.srv import SetBool

from kdmarl_ros import oversight, qos, topics
from kdmarl_ros.spin import MessagesFirst

BRAKE_EVERY_S = 0.05  # while a stop is being recorded


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
            brake: called at once when the robot is stopped, and again until that is recorded.
        """
        self._logger, self._brake = node.get_logger(), brake
        name = node.get_namespace().strip("/").replace("/", ".") or "robot"
        self._stops = oversight.latch(state_directory, name, oversight.SERVICE)
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
        # A button that says again and again that it is not pressed releases nothing of this.
        trouble = self._set_stop(oversight.SERVICE, request.data)
        held = f"stopped {self.reason}" if self.stopped else "not stopped"
        response.success = not trouble
        response.message = f"{held}; {trouble}" if trouble else held
        return response

    def _set_stop(self, who: str, stopped: bool) -> str:
        before = self.stopped
        self.trouble = self._brake_and_record(who) if stopped else self._stops.set(who, False)
        if self.trouble:
            self._logger.error(f"the stop will not outlive this process: {self.trouble}")
        if self.stopped != before:
            self._stopped_topic.publish(Bool(data=self.stopped))
            self._logger.warning(f"stopped {self.reason}" if self.stopped else "released")
        return self.trouble

    def _brake_and_record(self, who: str) -> str:
        """Stop; the robot brakes first, and does not wait for a slow disk to go on braking."""
        if self._stops.keeps(who):
            return ""
        recorded: Future[str] = Future()

        def record() -> None:
            try:
                recorded.set_result(self._stops.set(who, True))
            except BaseException as error:  # raised where it is awaited
                recorded.set_exception(error)

        if not self.stopped:
            self._brake()
        threading.Thread(target=record, daemon=True).start()
        while True:
            try:
                return recorded.result(BRAKE_EVERY_S)
            except TimeoutError:
                self._brake()

    def _on_override(self, message: Int32) -> None:
        if self._override and not self._override.set(message.data, time.monotonic()):
            self.refused_overrides += 1
