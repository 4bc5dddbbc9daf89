"""Standard messages become blocks and actions become commands, as one YAML file says.

A simulated robot is sent its blocks; a real one has sensors that publish standard messages. The
file names, for each block of the bundle, a topic, a message type and its fields, and for each
action what to command. `docs/real_robots.md` describes every key. Units and axes are those of
REP-103: metres, radians, seconds; x forward, y to the left.

No ROS client here: message classes are looked up by name, a node brings the messages. Time is
steady, in seconds.
"""

from kdmarl_ros.sensor_map.block import Reading
from kdmarl_ros.sensor_map.file import read_map
from kdmarl_ros.sensor_map.sensor_map import SensorMap, load_map

__all__ = ["Reading", "SensorMap", "load_map", "read_map"]
