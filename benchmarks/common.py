"""What the benchmarks share: processes that end with their block, figures, teams of students."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kdmarl_core.bundle import BundlePolicy
from kdmarl_core.cli.common import print_json, print_table
from kdmarl_core.errors import UserError
from kdmarl_core.files import bundles_folder
from kdmarl_core.team import Robot, Team, load_team
from kdmarl_core.team_bundles import load_bundles

ECHO = Path(__file__).with_name("echo.py")
END_GRACE_S = 5.0
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"  # of a page's table
Layout = dict[str, dict[str, int]]  # robot -> block -> number of values


def leave_other_robots_alone() -> None:
    """Take a ROS domain of one's own, unless the user chose one."""
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))


def add_students(parser: argparse.ArgumentParser, team: str) -> None:
    """Options that say whose students play, and what; `team` describes the team."""
    parser.add_argument("--team", required=True, help=team)
    parser.add_argument("--bundles", help="default runs/bundles/<team>")
    parser.add_argument("--episodes", type=int, default=1000, help="default 1000")
    parser.add_argument("--seed", type=int, default=0, help="of the episodes (default 0)")


def load_students(arguments: argparse.Namespace) -> tuple[Team, list[BundlePolicy]]:
    """The team and its students, as the options of `add_students` say."""
    team = load_team(arguments.team)
    folder = Path(arguments.bundles) if arguments.bundles else bundles_folder(team.name)
    return team, load_bundles(team, folder)


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
            children.append(_start(command, subprocess.DEVNULL))
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
    """Run a bare node to its end; returns the figures that it prints as JSON.

    Raises:
        UserError: it failed or did not come to its end in time.
    """
    with _start(command, subprocess.PIPE) as child:
        try:
            printed, _ = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise UserError(f"{command[2]}: no figures after {timeout_s:g} s") from None
        finally:
            child.kill()
    if child.returncode != 0:
        raise UserError(f"{command[2]}: ended with code {child.returncode}; see above")
    return json.loads(printed)


def _start(command: Sequence[str], output: int) -> subprocess.Popen[bytes]:
    # In a session of its own, as the processes of a swarm are: Linux shares the processor among
    # sessions before it shares it among processes.
    return subprocess.Popen(command, stdout=output, start_new_session=True)


@dataclass(frozen=True)
class Figure:
    """One measured quantity: a value per round, and what it should be at least or at most."""

    name: str
    values: tuple[float, ...]
    least: float | None = None
    most: float | None = None
    by: Literal["median", "max"] = "median"  # what is held against the goal

    @property
    def median(self) -> float:
        """The middle value of the rounds."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None if there is none."""
        value = max(self.values) if self.by == "max" else self.median
        if self.least is not None:
            return value >= self.least
        return None if self.most is None else value <= self.most

    def as_json(self) -> dict[str, Any]:
        """For other programs."""
        return dataclasses.asdict(self) | {"median": self.median, "met": self.met}

    def as_row(self) -> list[str]:
        """For people."""
        goal, sign = (self.most, "<=") if self.least is None else (self.least, ">=")
        return [
            self.name,
            f"{self.median:.4g}",
            f"{min(self.values):.4g} ... {max(self.values):.4g}",
            "" if goal is None else f"{self.by} {sign} {goal:g}",
            {None: "", True: "met", False: "missed"}[self.met],
        ]


def show(title: str, figures: Sequence[Figure], *, as_json: bool) -> None:
    """Print all figures, as a table or as JSON."""
    if as_json:
        print_json([figure.as_json() for figure in figures])
    else:
        header = ["figure", "median", "least ... most", "goal", ""]
        print_table(title, header, [figure.as_row() for figure in figures])


def write_table(page: Path, header: list[str], rows: list[list[str]]) -> None:
    """The table, and how busy the machine was, between a page's markers."""
    lines = [header, ["---"] * len(header), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    load = f"Load of the machine at the end: {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores."
    text = page.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n{table}\n\n{load}\n{END}{after}")
