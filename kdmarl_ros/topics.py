"""Topic, service and node names, each stated once.

All but those with a leading slash are relative: namespaces and remapping apply.
"""

ACTION = "action"
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
BRIDGE_NODE = "bridge"


def sensor(block: str) -> str:
    """A robot's topic for one block."""
    return f"sensors/{block}"


def of_robot(robot: str, topic: str) -> str:
    """A robot's topic as the bridge, outside its namespace, names it."""
    return f"{robot}/{topic}"
