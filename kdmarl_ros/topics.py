"""Topic and node names, each stated once. All are relative: namespaces and remapping apply."""

ACTION = "action"
STEP = "swarm/step"
MARKERS = "swarm/markers"
CLOCK = "/clock"  # absolute by ROS convention
DIAGNOSTICS = "/diagnostics"  # absolute by ROS convention

POLICY_NODE = "policy"
BRIDGE_NODE = "bridge"
RECORDER_NODE = "recorder"


def sensor(block: str) -> str:
    """A robot's topic for one block."""
    return f"sensors/{block}"


def of_robot(robot: str, topic: str) -> str:
    """A robot's topic as the bridge, outside its namespace, names it."""
    return f"{robot}/{topic}"
