"""A simulated task as topics: sensor blocks out, actions in, in lock-step.

Each step is published, answered by every robot, and applied. What is not answered is repeated, so
that a robot that joins or comes back finds the step that the team waits for; after the deadline
its safe action is used and the miss is counted. Episodes are appended to a results file when they
end, and a bridge that is started again goes on behind the last one.
"""

from __future__ import annotations

import sys
import time
from array import array
from pathlib import Path

from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from visualization_msgs.msg import MarkerArray

from kdmarl_core.errors import UserError
from kdmarl_core.evaluate import episode_seed
from kdmarl_core.sensors import RobotSensors, team_sensors
from kdmarl_core.tasks.task import Floats
from kdmarl_core.team import Robot, load_team
from kdmarl_ros import qos, results, topics
from kdmarl_ros.markers import POLICY, SAFE, SILENT, Choice, scene_markers
from kdmarl_ros.msg import AgentAction, FeatureBlock, StepResult
from kdmarl_ros.parameters import BridgeParameters, declare
from kdmarl_ros.security import refuse_open_middleware
from kdmarl_ros.spin import Stop
from kdmarl_ros.spin import main as spin_main

REPEAT_AFTER_S = 0.1
IDLE_WAKE_S = 0.1
RECORDER_WAIT_S = 5.0
DRAW_EVERY_S = 1 / 30  # at most: a picture costs as much as a step, and nobody sees more

# Every event handler costs time in each wait. Nothing that a robot offers is refused here, and a
# subscriber that asks for more than is offered is warned by its own side.
_NO_EVENTS = PublisherEventCallbacks(use_default_callbacks=False)
_NO_SUBSCRIPTION_EVENTS = SubscriptionEventCallbacks(use_default_callbacks=False)


class _RobotLink:
    """One robot's topics as the simulator sees them."""

    def __init__(self, node: Node, robot: Robot, sensors: RobotSensors) -> None:
        self.robot, self.sensors = robot, sensors
        self._node = node
        self._safe_index = robot.agent.actions.index(robot.safe_action)
        self.answer: AgentAction | None = None
        self.answered_s = 0.0
        self._awaited = (-1, -1)
        self._blocks: list[tuple[Publisher[FeatureBlock], FeatureBlock, slice]] = []
        for block in robot.blocks:
            name = topics.of_robot(robot.name, topics.sensor(block.name))
            publisher = node.create_publisher(
                FeatureBlock, name, qos.sensor("reliable"), event_callbacks=_NO_EVENTS
            )
            self._blocks.append((publisher, FeatureBlock(), sensors.parts[block.name]))
        name = topics.of_robot(robot.name, topics.ACTION)
        self._subscription = node.create_subscription(
            AgentAction, name, self._on_action, qos.ACTION, event_callbacks=_NO_SUBSCRIPTION_EVENTS
        )

    def present(self, listeners: int = 1) -> bool:
        """Whether the robot listens to all its blocks and its actions can be heard.

        So many listeners in all, where the robot is not the only one.
        """
        hears = all(
            publisher.get_subscription_count() >= listeners for publisher, _, _ in self._blocks
        )
        return hears and self._node.count_publishers(self._subscription.topic_name) > 0

    def show(self, observation: Floats, episode: int, step: int, stamp: Time) -> None:
        """Publish the robot's blocks of a new step."""
        self._awaited, self.answer = (episode, step), None
        header_stamp = stamp.to_msg()
        sensed = self.sensors.read(observation)
        for _, message, part in self._blocks:
            message.header.stamp = header_stamp
            message.episode, message.step = episode, step
            message.data = array("f", sensed[part].tobytes())
        self.repeat()

    def repeat(self) -> None:
        """Publish the present blocks, again."""
        for publisher, message, _ in self._blocks:
            publisher.publish(message)

    def action(self) -> int:
        """The action to apply: the answer, or the safe action where there is none."""
        return self._safe_index if self.answer is None else self.answer.action

    def _on_action(self, message: AgentAction) -> None:
        stamp = (message.episode, message.step)
        known = 0 <= message.action < len(self.robot.agent.actions)
        if self.answer is None and stamp == self._awaited and known:
            self.answer = message
            self.answered_s = time.perf_counter()


class BridgeNode(Node):
    """`bridge_node`: see the module's docstring; parameters in `BridgeParameters`."""

    def __init__(self) -> None:
        super().__init__(topics.BRIDGE_NODE)
        self._given = declare(self, BridgeParameters)
        refuse_open_middleware(
            self._given.security,
            self._given.allow_unsecured_middleware,
            self.get_fully_qualified_name(),
        )
        self._team = load_team(self._given.team)
        self._env = self._team.task.make_reference()
        self._links = [
            _RobotLink(self, robot, sensors)
            for robot, sensors in zip(self._team.robots, team_sensors(self._team), strict=True)
        ]
        self._step_result = self.create_publisher(
            StepResult, topics.STEP, qos.STEP_RESULT, event_callbacks=_NO_EVENTS
        )
        self._clock_topic = self.create_publisher(
            Clock, topics.CLOCK, qos.CLOCK, event_callbacks=_NO_EVENTS
        )
        self._markers = self.create_publisher(
            MarkerArray, topics.MARKERS, qos.MARKERS, event_callbacks=_NO_EVENTS
        )
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self)
        self._period_ns = round(1e9 / self._team.task.spec.rate_hz)
        self._now = Time()
        self._draw_next_s = 0.0

    def run(self, stop: Stop) -> None:
        """Play all episodes that the results file does not hold yet."""
        path = Path(self._given.results)
        finished = results.read(path)
        for earlier in finished:
            if earlier.seed != episode_seed(self._given.seed, earlier.index):
                raise UserError(
                    f"{path}: episode {earlier.index} was not played with seed "
                    f"{self._given.seed}; give that run's seed, or another results file"
                )
        self._await_robots(stop)
        if self._given.recorded:
            self._await_recorder(stop)
        for index in range(len(finished), self._given.episodes):
            result = self._play(index, stop)
            if result is None:
                return
            results.append(path, result)
        self.get_logger().info(f"{self._given.episodes} episodes played")

    def close(self) -> None:
        """Nothing moves without the bridge's steps."""

    def _await_robots(self, stop: Stop) -> None:
        give_up_s = time.monotonic() + self._given.join_timeout_s
        while not stop.requested:
            missing = [link.robot.name for link in self._links if not link.present()]
            if not missing:
                return
            if time.monotonic() > give_up_s:
                raise UserError(
                    f"{self.get_fully_qualified_name()}: no {' and '.join(missing)} after "
                    f"{self._given.join_timeout_s:g} s; start the robots, or raise join_timeout_s"
                )
            self._executor.spin_once(timeout_sec=IDLE_WAKE_S)

    def _await_recorder(self, stop: Stop) -> None:
        give_up_s = time.monotonic() + RECORDER_WAIT_S
        while not stop.requested and not all(link.present(listeners=2) for link in self._links):
            if time.monotonic() > give_up_s:
                self.get_logger().warning("no recorder listens: the beginning is not recorded")
                return
            self._executor.spin_once(timeout_sec=IDLE_WAKE_S)

    def _play(self, index: int, stop: Stop) -> results.EpisodeResult | None:
        """One episode; None if asked to stop before its end."""
        seed = episode_seed(self._given.seed, index)
        begun = time.perf_counter()
        view = self._env.reset(seed)
        for link in self._links:
            link.sensors.begin(seed)
        record = _Record()
        step, done, outcome = 0, False, ""
        while not done:
            self._show(view.observations, index, step)
            shown_s = time.perf_counter()
            self._await_answers(shown_s, stop)
            if stop.requested:
                return None
            actions = [link.action() for link in self._links]
            record.note(self._links, actions, shown_s)
            self._draw()
            view, reward, done, outcome = self._env.step(actions)
            record.team_return += reward
            step += 1
            self._tell(index, step, reward, done, outcome)
        return results.EpisodeResult(
            index=index,
            seed=seed,
            team_return=record.team_return,
            steps=step,
            outcome=outcome,
            actions=tuple(record.actions),
            latencies_s=tuple(record.latencies_s),
            compute_s=tuple(record.compute_s),
            missed_deadlines=record.missed,
            safe_actions=record.safe,
            seconds=time.perf_counter() - begun,
        )

    def _show(self, observations: tuple[Floats, ...], episode: int, step: int) -> None:
        self._now = Time(nanoseconds=self._now.nanoseconds + self._period_ns)
        self._clock_topic.publish(Clock(clock=self._now.to_msg()))
        for link, observation in zip(self._links, observations, strict=True):
            link.show(observation, episode, step, self._now)

    def _draw(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._draw_next_s and self._markers.get_subscription_count():
            self._draw_next_s = now_s + DRAW_EVERY_S
            choices = [_chosen(link) for link in self._links]
            self._markers.publish(scene_markers(self._env.scene(), choices, self._now))

    def _await_answers(self, shown_s: float, stop: Stop) -> None:
        deadline_s = shown_s + self._given.step_deadline_s
        repeat_s = shown_s + REPEAT_AFTER_S
        while any(link.answer is None for link in self._links) and not stop.requested:
            now_s = time.perf_counter()
            if now_s >= deadline_s:
                return
            if now_s >= repeat_s:
                repeat_s = now_s + REPEAT_AFTER_S
                for link in self._links:
                    if link.answer is None:
                        link.repeat()
            wait_s = min(deadline_s, repeat_s) - now_s
            self._executor.spin_once(timeout_sec=max(wait_s, 0.0))

    def _tell(self, episode: int, step: int, reward: float, done: bool, outcome: str) -> None:
        message = StepResult(
            episode=episode, step=step, team_reward=reward, done=done, outcome=outcome
        )
        message.header.stamp = self._now.to_msg()
        self._step_result.publish(message)


def _chosen(link: _RobotLink) -> Choice:
    """What a robot does at this step, as it is drawn."""
    status = SILENT
    if link.answer is not None:
        status = SAFE if link.answer.status == AgentAction.STATUS_SAFE else POLICY
    return Choice(link.robot.name, link.robot.agent.actions[link.action()], status)


class _Record:
    """What is noted of an episode while it goes on."""

    def __init__(self) -> None:
        self.team_return = 0.0
        self.actions: list[tuple[int, ...]] = []
        self.latencies_s: list[float] = []
        self.compute_s: list[float] = []
        self.missed = 0
        self.safe = 0

    def note(self, links: list[_RobotLink], actions: list[int], shown_s: float) -> None:
        self.actions.append(tuple(actions))
        for link in links:
            if link.answer is None:
                self.missed += 1
                continue
            self.safe += link.answer.status == AgentAction.STATUS_SAFE
            self.latencies_s.append(link.answered_s - shown_s)
            self.compute_s.append(link.answer.compute_time_s)


def main(args: list[str] | None = None) -> int:
    """Run the node; returns the exit code."""
    return spin_main(BridgeNode, args)


if __name__ == "__main__":
    sys.exit(main())
