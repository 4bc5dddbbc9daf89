"""A scene as markers for RViz and Foxglove."""

from collections.abc import Sequence

from rclpy.time import Time
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from kdmarl_core.tasks import Entity

FRAME = "map"  # REP-105
COLOURS = {"agent": (0.20, 0.40, 0.85, 0.9), "landmark": (0.25, 0.25, 0.25, 0.9)}


def scene_markers(scene: Sequence[Entity], stamp: Time) -> MarkerArray:
    """One flat cylinder per entity, metres, in frame `map`."""
    return MarkerArray(markers=[_disc(i, entity, stamp) for i, entity in enumerate(scene)])


def _disc(index: int, entity: Entity, stamp: Time) -> Marker:
    marker = Marker(ns=entity.kind, id=index, type=Marker.CYLINDER, action=Marker.ADD)
    marker.header.frame_id = FRAME
    marker.header.stamp = stamp.to_msg()
    marker.pose.position.x, marker.pose.position.y = entity.x_m, entity.y_m
    marker.pose.orientation.w = 1.0
    marker.scale.x = marker.scale.y = 2 * entity.radius_m
    marker.scale.z = 0.05
    r, g, b, a = COLOURS[entity.kind]
    marker.color = ColorRGBA(r=r, g=g, b=b, a=a)
    return marker
