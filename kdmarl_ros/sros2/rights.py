"""Who may do what: the topics and services of each process of a team.

Names are those of DDS: `rt/` topics, `rq/` requests and `rr/` replies of services.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from rclpy.expand_topic_name import expand_topic_name

from kdmarl_core.errors import UserError
from kdmarl_core.team import Team
from kdmarl_ros import team_topics, topics
from kdmarl_ros.sensor_map import SensorMap

BRIDGE, RECORDER, OPERATOR = "bridge", "recorder", "operator"
PARAMETER_SERVICES = (
    "describe_parameters",
    "get_parameter_types",
    "get_parameters",
    "list_parameters",
    "set_parameters",
    "set_parameters_atomically",
)
LIFECYCLE_SERVICES = (
    "change_state",
    "get_available_states",
    "get_available_transitions",
    "get_state",
    "get_transition_graph",
)
NODE_SERVICES = tuple(f"~/{name}" for name in (*PARAMETER_SERVICES, "get_type_description"))
_OF_EVERY_NODE = ("rt/rosout", "rt/parameter_events")


class Rights(NamedTuple):
    """The DDS topics that a process may publish and subscribe to; all others are denied."""

    publish: frozenset[str]
    subscribe: frozenset[str]


def team_rights(
    team: Team, maps: Mapping[str, SensorMap] = MappingProxyType({})
) -> dict[str, Rights]:
    """The rights of all processes of a team by the name of their enclave.

    Args:
        team: the team.
        maps: the sensor maps of those robots that have one.

    Raises:
        UserError: a robot has the name of another process.
    """
    others = {
        BRIDGE: bridge_rights(team),
        RECORDER: recorder_rights(team),
        OPERATOR: operator_rights(),
    }
    for robot in team.robots:
        if robot.name in others:
            raise UserError(
                f"{team.path}: robots: '{robot.name}' is the name of another process; rename it"
            )
    of_robots = {
        robot.name: robot_rights(
            robot.name,
            team_topics.inputs(robot, team),
            maps.get(robot.name),
            tells=robot.messages is not None,
            peers=[peer.robot for peer in robot.peers],
        )
        for robot in team.robots
    }
    return of_robots | others


def robot_rights(
    robot: str,
    inputs: Iterable[str],
    sensor_map: SensorMap | None,
    *,
    tells: bool = False,
    peers: Iterable[str] = (),
) -> Rights:
    """Its own sensors and what people tell it in; its own action and reports out.

    With a sensor map its sensors are what the map listens to, and its commands go out, too. If it
    `tells` others something, so do its messages, and those of its peers come in.
    """
    told = [topics.of_peer(f"/{robot}", peer, topics.MESSAGE) for peer in peers]
    heard = [topics.sensor(name) for name in inputs]
    commands: list[str] = []
    if sensor_map is not None:
        heard = [source.topic for source in sensor_map.sources]
        commands = [sensor_map.command.topic]
    return _rights(
        f"/{robot}",
        topics.POLICY_NODE,
        publish=[
            topics.ACTION,
            topics.MODEL,
            topics.STOPPED,
            topics.DIAGNOSTICS,
            *([topics.MESSAGE] if tells else []),
            "~/transition_event",
            *commands,
        ],
        subscribe=[
            *heard,
            *told,
            topics.EMERGENCY_STOP,
            topics.SWARM_STOP,
            topics.OVERRIDE,
            topics.CLOCK,
        ],
        serve=[
            *NODE_SERVICES,
            *(f"~/{name}" for name in LIFECYCLE_SERVICES),
            topics.EMERGENCY_STOP,
            topics.RELOAD,
        ],
    )


def bridge_rights(team: Team) -> Rights:
    """All sensors, the clock, the picture and its stop out; all actions and models in."""
    return _rights(
        "/",
        topics.BRIDGE_NODE,
        publish=[
            *(topic.name for topic in team_topics.sensor_topics(team)),
            topics.STEP,
            topics.MARKERS,
            topics.CLOCK,
            topics.DIAGNOSTICS,
            topics.SWARM_STOP,
        ],
        subscribe=[
            topics.of_robot(robot.name, name)
            for robot in team.robots
            for name in (topics.ACTION, topics.MODEL)
        ],
        serve=[*NODE_SERVICES, topics.SWARM_STOP, topics.PAUSE, topics.SINGLE_STEP],
    )


def recorder_rights(team: Team) -> Rights:
    """Everything that is recorded in, nothing out."""
    heard = [topic.name for topic in team_topics.recorded_topics(team)]
    return _rights("/", topics.RECORDER_NODE, publish=[], subscribe=heard, serve=[])


def operator_rights() -> Rights:
    """For people and their tools: all to see, all services to call, stops and manual actions."""
    told = (f"rt/*/{name}" for name in (topics.EMERGENCY_STOP, topics.OVERRIDE))
    return Rights(
        frozenset({"ros_discovery_info", "rq/*Request", *told, *_OF_EVERY_NODE}),
        frozenset({"ros_discovery_info", "rr/*Reply", "rt/*"}),
    )


def _rights(
    namespace: str,
    node: str,
    *,
    publish: Iterable[str],
    subscribe: Iterable[str],
    serve: Iterable[str],
) -> Rights:
    """What every node has (its log, its parameters' events), and its own, by names of ROS."""

    def dds(prefix: str, names: Iterable[str], suffix: str = "") -> set[str]:
        return {f"{prefix}{expand_topic_name(n, node, namespace)}{suffix}" for n in names}

    services = list(serve)
    return Rights(
        frozenset(
            {"ros_discovery_info", *_OF_EVERY_NODE}
            | dds("rt", publish)
            | dds("rr", services, "Reply")
        ),
        frozenset({"ros_discovery_info"} | dds("rt", subscribe) | dds("rq", services, "Request")),
    )
