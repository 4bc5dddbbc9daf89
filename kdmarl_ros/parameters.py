"""Parameters of the nodes: one frozen dataclass per node, each field described and ranged.

A field without a default is required. All are read-only: a node takes its configuration at
start-up (`declare`). `parameter_checks` finds what a node would refuse before it starts.
"""

from __future__ import annotations

from dataclasses import dataclass

from kdmarl_core.bundle import HIGHEST_RATE_HZ, SECURITY
from kdmarl_core.errors import UserError
from kdmarl_ros.fields import described
from kdmarl_ros.qos import RELIABILITIES
from kdmarl_ros.safety import STALL_BEHAVIOURS
from kdmarl_ros.simulation import SimulationSettings


@dataclass(frozen=True)
class PolicyParameters:
    """Parameters of `policy_node`."""

    bundle: str = described("folder of the bundle: model.onnx and manifest.json")
    mode: str = described(
        "when to act: once per step that arrived whole, or at a rate on the newest values",
        "lock_step",
        choices=("lock_step", "real_time"),
    )
    rate_hz: float = described(
        "decisions per second in real time; 0: the manifest's", 0.0, low=0.0, high=HIGHEST_RATE_HZ
    )
    timeout_s: float = described(
        "silence before the safe action; 0: three periods, at least 0.1 s", 0.0, low=0.0, high=60.0
    )
    sensor_reliability: str = described(
        "QoS of the sensor subscriptions", "best_effort", choices=tuple(RELIABILITIES)
    )
    autostart: bool = described("configure and activate at start-up", True)
    robot_type: str = described(
        "name of the robot's type: the launch lays the parameters of that type under its own", ""
    )
    sensor_map: str = described(
        "file that maps topics to blocks and actions to commands; empty: sensors/<block> only", ""
    )
    robot: str = described(
        "whose bundle it must be; empty: the last part of the node's namespace", ""
    )
    stamps: str = described(
        "when a message was measured: on receipt, or by its header's stamp",
        "receive",
        choices=("receive", "header"),
    )
    recover_after: int = described(
        "good messages of each input after a silence, before it is acted on again",
        1,
        low=1,
        high=1000,
    )
    on_stall: str = described(
        "what to publish while inputs cannot be used: the safe action; the last choice for "
        "stall_hold_s, then the safe action; the last choice; the action stall_action",
        "safe_action",
        choices=STALL_BEHAVIOURS,
    )
    stall_hold_s: float = described("how long hold_then_safe holds", 0.5, low=0.0, high=60.0)
    stall_action: str = described("name of the action that other_action means", "")
    message_delay_steps: int = described(
        "age at which peers' messages can be read; 0: the manifest's", 0, low=0, high=1000
    )
    message_loss: float = described(
        "share of peers' messages that are lost on purpose, to rehearse that",
        0.0,
        low=0.0,
        high=1.0,
    )
    override_timeout_s: float = described(
        "how long a person's action holds after it was last sent", 0.5, low=0.01, high=60.0
    )
    state_directory: str = described(
        "folder of what outlives the node, such as a stop; empty: ~/.ros/kdmarl/domain_<id>", ""
    )
    sole_publisher: bool = described(
        "refuse to activate while another node publishes this robot's actions", False
    )
    security: str = described(
        "signatures: not looked at, checked where there is one, or enforced with secured topics",
        "check",
        choices=SECURITY,
    )
    trusted_keys: str = described("folder of the public keys whose signatures are trusted", "")
    allow_unsecured_middleware: bool = described(
        "enforce signatures although the middleware does not secure topics", False
    )
    recorded: bool = described(
        "keep actions and messages until those who listen have got them, a recorder among them",
        False,
    )

    def __post_init__(self) -> None:
        if self.on_stall == "other_action" and not self.stall_action:
            raise UserError(
                "stall_action: not set, but on_stall is other_action; name that action"
            )
        if self.stall_action and self.on_stall != "other_action":
            raise UserError(
                f"stall_action: {self.stall_action} is for on_stall other_action, not "
                f"{self.on_stall}; change one"
            )
        if self.sensor_map and self.on_stall != "safe_action":
            raise UserError(
                f"on_stall: {self.on_stall} is for robots without sensor_map: a base brakes; "
                "leave one out"
            )
        if self.sensor_map and self.mode != "real_time":
            raise UserError(
                f"sensor_map: mode is {self.mode}, but real sensors know no steps; set mode to "
                "real_time"
            )


def whose_bundle(given: PolicyParameters, name: str) -> str:
    """The robot that a node's bundle must be of, by the last part of its namespace."""
    return given.robot or name


def refuse_bundle_of_another(given: PolicyParameters, name: str, owner: str) -> None:
    """Raise a `UserError` if a node is given the bundle of a robot that it is not."""
    robot = whose_bundle(given, name)
    if not robot:
        raise UserError(
            f"{given.bundle}: the bundle of '{owner}', but this node is nobody's: it has no "
            f"namespace; start it with -r __ns:=/{owner}"
        )
    if owner != robot:
        raise UserError(
            f"{given.bundle}: the bundle of '{owner}', but this is '{robot}'; give that of "
            f"'{robot}', or set robot:={owner} if it is meant"
        )


def refuse_to_share(given: PolicyParameters, where: str) -> None:
    """Raise a `UserError` if a robot cannot share its process with others.

    While one works, the others wait: what takes seconds is for a process of its own.
    """
    for name, value in (
        ("sensor_map", given.sensor_map),  # its base brakes before its node ends
        ("sole_publisher", given.sole_publisher),  # looks around for seconds
    ):
        if value:
            raise UserError(
                f"{where}: parameter {name}: '{value}' would hold up the other robots of the "
                "process; leave it out, or do not host this team"
            )


@dataclass(frozen=True)
class BlockParameters:
    """Parameters that each sensor block has, as `limits.velocity`."""

    limits: tuple[float, ...] = described(
        "least and greatest value; what is beyond is clipped and counted", ()
    )
    max_identical: int = described(
        "equal messages in a row before the block counts as frozen; 0: any number",
        0,
        low=0,
        high=1_000_000,
    )


@dataclass(frozen=True)
class BridgeParameters(SimulationSettings):
    """Parameters of `bridge_node`."""

    team: str = described("name of a team that ships, or a team file")
    results: str = described("file that gets one JSON line per finished episode")
    episodes: int = described("episodes to play", 100, low=1, high=1_000_000_000)
    mode: str = described(
        "when to step: once all robots have answered, or at a rate",
        "lock_step",
        choices=("lock_step", "real_time"),
    )
    rate_hz: float = described(
        "steps per second in real time; 0: the task's", 0.0, low=0.0, high=HIGHEST_RATE_HZ
    )
    seed: int = described("base seed of the episodes", 0, low=0, high=2**31 - 1)
    join_timeout_s: float = described(
        "wait for all robots before the first episode", 30.0, low=0.1, high=3600.0
    )
    state_directory: str = described(
        "folder of what outlives the node, such as a stop; empty: ~/.ros/kdmarl/domain_<id>", ""
    )
    recorded: bool = described(
        "wait for the recorder before the first episode, and keep for it what it has yet to get",
        False,
    )
    security: str = described("enforce: refuse to run on open topics", "off", choices=SECURITY)
    allow_unsecured_middleware: bool = described(
        "run with enforced security although the middleware does not secure topics", False
    )

    def __post_init__(self) -> None:
        if self.mode == "real_time":
            return
        remedy = "go by real time (--real-time, real_time:=true or mode:=real_time)"
        if self.sensor_loss:
            raise UserError(
                f"sensor_loss: {self.sensor_loss:g} in lock-step, which repeats what got lost; "
                f"{remedy}, or set no loss"
            )
        if self.rate_hz:
            raise UserError(
                f"rate_hz: {self.rate_hz:g} in lock-step, which goes as fast as robots answer; "
                f"{remedy}, or set no rate"
            )


@dataclass(frozen=True)
class RecorderParameters:
    """Parameters of `recorder_node`."""

    team: str = described("name of a team that ships, or a team file")
    bundles: str = described("folder with one bundle per robot: their manifests are recorded, too")
    recording: str = described("file to write; one of that name is replaced")
    robots: str = described("the robots' own parameters as JSON: they are recorded, too", "{}")
