"""How many robots a machine carries: a process per robot against all robots hosted in one.

This process plays the sensors: at a rate, 10 Hz unless told otherwise, it sends all robots a whole
step and hears their answers. What is measured are the robots alone, which is why no simulator
takes part: `mpe2` itself needs half a second for a step of a hundred robots.

A robot holds the rate if it answers every step before the next one. CPU and memory are those of
the robots' processes; shared pages are counted by their share (PSS).
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import sys
import tempfile
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import rclpy
from common import leave_other_robots_alone, running, write_table
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from kdmarl_core.cli.common import add_json, positive, print_json, print_table, run
from kdmarl_core.errors import UserError
from kdmarl_core.team import Robot
from kdmarl_ros import qos, topics
from kdmarl_ros.deployment import Deployment, plan_swarm
from kdmarl_ros.msg import AgentAction, FeatureBlock

HELD = 0.99  # share of the steps that every robot must answer in time
FLEETS = (3, 10, 30, 100)
HOSTED, APART = "hosted", "process per robot"
PROCESS_MB = 60.0  # of a robot's own, about; to see beforehand what does not fit
PROCESSES_PER_CORE = 25  # more would not hold the rate, and start for minutes
DISCOVERY_S = 240.0  # for a hundred robots on a busy machine
WARM_UP_S = 5.0
PAGE = Path("docs/fleet.md")
HEADER = [
    "robots",
    "processes",
    "rate held, Hz",
    "worst robot, Hz",
    "CPU, cores",
    "PSS per robot, MB",
    "p50, ms",
    "p99, ms",
    "rate",
]


def main() -> int:
    """Parse and run; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--robots", type=positive, nargs="+", default=list(FLEETS), help="default 3 10 30 100"
    )
    parser.add_argument(
        "--ways", nargs="+", choices=(APART, HOSTED), default=[APART, HOSTED], help="default both"
    )
    parser.add_argument("--rate", type=float, default=10.0, metavar="HZ", help="default 10")
    parser.add_argument("--seconds", type=positive, default=20, help="of each (default 20)")
    parser.add_argument(
        "--bundles", default="", metavar="DIR", help="default runs/bundles/simple_spread"
    )
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE}")
    add_json(parser)
    return run(measure, parser.parse_args())


def measure(arguments: argparse.Namespace) -> None:
    """Fly every fleet in every way and print the table."""
    leave_other_robots_alone()
    rows = []
    for robots in arguments.robots:
        for way in dict.fromkeys(arguments.ways):
            row = [str(robots), way]
            reason = _not_carried(robots) if way == APART else ""
            if reason:
                row += [f"not run: {reason}", *[""] * (len(HEADER) - 3)]
            else:
                row += _fly(robots, way, arguments)
            print(f"{robots} robots, {way}: done", file=sys.stderr)
            rows.append(row)
    if arguments.write:
        write_table(PAGE, HEADER, rows)
    if arguments.json:
        print_json([dict(zip(HEADER, row, strict=True)) for row in rows])
    else:
        print_table(f"Fleets at {arguments.rate:g} Hz", HEADER, rows)


def _not_carried(robots: int) -> str:
    """Why so many processes are not started on this machine, or nothing."""
    free_mb = psutil.virtual_memory().available / 1e6
    if robots * PROCESS_MB > free_mb:
        return f"{robots * PROCESS_MB:.0f} MB needed, {free_mb:.0f} free"
    most = PROCESSES_PER_CORE * (os.cpu_count() or 1)
    return f"more than {most} processes on {os.cpu_count()} cores" if robots > most else ""


def _fly(robots: int, way: str, arguments: argparse.Namespace) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        deployment = plan_swarm(
            str(_team_file(robots, Path(folder))),
            bundles=arguments.bundles,
            episodes=1,
            seed=0,
            results=Path(folder) / "unused",
            hosted=way == HOSTED,
        )
        return _drive(deployment, arguments.rate, arguments.seconds)


def _team_file(robots: int, folder: Path) -> Path:
    if robots == 3:
        text = "base: simple_spread\nstudents: simple_spread\n"
    else:
        text = f"base: simple_spread_30\ntask: mpe/simple_spread_{robots}\nrobots: {robots}\n"
    path = folder / f"fleet_{robots}.yaml"
    path.write_text(text)
    return path


def _drive(deployment: Deployment, rate_hz: float, seconds: int) -> list[str]:
    rclpy.init()
    try:
        sensors = Sensors(deployment.team.robots)
        with running([process.command() for process in deployment.flying]) as children:
            sensors.await_robots()
            processes = [psutil.Process(child.pid) for child in children]
            sensors.play(round(WARM_UP_S * rate_hz), rate_hz)
            begun_s, used_s = time.monotonic(), _cpu_s(processes)
            answered, latencies_s = sensors.play(round(seconds * rate_hz), rate_hz)
            elapsed_s = time.monotonic() - begun_s
            cores = (_cpu_s(processes) - used_s) / elapsed_s
            pss_mb = sum(_pss_mb(process.pid) for process in processes) / len(answered)
    finally:
        rclpy.try_shutdown()
    rates = [count / elapsed_s for count in answered]
    p50, p99 = (1e3 * float(np.percentile(latencies_s or [np.nan], q)) for q in (50, 99))
    return [
        f"{np.mean(rates):.2f}",
        f"{min(rates):.2f}",
        f"{cores:.2f}",
        f"{pss_mb:.1f}",
        f"{p50:.1f}",
        f"{p99:.1f}",
        "held" if min(rates) >= HELD * rate_hz else "missed",
    ]


@dataclass
class _Link:
    """One robot, seen from its sensors."""

    blocks: list[tuple[rclpy.publisher.Publisher[FeatureBlock], int]] = field(default_factory=list)
    shown_s: float = 0.0
    answered: int = 0  # steps, in time


class Sensors(Node):
    """Shows all robots a step at the rate, whoever has answered."""

    def __init__(self, robots: Sequence[Robot]) -> None:
        super().__init__("sensors", start_parameter_services=False)
        self._step = 0
        self._latencies_s: list[float] = []
        self._rng = np.random.default_rng(0)
        self._links = [self._link(robot) for robot in robots]
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self)

    def _link(self, robot: Robot) -> _Link:
        link = _Link()
        for block in robot.blocks:
            topic = topics.of_robot(robot.name, topics.sensor(block.name))
            publisher = self.create_publisher(
                FeatureBlock, topic, qos.sensor("reliable"), event_callbacks=qos.NO_EVENTS
            )
            link.blocks.append((publisher, block.size))
        self.create_subscription(
            AgentAction,
            topics.of_robot(robot.name, topics.ACTION),
            functools.partial(self._on_action, link),
            qos.ACTION,
            event_callbacks=qos.NO_SUBSCRIPTION_EVENTS,
        )
        return link

    def _on_action(self, link: _Link, message: AgentAction) -> None:
        if message.status == AgentAction.STATUS_POLICY and message.step == self._step:
            link.answered += 1
            self._latencies_s.append(time.perf_counter() - link.shown_s)

    def await_robots(self) -> None:
        """Until every robot answers."""
        give_up_s = time.monotonic() + DISCOVERY_S
        while not all(link.answered for link in self._links):
            if time.monotonic() > give_up_s:
                missing = sum(not link.answered for link in self._links)
                raise UserError(
                    f"{missing} of {len(self._links)} robots do not answer after "
                    f"{DISCOVERY_S:g} s; see their log above, or fly fewer"
                )
            self._show(time.perf_counter() + 1.0)

    def play(self, steps: int, rate_hz: float) -> tuple[list[int], list[float]]:
        """Show so many steps; the steps that each robot answered in time, and after how long."""
        self._latencies_s.clear()
        for link in self._links:
            link.answered = 0
        begun_s = time.perf_counter()
        for step in range(1, steps + 1):
            self._show(begun_s + step / rate_hz)
        return [link.answered for link in self._links], list(self._latencies_s)

    def _show(self, ends_s: float) -> None:
        """One step to all robots, and their answers until its period ends."""
        self._step += 1
        for link in self._links:
            link.shown_s = time.perf_counter()
            for publisher, size in link.blocks:
                values = self._rng.normal(size=size).astype(np.float32)
                message = FeatureBlock(episode=1, step=self._step)
                message.data = array("f", values.tobytes())
                publisher.publish(message)
        while (left_s := ends_s - time.perf_counter()) > 0:
            self._executor.spin_once(left_s)


def _cpu_s(processes: Sequence[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _pss_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.M)
    assert found is not None
    return int(found[1]) * 1024 / 1e6


if __name__ == "__main__":
    sys.exit(main())
