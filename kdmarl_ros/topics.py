"""Topic, service and node names, each stated once.

All but those with a leading slash are relative: namespaces and remapping apply.
"""

from collections.abc import Iterable

from kdmarl_core.bundle import ACTION_MASK

ACTION = "action"
MESSAGE = "message"
MODEL = "model"
EMERGENCY_STOP = "emergency_stop"  # a topic and a service
STOPPED = "stopped"
OVERRIDE = "override"
RELOAD = "~/reload"

STEP = "swarm/step"
MARKERS = "swarm/markers"
SWARM_STOP = "/swarm/emergency_stop"  # a topic and a service; absolute: robots have namespaces
PAUSE = "~/pause"
SINGLE_STEP = "~/step"

CLOCK = "/clock"  # absolute by ROS convention
DIAGNOSTICS = "/diagnostics"  # absolute by ROS convention

POLICY_NODE = "policy"
POLICY_HOST = "policy_host"  # a process of several; no node of its own
BRIDGE_NODE = "bridge"
RECORDER_NODE = "recorder"

# What no robot can be called, since its topics, records or logs would be another's.
RESERVED = ("swarm", POLICY_HOST, BRIDGE_NODE, RECORDER_NODE)


def inputs(blocks: Iterable[str], *, masked: bool) -> list[str]:
    """Names of all that a robot is sent: its blocks and, if masked, its legal actions."""
    return [*blocks, *([ACTION_MASK] if masked else [])]


def sensor(name: str) -> str:
    """A robot's topic for one input."""
    return f"sensors/{name}"


def beside(namespace: str, peer: str) -> str:
    """The namespace of a robot whose namespace lies beside one's own."""
    return f"{namespace.rstrip('/').rpartition('/')[0]}/{peer}"


def of_peer(namespace: str, peer: str, topic: str) -> str:
    """A topic of such a robot, absolute."""
    return f"{beside(namespace, peer)}/{topic}"


def of_robot(robot: str, topic: str) -> str:
    """A robot's topic as the bridge, outside its namespace, names it."""
    return f"{robot}/{topic}"
