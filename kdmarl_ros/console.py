"""The topics and services by which people stop a robot, or fly it by hand."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable

from rclpy.node import Node
from std_msgs.msg import Bool, Int32
from std_srvs.srv import SetBool

from kdmarl_ros import oversight, qos, topics
from kdmarl_ros.spin import MessagesFirst

BRAKE_EVERY_S = 0.05  # while a service waits for a record


class Console:
    """See the module's docstring; what stops and overrides mean is decided in `oversight`.

    A stop holds as soon as it is heard, a release once it is recorded. A thread of its own
    records what is asked, for as long as there is anything to record: no disk keeps the node's
    thread from its work, but for the answer of a service.
    """

    def __init__(
        self, node: Node, group: MessagesFirst, state_directory: str, brake: Callable[[], None]
    ) -> None:
        """Make the entities of one robot; they outlive its configurations.

        Args:
            node: the robot's.
            group: the node's callback group.
            state_directory: where stops are kept; empty: the default.
            brake: called at once when the robot is stopped, and again while its service waits.
        """
        self._logger, self._brake = node.get_logger(), brake
        name = node.get_namespace().strip("/").replace("/", ".") or "robot"
        self._stops = oversight.latch(state_directory, name, oversight.SERVICE)
        self._lock = threading.RLock()  # of all but `_stops`, which is the recorder's
        self._asked: dict[str, bool] = {}  # by whom: the newest that is not recorded yet
        self._recorder: threading.Thread | None = None  # while it has anything to do
        self._told = self._stops.stopped
        self.trouble = ""  # what became of a request that could not be recorded
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
        with self._lock:
            return any(self._asked.values()) or self._stops.stopped

    @property
    def reason(self) -> str:
        """Who holds the robot stopped, and since when; empty if nobody does."""
        with self._lock:
            asked = ", ".join(f"by {who}" for who, stopped in self._asked.items() if stopped)
            return self._stops.reason or asked

    def recorded(self, within_s: float) -> bool:
        """Whether all that was asked is recorded, or could not be, within so long."""
        recorder = self._recorder
        if recorder is not None:
            recorder.join(within_s)
        return recorder is None or not recorder.is_alive()

    def allow_overrides(self, actions: int, timeout_s: float) -> None:
        """From now on a person may choose among so many actions, each for so long."""
        self._override = oversight.Override(actions, timeout_s)

    def overridden(self) -> int | None:
        """The action that a person has chosen, if there is one."""
        return self._override.action(time.monotonic()) if self._override else None

    def _on_stop(self, who: str, message: Bool) -> None:
        self._ask(who, message.data)

    def _on_earlier(self, who: str, message: Bool) -> None:
        if message.data:
            self._ask(who, True)

    def _on_stop_service(
        self, request: SetBool.Request, response: SetBool.Response
    ) -> SetBool.Response:
        # A button that says again and again that it is not pressed releases nothing of this.
        self._ask(oversight.SERVICE, request.data)
        while not self.recorded(BRAKE_EVERY_S):
            self._brake()
        held = f"stopped {self.reason}" if self.stopped else "not stopped"
        response.success = not self.trouble
        response.message = f"{held}; {self.trouble}" if self.trouble else held
        return response

    def _ask(self, who: str, stopped: bool) -> None:
        """Stop the robot now, or release it as soon as that is recorded."""
        with self._lock:
            if who not in self._asked and self._stops.says(who, stopped):
                self.trouble = ""
                return
            before = self.stopped
            self._asked.pop(who, None)  # the newest is recorded last
            self._asked[who] = stopped
        try:
            if stopped and not before:
                self._brake()
        finally:
            with self._lock:
                if self._recorder is None:
                    self._recorder = threading.Thread(target=self._record, daemon=True)
                    self._recorder.start()
                self._tell()

    def _record(self) -> None:
        """Record what is asked, until that is done."""
        while True:
            with self._lock:
                if not self._asked:
                    self._recorder = None
                    return
                who, stopped = next(iter(self._asked.items()))
            try:
                trouble = self._stops.set(who, stopped)
            except Exception as error:
                trouble = repr(error)
            with self._lock:
                if self._asked[who] == stopped:  # else more has been asked since
                    del self._asked[who]
                self.trouble = trouble
                if trouble:
                    self._logger.error(trouble)
                self._tell()

    def _tell(self) -> None:
        if self.stopped != self._told:
            self._told = self.stopped
            self._stopped_topic.publish(Bool(data=self._told))
            self._logger.warning(f"stopped {self.reason}" if self._told else "released")

    def _on_override(self, message: Int32) -> None:
        if self._override and not self._override.set(message.data, time.monotonic()):
            self.refused_overrides += 1
