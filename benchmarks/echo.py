"""Bare rclpy nodes: the floor that kdmarl's nodes are measured against, and the probe.

They use the swarm's topics, messages, sizes and QoS, and do nothing else: no simulator, no
network, no checks. `robot` answers when all blocks of a step have arrived; `driver` publishes a
step, waits for all answers and publishes the next; `probe` times round trips of two robots in
turn.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import random
import time
from array import array
from collections.abc import Callable

import numpy as np
import rclpy
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.task import Future
from rclpy.time import Time
from rosgraph_msgs.msg import Clock

from kdmarl_core.bundle import FORMATS, encode
from kdmarl_ros import qos, topics
from kdmarl_ros.msg import AgentAction, FeatureBlock, PeerMessage, StepResult

Stamp = tuple[int, int]  # episode, step
# Who tells how many values, in which format, learned in which training.
Peers = dict[str, tuple[int, str, str]]
EPISODE_STEPS = 25
WARM_UP_STEPS = 100
SETTLE_S = 1.0  # both ends of a topic do not find each other at the same moment


class EchoRobot(Node):
    """Answers every whole step."""

    def __init__(self, robot: str, blocks: dict[str, int]) -> None:
        super().__init__("echo", namespace=robot)
        self._stamps: dict[str, Stamp] = dict.fromkeys(blocks, (-1, -1))
        self._action = self.create_publisher(AgentAction, topics.ACTION, qos.ACTION)
        for block in blocks:
            receive = functools.partial(self._on_block, block)
            self.create_subscription(
                FeatureBlock, topics.sensor(block), receive, qos.sensor("reliable")
            )

    def _on_block(self, block: str, message: FeatureBlock) -> None:
        stamp = (message.episode, message.step)
        self._stamps[block] = stamp
        if all(other == stamp for other in self._stamps.values()):
            action = AgentAction(episode=message.episode, step=message.step)
            action.header.stamp = self.get_clock().now().to_msg()
            self._action.publish(action)


class _Link:
    """One robot's topics, seen from the other side; what its peers tell is sent, too."""

    def __init__(
        self,
        node: Node,
        robot: str,
        blocks: dict[str, int],
        on_action: Callable[[Stamp], None],
        peers: Peers | None = None,
    ) -> None:
        self._node = node
        self._on_action = on_action
        name = topics.of_robot(robot, topics.ACTION)
        self._subscription = node.create_subscription(AgentAction, name, self._receive, qos.ACTION)
        self._blocks = [
            (
                node.create_publisher(
                    FeatureBlock,
                    topics.of_robot(robot, topics.sensor(block)),
                    qos.sensor("reliable"),
                    event_callbacks=PublisherEventCallbacks(use_default_callbacks=False),
                ),
                array("f", (random.gauss(0, 1) for _ in range(size))),
            )
            for block, size in blocks.items()
        ]
        self._peers = [
            (
                node.create_publisher(
                    PeerMessage, topics.of_robot(peer, topics.MESSAGE), qos.TOLD
                ),
                PeerMessage(
                    training=int(training, 16),
                    bits=FORMATS[form].bits,
                    data=encode(np.zeros(size, np.float32), form),
                ),
            )
            for peer, (size, form, training) in (peers or {}).items()
        ]

    def present(self) -> bool:
        """Whether the robot is there."""
        publishers = [publisher for publisher, _ in (*self._blocks, *self._peers)]
        hears = all(publisher.get_subscription_count() for publisher in publishers)
        return hears and self._node.count_publishers(self._subscription.topic_name) > 0

    def tell(self, stamp: Stamp) -> None:
        """Publish what peers tell in a step."""
        for publisher, message in self._peers:
            message.episode, message.step = stamp
            publisher.publish(message)

    def show(self, stamp: Stamp, now: Time) -> None:
        """Publish all blocks of a step."""
        for publisher, data in self._blocks:
            message = FeatureBlock(episode=stamp[0], step=stamp[1], data=data)
            message.header.stamp = now.to_msg()
            publisher.publish(message)

    def _receive(self, message: AgentAction) -> None:
        if message.status == AgentAction.STATUS_POLICY:
            self._on_action((message.episode, message.step))


class EchoDriver(Node):
    """Steps a swarm of echo robots; `finished` ends with the seconds that the steps took."""

    def __init__(self, layout: dict[str, dict[str, int]], steps: int) -> None:
        super().__init__("driver")
        self.finished: Future[float] = Future()
        self._last = WARM_UP_STEPS + steps
        self._count = 0
        self._answered: set[str] = set()
        self._links = {
            robot: _Link(self, robot, blocks, functools.partial(self._on_action, robot))
            for robot, blocks in layout.items()
        }
        self._clock_topic = self.create_publisher(Clock, topics.CLOCK, qos.CLOCK)
        self._step_result = self.create_publisher(StepResult, topics.STEP, qos.STEP_RESULT)

    def present(self) -> bool:
        """Whether all robots are there."""
        return all(link.present() for link in self._links.values())

    def begin(self) -> None:
        """Publish the first step; each further one follows from the answers."""
        self._show()

    def _stamp(self) -> Stamp:
        return divmod(self._count, EPISODE_STEPS)

    def _show(self) -> None:
        self._answered.clear()
        now = self.get_clock().now()
        self._clock_topic.publish(Clock(clock=now.to_msg()))
        for link in self._links.values():
            link.show(self._stamp(), now)

    def _on_action(self, robot: str, stamp: Stamp) -> None:
        if stamp != self._stamp():
            return
        self._answered.add(robot)
        if len(self._answered) == len(self._links):
            self._complete(stamp)

    def _complete(self, stamp: Stamp) -> None:
        result = StepResult(episode=stamp[0], step=stamp[1])
        result.header.stamp = self.get_clock().now().to_msg()
        self._step_result.publish(result)
        self._count += 1
        if self._count == WARM_UP_STEPS:
            self._begun_s = time.perf_counter()
        if self._count == self._last:
            self.finished.set_result(time.perf_counter() - self._begun_s)
        else:
            self._show()


class Probe(Node):
    """Times round trips of several robots in turn."""

    def __init__(
        self, layout: dict[str, dict[str, int]], peers: dict[str, Peers] | None = None
    ) -> None:
        super().__init__("probe", start_parameter_services=False)
        self._links = {
            robot: _Link(
                self,
                robot,
                blocks,
                functools.partial(self._on_action, robot),
                (peers or {}).get(robot),
            )
            for robot, blocks in layout.items()
        }
        self._awaited = ("", (-1, -1))
        self._answered_s = 0.0

    def present(self) -> bool:
        """Whether all robots are there."""
        return all(link.present() for link in self._links.values())

    def measure(self, executor: SingleThreadedExecutor, trips: int) -> dict[str, list[float]]:
        """Seconds from the first block out to the action in, per robot and trip."""
        seconds: dict[str, list[float]] = {robot: [] for robot in self._links}
        for count in range(WARM_UP_STEPS + trips):
            for robot in self._links:
                latency_s = self._round_trip(executor, robot, divmod(count, EPISODE_STEPS))
                if count >= WARM_UP_STEPS:
                    seconds[robot].append(latency_s)
        return seconds

    def drive(self, executor: SingleThreadedExecutor, rate_hz: float, seconds: float) -> None:
        """Publish a step per period, whatever is answered."""
        begun_s = time.monotonic()
        for count in range(round(rate_hz * seconds)):
            for link in self._links.values():
                link.show(divmod(count, EPISODE_STEPS), self.get_clock().now())
            while (left_s := begun_s + (count + 1) / rate_hz - time.monotonic()) > 0:
                executor.spin_once(timeout_sec=left_s)

    def _round_trip(self, executor: SingleThreadedExecutor, robot: str, stamp: Stamp) -> float:
        self._awaited = (robot, stamp)
        now = self.get_clock().now()
        begun_s = time.perf_counter()
        self._links[robot].show(stamp, now)
        self._links[robot].tell(stamp)  # which is read in the next step
        while self._answered_s < begun_s:
            executor.spin_once()
        return self._answered_s - begun_s

    def _on_action(self, robot: str, stamp: Stamp) -> None:
        if self._awaited == (robot, stamp):
            self._answered_s = time.perf_counter()


def await_robots(node: EchoDriver | Probe, executor: SingleThreadedExecutor) -> None:
    """Wait until all robots are there and hear every topic."""
    while not node.present():
        executor.spin_once(timeout_sec=0.1)
    settled_s = time.monotonic() + SETTLE_S
    while time.monotonic() < settled_s:
        executor.spin_once(timeout_sec=0.1)


def main() -> None:
    """Run one bare node."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=("robot", "driver", "probe"))
    parser.add_argument("layout", type=json.loads, help="robot -> block -> number of values")
    parser.add_argument("count", type=int, nargs="?", default=0, help="steps or round trips")
    parser.add_argument(
        "--peers", type=json.loads, help="robot -> peer -> [size, format, training]"
    )
    arguments = parser.parse_args()
    rclpy.init()
    executor = SingleThreadedExecutor()
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        if arguments.role == "robot":
            [(robot, blocks)] = arguments.layout.items()
            executor.add_node(EchoRobot(robot, blocks))
            executor.spin()
        elif arguments.role == "driver":
            driver = EchoDriver(arguments.layout, arguments.count)
            executor.add_node(driver)
            await_robots(driver, executor)
            driver.begin()
            executor.spin_until_future_complete(driver.finished)
            print(json.dumps(arguments.count / driver.finished.result()))
        else:
            probe = Probe(arguments.layout, arguments.peers)
            executor.add_node(probe)
            await_robots(probe, executor)
            gc.freeze()
            print(json.dumps(probe.measure(executor, arguments.count)))
    rclpy.try_shutdown()


if __name__ == "__main__":
    main()
