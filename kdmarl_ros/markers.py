"""A scene and what its robots chose as markers for RViz and Foxglove.

Every picture says of each marker that it is there or gone, so that it replaces the one before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from geometry_msgs.msg import Point
from rclpy.time import Time
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from kdmarl_core.tasks import Entity

FRAME = "map"  # REP-105
ROBOTS, ENEMIES, LANDMARKS = "robots", "enemies", "landmarks"
REACH, ACTIONS, NAMES = "reach", "actions", "names"
_KINDS = {"agent": ROBOTS, "enemy": ENEMIES, "landmark": LANDMARKS}

Colour = tuple[float, float, float, float]
POLICY: Colour = (0.20, 0.40, 0.85, 0.9)  # it acts
SAFE: Colour = (0.95, 0.60, 0.10, 0.9)  # its safe action: input stale, or stopped
OVERRIDDEN: Colour = (0.10, 0.65, 0.35, 0.9)  # a person chooses
SILENT: Colour = (0.85, 0.15, 0.15, 0.9)  # no answer in time
DEAD: Colour = (0.60, 0.60, 0.60, 0.3)
ENEMY: Colour = (0.55, 0.10, 0.45, 0.9)
LANDMARK: Colour = (0.25, 0.25, 0.25, 0.9)
_INK: Colour = (0.05, 0.05, 0.05, 1.0)

HEIGHT_M, FLAT_M, SHAFT_M = 0.05, 0.01, 0.03
ARROW_RADII = 3.0  # of the robot: how long the arrow of a move is
TEXT_M = 0.12
MOVES = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "down": (0.0, -1.0),
    "up": (0.0, 1.0),
    "west": (-1.0, 0.0),
    "east": (1.0, 0.0),
    "south": (0.0, -1.0),
    "north": (0.0, 1.0),
}
ATTACK = "attack_"  # and the number of an enemy


class Choice(NamedTuple):
    """What a robot does at this step."""

    robot: str  # its name
    action: str  # the action's name
    status: Colour


def scene_markers(scene: Sequence[Entity], choices: Sequence[Choice], stamp: Time) -> MarkerArray:
    """The present picture, in metres, in frame `map`.

    Args:
        scene: what can be drawn of the moment, robots in the order of the task's agents.
        choices: one per robot.
        stamp: the moment.
    """
    enemies = [entity for entity in scene if entity.kind == "enemy"]
    robots = [entity for entity in scene if entity.kind == "agent"]
    markers = [_disc(index, entity, _colour(entity)) for index, entity in enumerate(scene)]
    for index, (robot, choice) in enumerate(zip(robots, choices, strict=True)):
        status = choice.status if robot.health > 0 else DEAD
        markers[scene.index(robot)].color = _rgba(status)
        markers.append(_arrow(index, robot, _target(robot, choice.action, enemies)))
        markers.append(_reach(index, robot))
        markers.append(_name(index, robot, choice))
    for marker in markers:
        marker.header.frame_id = FRAME
        marker.header.stamp = stamp.to_msg()
    return MarkerArray(markers=markers)


def _colour(entity: Entity) -> Colour:
    if entity.kind == "landmark":
        return LANDMARK
    return ENEMY if entity.health > 0 else DEAD


def _target(robot: Entity, action: str, enemies: Sequence[Entity]) -> tuple[float, float] | None:
    """Where the arrow of an action ends [m]; None for one that goes nowhere."""
    if action in MOVES:
        x, y = MOVES[action]
        length_m = ARROW_RADII * robot.radius_m
        return robot.x_m + length_m * x, robot.y_m + length_m * y
    number = action.removeprefix(ATTACK)
    if action.startswith(ATTACK) and number.isdecimal() and int(number) < len(enemies):
        return enemies[int(number)].x_m, enemies[int(number)].y_m
    return None


def _disc(index: int, entity: Entity, colour: Colour) -> Marker:
    """A flat cylinder; of a unit, its height is its health."""
    marker = _marker(_KINDS[entity.kind], index, Marker.CYLINDER, colour)
    marker.pose.position.x, marker.pose.position.y = entity.x_m, entity.y_m
    marker.scale.x = marker.scale.y = 2 * entity.radius_m
    marker.scale.z = max(HEIGHT_M * entity.health, FLAT_M)
    return marker


def _arrow(index: int, robot: Entity, target: tuple[float, float] | None) -> Marker:
    marker = _marker(ACTIONS, index, Marker.ARROW, _INK)
    if target is None or robot.health <= 0:
        marker.action = Marker.DELETE
        return marker
    ends = ((robot.x_m, robot.y_m), target)
    marker.points = [Point(x=x, y=y, z=HEIGHT_M) for x, y in ends]
    marker.scale.x, marker.scale.y = SHAFT_M, 2 * SHAFT_M
    return marker


def _reach(index: int, robot: Entity) -> Marker:
    """How far the robot sees; nothing where a task has no such limit."""
    marker = _marker(REACH, index, Marker.LINE_STRIP, (*POLICY[:3], 0.4))
    if math.isinf(robot.sight_m) or robot.health <= 0:
        marker.action = Marker.DELETE
        return marker
    for step in range(37):
        angle = math.radians(10 * step)
        x_m = robot.x_m + robot.sight_m * math.cos(angle)
        y_m = robot.y_m + robot.sight_m * math.sin(angle)
        marker.points.append(Point(x=x_m, y=y_m, z=FLAT_M))
    marker.scale.x = SHAFT_M
    return marker


def _name(index: int, robot: Entity, choice: Choice) -> Marker:
    marker = _marker(NAMES, index, Marker.TEXT_VIEW_FACING, _INK)
    marker.pose.position.x, marker.pose.position.y = robot.x_m, robot.y_m
    marker.pose.position.z = 4 * HEIGHT_M
    marker.scale.z = TEXT_M
    marker.text = f"{choice.robot}: {choice.action}" if robot.health > 0 else choice.robot
    return marker


def _marker(namespace: str, index: int, kind: int, colour: Colour) -> Marker:
    marker = Marker(ns=namespace, id=index, type=kind, action=Marker.ADD, color=_rgba(colour))
    marker.pose.orientation.w = 1.0
    return marker


def _rgba(colour: Colour) -> ColorRGBA:
    r, g, b, a = colour
    return ColorRGBA(r=r, g=g, b=b, a=a)
