"""Named QoS profiles; no other module makes one."""

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

RELIABILITIES = {
    "best_effort": ReliabilityPolicy.BEST_EFFORT,
    "reliable": ReliabilityPolicy.RELIABLE,
}


RECORDER_DEPTH = 1000


def sensor(reliability: str) -> QoSProfile:
    """The newest value only. A best-effort subscription matches every publisher."""
    return QoSProfile(depth=1, reliability=RELIABILITIES[reliability])


def recorded(offered: QoSProfile) -> QoSProfile:
    """A subscription that matches what is offered and holds what a recorder has yet to take."""
    return QoSProfile(
        depth=RECORDER_DEPTH, reliability=offered.reliability, durability=offered.durability
    )


# The newest action only, delivered.
ACTION = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)

# Every step result of an episode, delivered.
STEP_RESULT = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)

# What /diagnostics is by convention.
DIAGNOSTICS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)

# The conventional profile of /clock.
CLOCK = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)

# Late viewers get the last picture.
MARKERS = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
