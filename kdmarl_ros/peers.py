"""Who else is on a node's topics: wrong types, QoS that cannot match, rivals.

Read from the ROS graph, which names the peer; the middleware's own events do not. A process that
was killed stays in the graph until discovery gives it up, up to 20 s later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSCompatibility, QoSProfile, qos_check_compatible
from rclpy.topic_endpoint_info import TopicEndpointInfo


def sensor_problems(node: Node, topic: str, kind: type[Any], qos: QoSProfile) -> list[str]:
    """What is wrong with the publishers of a topic that a node listens to, in words."""
    problems, usable = [], []
    expected = _type_name(kind)
    for info in node.get_publishers_info_by_topic(topic):
        peer = _name(info)
        if info.topic_type != expected:
            problems.append(f"{topic}: {peer} publishes {info.topic_type}, not {expected}")
            continue
        verdict, reason = qos_check_compatible(info.qos_profile, qos)
        if verdict == QoSCompatibility.ERROR:
            problems.append(
                f"{topic}: {peer} offers incompatible QoS ({reason.strip().rstrip(';')})"
            )
            continue
        usable.append(peer)
    if len(usable) > 1:
        problems.append(f"{topic}: {len(usable)} publishers ({_list(usable)})")
    return problems


def listener_problems(node: Node, topic: str, kind: type[Any], qos: QoSProfile) -> list[str]:
    """What is wrong with the subscribers of a topic that a node publishes, in words."""
    problems = []
    expected = _type_name(kind)
    for info in node.get_subscriptions_info_by_topic(topic):
        if info.topic_type != expected:
            problems.append(f"{topic}: {_name(info)} expects {info.topic_type}, not {expected}")
            continue
        verdict, reason = qos_check_compatible(qos, info.qos_profile)
        if verdict == QoSCompatibility.ERROR:
            problems.append(
                f"{topic}: {_name(info)} asks for incompatible QoS ({reason.strip().rstrip(';')})"
            )
    return problems


def rivals(node: Node, topic: str) -> list[str]:
    """Names of the publishers of a topic beside the node's own one."""
    names = [_name(info) for info in node.get_publishers_info_by_topic(topic)]
    own = node.get_fully_qualified_name()
    if own in names:
        names.remove(own)
    return names


def _name(info: TopicEndpointInfo) -> str:
    return f"{info.node_namespace.rstrip('/')}/{info.node_name}"


def _list(names: Sequence[str]) -> str:
    return ", ".join(sorted(names))


def _type_name(kind: type[Any]) -> str:
    package, folder = kind.__module__.split(".")[:2]
    return f"{package}/{folder}/{kind.__name__}"
