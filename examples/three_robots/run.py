"""Students of simple_spread drive the three bases of `bases.py` until all landmarks are covered.

    kdmarl distil --team simple_spread
    python examples/three_robots/run.py

Each student runs in a process of its own, as on a robot; what its topics mean and what its actions
command is in `robots/`. Ends with exit code 0 when every landmark has had a robot near it for a
while, and with 1 if that does not happen in time.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import rclpy
from bases import STARTS
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.qos import QoSProfile

from kdmarl_core.errors import EXIT_USER_ERROR, UserError
from kdmarl_core.files import bundles_folder
from kdmarl_ros.deployment import plan_robot
from kdmarl_ros.sensor_map import read_map
from kdmarl_ros.spin import PARENT_VARIABLE

HERE = Path(__file__).resolve().parent
ROBOTS = HERE / "robots"
NEAR_M = 0.1
FOR_S = 2.0
SHOWN_EVERY_S = 1.0


class Watch(Node):
    """How far each landmark is from its nearest robot."""

    def __init__(self, landmarks: np.ndarray) -> None:
        super().__init__("watch")
        self._landmarks = landmarks
        self._places: dict[str, tuple[float, float]] = {}
        for robot in STARTS:
            hear = functools.partial(self._hear, robot)
            self.create_subscription(Odometry, f"{robot}/odom", hear, QoSProfile(depth=1))

    def farthest_m(self) -> float:
        """The largest of these distances; infinite until all robots were heard."""
        if len(self._places) < len(STARTS):
            return float("inf")
        gaps = self._landmarks[:, None] - np.array(list(self._places.values()))[None]
        return float(np.linalg.norm(gaps, axis=-1).min(1).max())

    def _hear(self, robot: str, message: Odometry) -> None:
        place = message.pose.pose.position
        self._places[robot] = (place.x, place.y)


@contextlib.contextmanager
def running(commands: list[list[str]]) -> Iterator[None]:
    """Processes that end when the block does."""
    environment = os.environ | {PARENT_VARIABLE: str(os.getpid())}
    children: list[subprocess.Popen[bytes]] = []
    try:
        children += [subprocess.Popen(command, env=environment) for command in commands]
        yield
    finally:
        for child in children:
            child.send_signal(signal.SIGINT)
        for child in children:
            child.wait()


def cover(watch: Watch, seconds: float) -> bool:
    """Watch until all landmarks have been covered for a while; False if time ran out."""
    begun_s = shown_s = covered_s = time.monotonic()
    while (now_s := time.monotonic()) - begun_s < seconds:
        rclpy.spin_once(watch, timeout_sec=0.1)
        farthest_m = watch.farthest_m()
        if farthest_m > NEAR_M:
            covered_s = now_s
        if now_s - covered_s >= FOR_S:
            print(f"all landmarks covered after {covered_s - begun_s:.1f} s")
            return True
        if now_s - shown_s >= SHOWN_EVERY_S:
            shown_s = now_s
            known = f"farthest landmark at {farthest_m:.2f} m"
            shown = known if math.isfinite(farthest_m) else "no odometry of all bases yet"
            print(f"{now_s - begun_s:3.0f} s: {shown}", flush=True)
    print(f"not covered after {seconds:g} s: farthest landmark at {watch.farthest_m():.2f} m")
    return False


def main() -> int:
    """Start bases and robots, watch them; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundles", default=str(bundles_folder("simple_spread")), metavar="DIR")
    parser.add_argument("--seconds", type=float, default=30.0, help="give up then (default 30)")
    given = parser.parse_args()
    try:
        robots = [
            plan_robot(robot, bundle=str(Path(given.bundles) / robot), robots=str(ROBOTS))
            for robot in STARTS
        ]
        points = read_map(ROBOTS / "maps" / "base.yaml").blocks["landmarks"].points
    except UserError as error:
        print(f"kdmarl: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    rclpy.init()
    watch = Watch(np.array(points))
    bases = [sys.executable, str(HERE / "bases.py")]
    with running([bases, *(robot.command() for robot in robots)]):
        covered = cover(watch, given.seconds)
    watch.destroy_node()
    rclpy.try_shutdown()
    return 0 if covered else 1


if __name__ == "__main__":
    sys.exit(main())
