"""Several robots' policies in one process: each a `PolicyNode` of its own, served in turn.

`policy_host [--ros-args ...] -- ROS_ARGUMENTS -- ROS_ARGUMENTS ...`: first the arguments of the
process, then those of each robot, the very ones that its own process would be given.

What differs from a process per robot is only how nodes are served. rclpy's executor prepares every
entity anew for every callback, which does not carry hundreds of topics. Here messages of all
robots are awaited at once and taken directly, timers are called from one heap, and services and
QoS events get a turn every 0.1 s. Robots that are due at the same moment and fly the same model
are thought about in one call.
"""

from __future__ import annotations

import functools
import gc
import itertools
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rclpy.exceptions import InvalidHandle
from rclpy.executors import SingleThreadedExecutor
from rclpy.guard_condition import GuardCondition
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.logging import get_logger
from rclpy.subscription import Subscription
from rclpy.timer import Timer
from rclpy.utilities import get_default_context

from kdmarl_core.bundle import BundlePolicy, think_ahead
from kdmarl_core.errors import UserError
from kdmarl_ros import qos, topics
from kdmarl_ros.parameters import refuse_to_share
from kdmarl_ros.policy_node import RECORDED_WITHIN_S, PolicyNode
from kdmarl_ros.spin import (
    IDLE_WAKE_S,
    TURN_EVERY_S,
    MessagesFirst,
    Polled,
    PunctualSpinner,
    Stop,
)
from kdmarl_ros.spin import main as spin_main
from kdmarl_ros.timers import Timers

SEPARATOR = "--"  # also ends a list of ROS arguments
LOOKS_PER_S = 5  # robots whose peers are looked up: each time all that is on the graph is read


class _ServicesOnly(MessagesFirst):
    """Leaves to rclpy's executor what the host does not take itself."""

    def can_execute(self, entity: object) -> bool:
        """Whether rclpy may wait for it, and run it, now."""
        return not isinstance(entity, (Subscription, Timer))


class HostedPolicy(PolicyNode):
    """A robot's node that shares its process."""

    def __init__(self, arguments: Sequence[str], host: PolicyHost, index: int) -> None:
        """The node by its own ROS arguments, number `index` of its host."""
        self._host, self._index = host, index
        self._reports = index  # so that robots take turns in looking up their peers
        self._problems: list[str] = []
        self.group = _ServicesOnly()
        super().__init__(arguments, self.group)
        self.executor_ = SingleThreadedExecutor()
        self.executor_.add_node(self)

    def _configure(self) -> None:
        refuse_to_share(self._given, self.get_fully_qualified_name())
        self._problems = []
        super()._configure()

    def _await_delivery(self, seconds: float) -> None:
        if not self._host.closing:
            super()._await_delivery(seconds)

    def _await_records(self, seconds: float) -> None:
        """A robot that ends leaves this to its host, which waits for all at once."""

    def await_records(self, until_s: float) -> None:
        """Wait until its stops are recorded."""
        super()._await_records(max(until_s - time.monotonic(), 0.0))

    def await_last(self, until_s: float) -> None:
        """Wait for the delivery of what was published last, if there ever was anything."""
        if self._runtime is not None:
            super()._await_delivery(max(until_s - time.monotonic(), 0.0))

    def thought(self) -> tuple[BundlePolicy, npt.NDArray[np.float32]] | None:
        """Its policy, and what that would be asked now."""
        runtime = self._runtime
        return None if runtime is None else (runtime.policy, runtime.observation)

    def _every(self, seconds: float, callback: Callable[[], None]) -> Callable[[], object]:
        work = functools.partial(self.safely, callback)
        if callback == self._publish_diagnostics:
            return self._host.report_every(seconds, work, self._index)
        return self._host.every(seconds, work)

    def _when_due(self, decide: Callable[[], None]) -> None:
        self._host.due[self] = decide

    def _peer_problems(self) -> list[str]:
        self._reports += 1
        if self._reports % self._host.reports_per_look == 0:
            self._problems = super()._peer_problems()
        return self._problems


class PolicyHost:
    """See the module's docstring."""

    def __init__(self, robots: Sequence[Sequence[str]]) -> None:
        """A node for each robot's ROS arguments; those of a robot that cannot be are named."""
        if not robots:
            raise UserError(
                f"{topics.POLICY_HOST}: no robots; write '{SEPARATOR}' and one's ROS arguments"
            )
        self.due: dict[HostedPolicy, Callable[[], None]] = {}
        self.closing = False
        self.reports_per_look = -(-len(robots) // LOOKS_PER_S)
        self._number = len(robots)
        self._timers = Timers()
        self._reports = Timers()  # which can wait
        self._began_s = time.monotonic()
        self._next_turn_s = self._began_s
        self._context = get_default_context()
        self._woken = GuardCondition(None, None, context=self._context)
        self._refused: list[UserError] = []
        self._robots: list[HostedPolicy] = []
        for index, arguments in enumerate(robots):
            try:
                self._robots.append(HostedPolicy(arguments, self, index))
            except UserError as error:
                self._refuse(error)
        if not self._robots:
            raise self._refused[0]
        self._waiting = deque(self._robots)  # to be started
        self._patience = itertools.cycle(self._robots)  # whose QoS events are heard next

    def run(self, stop: Stop) -> None:
        """Serve all robots until asked to stop.

        Raises:
            UserError: not one robot can be configured and activated.
        """
        spinner = PunctualSpinner(self)
        while not stop.requested:
            spinner.spin_once(0.0 if self._waiting else self._left_s())
            self._timers.call_due()
            self._decide()
            self._reports.call_one()  # one: messages do not wait for all
            self._take_turn()
            self._start_next()
        spinner.close()

    def close(self) -> None:
        """Publish every robot's safe action before the context goes, then wait for the rest."""
        self.closing = True
        for robot in self._robots:
            robot.safely(robot.close)
        until_s = time.monotonic() + qos.ACKNOWLEDGED_WITHIN_S
        for robot in self._robots:
            robot.safely(robot.await_last, until_s)
        until_s = time.monotonic() + RECORDED_WITHIN_S
        for robot in self._robots:
            robot.safely(robot.await_records, until_s)

    def destroy_node(self) -> None:
        """Free what ROS holds of all robots."""
        for robot in self._robots:
            robot.destroy_node()

    def every(self, seconds: float, callback: Callable[[], None]) -> Callable[[], object]:
        """Call again and again, in steady time; returns what ends that.

        All callbacks of one period are called at one moment.
        """
        return self._timers.every(seconds, callback, self._began_s)

    def report_every(
        self, seconds: float, callback: Callable[[], None], index: int
    ) -> Callable[[], object]:
        """As `every`, but one robot after another, and never before what is due to be decided."""
        phase_s = self._began_s + seconds * index / self._number
        return self._reports.every(seconds, callback, phase_s)

    def _left_s(self) -> float:
        """Until something is to be done though nothing arrives."""
        next_s = min(self._timers.next_s, self._reports.next_s)
        return min(max(next_s - time.monotonic(), 0.0), IDLE_WAKE_S)

    # Starting

    def _start_next(self) -> None:
        """One robot at a time: those that act already are served meanwhile."""
        if not self._waiting:
            return
        robot = self._waiting.popleft()
        try:
            robot.start()
        except UserError as error:
            self._refuse(error)
        if len(self._refused) == self._number:
            raise self._refused[0]
        if not self._waiting:
            gc.collect()
            gc.freeze()  # as in spin.main, of what was made since

    def _refuse(self, error: UserError) -> None:
        """Name what cannot start; the others fly."""
        self._refused.append(error)
        get_logger(topics.POLICY_HOST).error(f"a robot stays on the ground: {error}")

    # Serving

    def wake(self) -> None:
        """End a wait."""
        self._woken.trigger()

    def spin_once(self, timeout_sec: float) -> None:
        """Wait for messages of any robot; take the newest of each topic."""
        listening = [
            (robot, subscription)
            for robot in self._robots
            for subscription in robot.subscriptions
            if not (robot.group.resting(subscription) or _is_polled(subscription))
        ]
        handles = [subscription.handle for _, subscription in listening]
        wait_set = self._wait_set(len(handles), 1, 0)
        for handle in handles:
            wait_set.add_subscription(handle)
        wait_set.add_guard_condition(self._woken.handle)
        wait_set.wait(int(timeout_sec * 1e9))
        ready = set(wait_set.get_ready_entities("subscription"))
        for (robot, subscription), handle in zip(listening, handles, strict=True):
            if handle.pointer in ready:
                robot.safely(_take, subscription)
        for robot in self._robots:
            robot.group.callback_done()

    def _decide(self) -> None:
        due, self.due = self.due, {}
        if len(due) > 1:
            think_ahead(thought for robot in due if (thought := robot.thought()))
        for robot, decide in due.items():
            robot.safely(decide)

    def _take_turn(self) -> None:
        """Services that are called, and one robot's QoS events."""
        now_s = time.monotonic()
        if now_s < self._next_turn_s:
            return
        self._next_turn_s = now_s + TURN_EVERY_S
        services = [(robot, service) for robot in self._robots for service in robot.services]
        wait_set = self._wait_set(0, 0, len(services))
        for _, service in services:
            wait_set.add_service(service.handle)
        wait_set.wait(0)
        ready = set(wait_set.get_ready_entities("service"))
        called = [robot for robot, service in services if service.handle.pointer in ready]
        for robot in (*called, next(self._patience)):
            robot.safely(robot.executor_.spin_once, 0.0)

    def _wait_set(self, subscriptions: int, guards: int, services: int) -> Any:
        context = self._context.handle
        assert context is not None
        wait_set = rclpy_implementation.WaitSet(subscriptions, guards, 0, 0, services, 0, context)
        wait_set.clear_entities()
        return wait_set


def _is_polled(subscription: Subscription[Any]) -> bool:
    """Whether the robot takes what has come by itself."""
    return isinstance(subscription.callback_group, Polled)


def _take(subscription: Subscription[Any]) -> None:
    try:
        with subscription.handle:
            taken = subscription.handle.take_message(subscription.msg_type, subscription.raw)
    except InvalidHandle:  # the robot was cleaned up since
        return
    if taken is not None:
        callback: Any = subscription.callback  # none of a robot's asks for more than the message
        callback(taken[0])


def main(args: list[str] | None = None) -> int:
    """Run the host; returns the exit code."""
    program, *given = sys.argv if args is None else args
    own, *robots = _split(given)
    return spin_main(lambda: PolicyHost(robots), [program, *own])


def _split(arguments: Iterable[str]) -> Iterator[list[str]]:
    """The parts of a command line between separators."""
    part: list[str] = []
    for argument in arguments:
        if argument == SEPARATOR:
            yield part
            part = []
        else:
            part.append(argument)
    yield part


if __name__ == "__main__":
    sys.exit(main())
