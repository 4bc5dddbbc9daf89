"""What the benchmarks share: processes that end with their block, and figures with their spread."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdmarl_core.cli.common import print_table
from kdmarl_core.team import Robot

ECHO = Path(__file__).with_name("echo.py")
END_GRACE_S = 5.0
Layout = dict[str, dict[str, int]]  # robot -> block -> number of values


def leave_other_robots_alone() -> None:
    """Take a ROS domain of one's own, unless the user chose one."""
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))


def layout_of(robots: Sequence[Robot]) -> Layout:
    """Block sizes of some robots, for the bare nodes."""
    return {robot.name: {b.name: b.size for b in robot.blocks} for robot in robots}


def echo_command(role: str, layout: Layout, *arguments: str) -> list[str]:
    """The command line of a bare node."""
    return [sys.executable, str(ECHO), role, json.dumps(layout), *arguments]


@contextlib.contextmanager
def running(commands: Sequence[Sequence[str]]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start processes; when the block ends, interrupt them, and kill what is left."""
    children: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            children.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        yield children
    finally:
        for child in children:
            child.send_signal(signal.SIGINT)
        for child in children:
            try:
                child.wait(END_GRACE_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def figures_of(command: Sequence[str], timeout_s: float) -> Any:
    """Run a bare node to its end; returns the figures that it prints as JSON."""
    result = subprocess.run(command, stdout=subprocess.PIPE, timeout=timeout_s, check=True)
    return json.loads(result.stdout)


@dataclass(frozen=True)
class Figure:
    """One measured quantity: a value per round, and what it should be."""

    name: str
    values: tuple[float, ...]
    at_least: float | None = None
    at_most: float | None = None
    judged_by: str = "median"  # or "max": the value that is held against the goal

    @property
    def median(self) -> float:
        """The middle value of the rounds."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None if there is none."""
        value = max(self.values) if self.judged_by == "max" else self.median
        if self.at_least is not None:
            return value >= self.at_least
        if self.at_most is not None:
            return value <= self.at_most
        return None

    def as_json(self) -> dict[str, Any]:
        """For other programs."""
        return {
            "median": self.median,
            "values": list(self.values),
            "at_least": self.at_least,
            "at_most": self.at_most,
            "judged_by": self.judged_by,
            "met": self.met,
        }

    def as_row(self) -> list[str]:
        """For people."""
        goal, sign = (self.at_least, ">=") if self.at_most is None else (self.at_most, "<=")
        wanted = "" if goal is None else f"{self.judged_by} {sign} {goal:g}"
        return [
            self.name,
            f"{self.median:.4g}",
            f"{min(self.values):.4g} ... {max(self.values):.4g}",
            wanted,
            {None: "", True: "met", False: "missed"}[self.met],
        ]


def show(title: str, figures: Sequence[Figure], *, as_json: bool) -> None:
    """Print all figures, as a table or as JSON."""
    if as_json:
        print(json.dumps({figure.name: figure.as_json() for figure in figures}, indent=2))
        return
    header = ["figure", "median", "least ... most", "goal", ""]
    print_table(title, header, [figure.as_row() for figure in figures])
