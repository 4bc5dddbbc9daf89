"""Named QoS profiles, and which QoS events are heard; no other module makes one."""

from rclpy.duration import Duration
from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
from rclpy.qos import DurabilityPolicy, LivelinessPolicy, QoSProfile, ReliabilityPolicy

RELIABILITIES = {
    "best_effort": ReliabilityPolicy.BEST_EFFORT,
    "reliable": ReliabilityPolicy.RELIABLE,
}

# A process that is killed is missed after this time; discovery alone takes 20 s to notice.
LEASE_S = 1.0

# So long does a node that stops wait for the delivery of what it has sent last.
ACKNOWLEDGED_WITHIN_S = 0.2

# As many messages of a topic may be on their way to a recorder that a busy machine holds up: those
# of some seconds.
RECORDED_DEPTH = 1000


def sensor(reliability: str) -> QoSProfile:
    """The newest value only. A best-effort subscription matches every publisher."""
    return QoSProfile(depth=1, reliability=RELIABILITIES[reliability])


def kept(offered: QoSProfile, *, for_recorder: bool) -> QoSProfile:
    """For publishers: in a recorded run nothing is given up that the recorder has yet to get.

    In others it is: what got lost on the air and is no longer the newest would only delay what is.
    """
    return recorded(offered) if for_recorder else offered


def recorded(offered: QoSProfile) -> QoSProfile:
    """The same with room for what a recorder has yet to get, or to take."""
    return QoSProfile(
        depth=RECORDED_DEPTH,
        reliability=offered.reliability,
        durability=offered.durability,
        liveliness=offered.liveliness,
        liveliness_lease_duration=offered.liveliness_lease_duration,
    )


# The newest action only, delivered, from a robot that is known to live.
ACTION = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    liveliness=LivelinessPolicy.AUTOMATIC,
    liveliness_lease_duration=Duration(seconds=LEASE_S),
)

# What robots tell each other: the newest, delivered if that can be, never waited for. If senders
# kept more, Fast DDS would deliver nothing behind one that got lost, for up to 3 s.
TOLD = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)

# What peers have told since the last decision: the newest few.
HEARD = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)

# Every step result of an episode, delivered.
STEP_RESULT = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)

# A person's commands that hold only as long as they are repeated.
COMMAND = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)

# The last word, also for those who come later: stops, what model flies, pictures.
LATCHED = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)

# For a subscription that hears every publisher, whatever it offers.
ANY_PUBLISHER = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)

# What /diagnostics is by convention.
DIAGNOSTICS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)

# The conventional profile of /clock.
CLOCK = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)

# For the simulator, where nothing that a robot offers is refused, and for topics beside the
# control loop: every event handler costs time in each wait. A subscriber that asks for more than
# is offered is warned by its own side.
NO_EVENTS = PublisherEventCallbacks(use_default_callbacks=False)
NO_SUBSCRIPTION_EVENTS = SubscriptionEventCallbacks(use_default_callbacks=False)
