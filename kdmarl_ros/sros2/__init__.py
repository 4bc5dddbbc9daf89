"""SROS2 for a team: a keystore in which each process may use its own topics and no others.

The layout is that of `ros2 security`, so that its tools work on it, too: a certificate authority
under `public/` and `private/`, and under `enclaves/` one folder per process, which is all that its
machine needs. Robots and the recorder are enclaves of their own, so is the bridge, which alone may
write sensor blocks, and an operator, who may read everything and call services.
"""

from kdmarl_ros.sros2.keystore import check_keystore, make_keystore
from kdmarl_ros.sros2.middleware import environment, ros_domain, unsecured
from kdmarl_ros.sros2.rights import BRIDGE, RECORDER, Rights, robot_rights, team_rights

__all__ = [
    "BRIDGE",
    "RECORDER",
    "Rights",
    "check_keystore",
    "environment",
    "make_keystore",
    "robot_rights",
    "ros_domain",
    "team_rights",
    "unsecured",
]
