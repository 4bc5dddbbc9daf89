"""Who else is on a node's topics: wrong types, QoS that cannot match, rivals.

Read from the ROS graph, which names the peer; the middleware's own events do not. A process that
was killed stays in the graph until discovery gives it up, up to 20 s later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSCompatibility, qos_check_compatible
from rclpy.topic_endpoint_info import TopicEndpointInfo

# After which peers of this machine are in the graph: each says every 3 s that it is there, and on
# a busy machine one such announcement is missed.
DISCOVERY_S = 10.0
UNKNOWN = "_NODE_NAME_UNKNOWN_"  # an endpoint that is known before its node is

Topics = Sequence[tuple[str, type[Any]]]  # with the types of their messages


def problems(node: Node, heard: Topics, owned: Topics) -> list[str]:
    """What is wrong, in words, with others on topics that a node hears or alone may publish."""
    found = [text for topic, kind in heard for text in _publisher_problems(node, topic, kind)]
    for topic, kind in owned:
        found += _listener_problems(node, topic, kind)
        others = rivals(node, topic)
        if others:
            found.append(f"{topic}: {', '.join(others)} publishes there, too")
    return found


def rivals(node: Node, topic: str) -> list[str]:
    """Names of the publishers of a topic beside the node's own one."""
    names = [_name(info) for info in node.get_publishers_info_by_topic(topic)]
    own = node.get_fully_qualified_name()
    if own in names:
        names.remove(own)
    return names


def listening_namespaces(node: Node, topic: str) -> list[str]:
    """Namespaces of the subscribers of a topic, one for each."""
    return [info.node_namespace for info in node.get_subscriptions_info_by_topic(topic)]


def _publisher_problems(node: Node, topic: str, kind: type[Any]) -> list[str]:
    own = _own(node, node.get_subscriptions_info_by_topic(topic))
    found, usable = [], []
    for info in node.get_publishers_info_by_topic(topic):
        problem = _mismatch(info, kind) or (own and _incompatible(info, own, info))
        if problem:
            found.append(f"{topic}: {_name(info)} {problem}")
        else:
            usable.append(_name(info))
    if len(usable) > 1:
        found.append(f"{topic}: {len(usable)} publishers ({', '.join(sorted(usable))})")
    return found


def _listener_problems(node: Node, topic: str, kind: type[Any]) -> list[str]:
    own = _own(node, node.get_publishers_info_by_topic(topic))
    found = []
    for info in node.get_subscriptions_info_by_topic(topic):
        problem = _mismatch(info, kind) or (own and _incompatible(own, info, info))
        if problem:
            found.append(f"{topic}: {_name(info)} {problem}")
    return found


def _own(node: Node, infos: Sequence[TopicEndpointInfo]) -> TopicEndpointInfo | None:
    own = node.get_fully_qualified_name()
    return next((info for info in infos if _name(info) == own), None)


def _mismatch(info: TopicEndpointInfo, kind: type[Any]) -> str:
    package, folder = kind.__module__.split(".")[:2]
    expected = f"{package}/{folder}/{kind.__name__}"
    return "" if info.topic_type == expected else f"uses {info.topic_type}, not {expected}"


def _incompatible(
    publisher: TopicEndpointInfo, subscription: TopicEndpointInfo, peer: TopicEndpointInfo
) -> str:
    verdict, reason = qos_check_compatible(publisher.qos_profile, subscription.qos_profile)
    if verdict != QoSCompatibility.ERROR:
        return ""
    reason = reason.replace("ERROR:", "").strip().rstrip(";")
    return f"{'offers' if peer is publisher else 'asks for'} incompatible QoS ({reason})"


def _name(info: TopicEndpointInfo) -> str:
    return f"{info.node_namespace.rstrip('/')}/{info.node_name}"
