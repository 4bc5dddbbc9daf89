"""One robot's topics as the simulator sees them: its sensors out, its actions in."""

from __future__ import annotations

import math
import time
from array import array

import numpy as np
from rclpy.event_handler import (
    QoSLivelinessChangedInfo,
    SubscriptionEventCallbacks,
)
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.time import Time
from std_msgs.msg import String

from kdmarl_core.bundle import ACTION_MASK
from kdmarl_core.sensors import RobotSensors
from kdmarl_core.tasks.task import Booleans, Floats
from kdmarl_core.team import Robot
from kdmarl_ros import qos, topics
from kdmarl_ros.disturbance import Disturbance
from kdmarl_ros.msg import AgentAction, FeatureBlock
from kdmarl_ros.safety import legal_action

STATUSES = (AgentAction.STATUS_POLICY, AgentAction.STATUS_SAFE, AgentAction.STATUS_OVERRIDE)


class RobotLink:
    """See the module's docstring."""

    def __init__(
        self,
        node: Node,
        robot: Robot,
        sensors: RobotSensors,
        disturbance: Disturbance,
        *,
        masked: bool,
        recorded: bool,
    ) -> None:
        """Make the topics of one robot.

        Args:
            node: theirs.
            robot: whose topics.
            sensors: what it senses of an observation.
            disturbance: what becomes of its inputs and actions.
            masked: it must be told its legal actions.
            recorded: somebody else gets all its inputs, too.
        """
        self.robot, self.sensors = robot, sensors
        self.disturbance = disturbance
        self._node = node
        self._safe_index = robot.agent.actions.index(robot.safe_action)
        self.model = ""  # SHA-256 of what it flies, as it says itself
        self.alive = False
        self.answer: AgentAction | None = None  # to the step shown last
        self.answered_s = 0.0
        self._newest: AgentAction | None = None  # of any step
        self._newest_s = 0.0
        self.refused = 0  # messages with an action or a status that does not exist, or no number
        self._awaited = (-1, -1)
        self._legal: Booleans = np.ones(len(robot.agent.actions), np.bool_)
        self._sensed_parts = [sensors.parts[block.name] for block in robot.sensors]
        names = topics.inputs((block.name for block in robot.blocks), masked=masked)
        profile = qos.kept(qos.sensor("reliable"), for_recorder=recorded)
        self._blocks: dict[str, tuple[Publisher[FeatureBlock], FeatureBlock]] = {}
        for name in names:
            topic = topics.of_robot(robot.name, topics.sensor(name))
            publisher = node.create_publisher(
                FeatureBlock, topic, profile, event_callbacks=qos.NO_EVENTS
            )
            self._blocks[name] = (publisher, FeatureBlock())
        self._subscription = node.create_subscription(
            AgentAction,
            topics.of_robot(robot.name, topics.ACTION),
            self._on_action,
            qos.ACTION,
            event_callbacks=SubscriptionEventCallbacks(
                liveliness=self._on_liveliness, use_default_callbacks=False
            ),
        )
        node.create_subscription(
            String,
            topics.of_robot(robot.name, topics.MODEL),
            self._on_model,
            qos.LATCHED,
            event_callbacks=qos.NO_SUBSCRIPTION_EVENTS,
        )

    @property
    def publishers(self) -> list[Publisher[FeatureBlock]]:
        """Of all that the robot is sent."""
        return [publisher for publisher, _ in self._blocks.values()]

    def present(self, listeners: int = 1) -> bool:
        """Whether the robot listens to all its inputs and its actions can be heard.

        So many listeners in all, where the robot is not the only one.
        """
        hears = all(
            publisher.get_subscription_count() >= listeners
            for publisher, _ in self._blocks.values()
        )
        heard = self._node.count_publishers(self._subscription.topic_name) > 0
        return hears and heard and self.model != ""

    def begin(self, episode_seed: int) -> None:
        """A new episode."""
        self.sensors.begin(episode_seed)
        self.disturbance.begin(episode_seed)
        self._newest = None

    def show(
        self, observation: Floats, legal: Booleans, episode: int, step: int, stamp: Time
    ) -> None:
        """Publish the robot's inputs of a new step."""
        self._awaited, self.answer = (episode, step), None
        self._legal = legal
        header_stamp = stamp.to_msg()
        sensed, mask = self.disturbance.delayed((self.sensors.read(observation), legal))
        sensed = self.disturbance.noisy(sensed, self._sensed_parts)
        for name, (_, message) in self._blocks.items():
            values = mask.astype(np.float32) if name == ACTION_MASK else sensed
            part = slice(None) if name == ACTION_MASK else self.sensors.parts[name]
            message.header.stamp = header_stamp
            message.episode, message.step = episode, step
            message.data = array("f", values[part].tobytes())
        self.repeat()

    def repeat(self) -> None:
        """Publish the present inputs, again, as far as they do not get lost."""
        for publisher, message in self._blocks.values():
            if not self.disturbance.loses():
                publisher.publish(message)

    def choice(self, hold_s: float | None) -> AgentAction | None:
        """What the robot wants to do: its answer, or its newest action of the last `hold_s`."""
        if hold_s is None:
            return self.answer
        held = self._newest is not None and time.perf_counter() - self._newest_s <= hold_s
        return self._newest if held else None

    def apply(self, choice: AgentAction | None) -> tuple[int, bool]:
        """The action to apply, and whether it is the one that the robot wanted.

        That is the safe action if there is no choice. An action that is not legal is replaced by
        the safe action; if that is not legal either, by the first one that is: a unit that was
        shot in SMAX can only stop.
        """
        wanted = self._safe_index if choice is None else choice.action
        wanted = self.disturbance.acting(wanted)
        action = legal_action(wanted, self._safe_index, self._legal)
        return action, bool(self._legal[wanted])

    def _on_action(self, message: AgentAction) -> None:
        if not (
            0 <= message.action < len(self.robot.agent.actions)
            and message.status in STATUSES
            and math.isfinite(message.compute_time_s)
        ):
            self.refused += 1
            return
        now_s = time.perf_counter()
        # An action for an earlier episode must not move the robot in this one.
        if message.episode == self._awaited[0]:
            self._newest, self._newest_s = message, now_s
        if self.answer is None and (message.episode, message.step) == self._awaited:
            self.answer, self.answered_s = message, now_s

    def _on_model(self, message: String) -> None:
        self.model = message.data

    def _on_liveliness(self, event: QoSLivelinessChangedInfo) -> None:
        self.alive = event.alive_count > 0
