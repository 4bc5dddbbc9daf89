"""The topics of a whole team, as the bridge and the recorder name them outside of namespaces."""

from __future__ import annotations

from typing import Any, NamedTuple

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.qos import QoSProfile
from rosgraph_msgs.msg import Clock
from std_msgs.msg import String
from visualization_msgs.msg import MarkerArray

from kdmarl_core.team import Robot, Team
from kdmarl_ros import qos, topics
from kdmarl_ros.msg import AgentAction, FeatureBlock, PeerMessage, StepResult


class TeamTopic(NamedTuple):
    """A topic, what is sent there, and how."""

    name: str
    kind: Any
    offered: QoSProfile


def inputs(robot: Robot, team: Team) -> list[str]:
    """Names of all that a robot is sent."""
    blocks = (block.name for block in robot.blocks)
    return topics.inputs(blocks, masked=team.task.spec.legal_actions_vary)


def sensor_topics(team: Team) -> list[TeamTopic]:
    """All topics on which the bridge sends to robots."""
    offered = qos.sensor("reliable")
    return [
        TeamTopic(topics.of_robot(robot.name, topics.sensor(name)), FeatureBlock, offered)
        for robot in team.robots
        for name in inputs(robot, team)
    ]


def action_topics(team: Team) -> list[TeamTopic]:
    """All topics on which robots answer."""
    return [
        TeamTopic(topics.of_robot(robot.name, topics.ACTION), AgentAction, qos.ACTION)
        for robot in team.robots
    ]


def message_topics(team: Team) -> list[TeamTopic]:
    """All topics on which robots tell each other something."""
    return [
        TeamTopic(topics.of_robot(robot.name, topics.MESSAGE), PeerMessage, qos.TOLD)
        for robot in team.robots
        if robot.messages
    ]


def model_topics(team: Team) -> list[TeamTopic]:
    """All topics on which robots say what model they fly."""
    return [
        TeamTopic(topics.of_robot(robot.name, topics.MODEL), String, qos.LATCHED)
        for robot in team.robots
    ]


def recorded_topics(team: Team) -> list[TeamTopic]:
    """What a recording holds, in the order in which the recorder listens to it.

    Models come behind all else that robots send, and sensors last: it tells by the first that it
    has been found, and the run begins with the others.
    """
    return [
        *action_topics(team),
        *message_topics(team),
        TeamTopic(topics.STEP, StepResult, qos.STEP_RESULT),
        TeamTopic(topics.CLOCK, Clock, qos.CLOCK),
        TeamTopic(topics.MARKERS, MarkerArray, qos.LATCHED),
        TeamTopic(topics.DIAGNOSTICS, DiagnosticArray, qos.DIAGNOSTICS),
        *model_topics(team),
        *sensor_topics(team),
    ]
