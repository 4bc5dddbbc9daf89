"""What stands in a team file, key by key, before any name in it is looked up in the task."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kdmarl_core.bundle import check_format
from kdmarl_core.errors import UserError
from kdmarl_core.files import config_file
from kdmarl_core.schema import (
    check_at_least,
    check_at_most,
    from_mapping,
    is_yaml,
    laid_over,
    read_with_bases,
    with_changes,
)
from kdmarl_core.tasks import make_task

MOST_WIDTH = 4096  # far beyond what a robot's computer is good for


@dataclass(frozen=True)
class StudentSpec:
    """One robot's network."""

    network: Literal["mlp", "gru"]
    width: int
    impute: bool = False  # features that are hidden at random, from memory and messages
    encoding: int = 0  # values that rows of blocks are encoded in; 0: rows are read as they are
    raw_rows: bool = False  # rows that are encoded are read as they are, too

    def __post_init__(self) -> None:
        check_at_least(1, self, "width")
        check_at_least(0, self, "encoding")
        for key in ("width", "encoding"):
            check_at_most(MOST_WIDTH, self, key)
        if self.raw_rows and not self.encoding:
            raise UserError(
                "raw_rows: true without encoding: rows are read as they are; leave it out"
            )


@dataclass(frozen=True)
class MessageTraining:
    """What is drawn anew in training for every episode and receiver; by default nothing is."""

    loss: tuple[float, ...] = (0.0, 0.0)  # least and greatest share of messages that get lost
    delay_steps: tuple[int, ...] = ()  # least and greatest; none: as flown
    formats: tuple[str, ...] = ()  # of the sender; none: as flown

    def __post_init__(self) -> None:
        if not (len(self.loss) == 2 and 0 <= self.loss[0] <= self.loss[1] <= 1):
            raise UserError(
                f"loss: {list(self.loss)} must be two shares, the least and the greatest, such as "
                "[0.0, 0.3]"
            )
        delays = self.delay_steps
        if delays and not (len(delays) == 2 and 1 <= delays[0] <= delays[1]):
            raise UserError(
                f"delay_steps: {list(delays)} must be two numbers, the least and the greatest, "
                "and at least 1, such as [1, 2]"
            )
        for name in self.formats:
            check_format(name, "formats")


LARGEST_MESSAGE = 1024  # values
LONGEST_HOLD = 1_000_000  # steps


@dataclass(frozen=True)
class MessageSpec:
    """What a robot tells others in every step, as the team file has it."""

    size: int  # values, each between -1 and 1
    to: tuple[str, ...] | Literal["all"]  # robots
    format: Literal["int4", "int8", "float32"] = "int8"  # how a value travels
    delay_steps: int = 1  # the age at which a message can be read
    hold_steps: int = 10  # the age up to which it is held if nothing newer comes
    training: MessageTraining = MessageTraining()

    def __post_init__(self) -> None:
        check_at_least(0, self, "size")
        check_at_most(LARGEST_MESSAGE, self, "size")
        check_at_most(LONGEST_HOLD, self, "hold_steps")
        if (self.size == 0) != (not self.to):
            remedy = "give a size of at least 1, or no receivers ([])" if self.to else "name some"
            to = self.to if isinstance(self.to, str) else ", ".join(self.to)
            raise UserError(f"size: {self.size} with receivers {to or 'none'}; {remedy}")
        check_at_least(1, self, "delay_steps")
        least, most = self.delays
        if not least <= self.delay_steps <= most:
            raise UserError(
                f"delay_steps: {self.delay_steps} is not among the {least} to {most} of "
                "training.delay_steps: students would fly what they were not trained for; "
                "correct one of them"
            )
        if self.format not in self.formats:
            raise UserError(
                f"format: {self.format} is not among training.formats {list(self.formats)}: "
                "students would fly what they were not trained for; add it there"
            )
        if self.hold_steps < most:
            raise UserError(
                f"hold_steps: {self.hold_steps} is below the delay of {most} steps: "
                "every message would be too old; raise it"
            )

    @property
    def receivers(self) -> tuple[str, ...]:
        """The receivers, once a team's robots are known."""
        if isinstance(self.to, str):
            raise ValueError("'all' has not been resolved")
        return self.to

    @property
    def delays(self) -> tuple[int, int]:
        """Least and greatest delay in training."""
        given = self.training.delay_steps or (self.delay_steps, self.delay_steps)
        return given[0], given[1]

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats in training."""
        return self.training.formats or (self.format,)


@dataclass(frozen=True)
class RobotEntry:
    """A robot as the team file has it."""

    agent: str
    sensors: tuple[str, ...]
    safe_action: str
    student: StudentSpec
    # Of the sensors' features, how many are left in an episode, at least and at most; the others
    # are zero, and the student is told which. None: all, always.
    random_features: tuple[int, ...] | None = None
    messages: MessageSpec | None = None  # None: the robot is silent

    def __post_init__(self) -> None:
        bounds = self.random_features
        if bounds is not None and not (len(bounds) == 2 and 1 <= bounds[0] <= bounds[1]):
            raise UserError(
                f"random_features: {list(bounds)} must be two numbers, the least and the most "
                "features of an episode, such as [8, 10]"
            )
        if self.student.impute and bounds is None:
            raise UserError(
                "student: impute: true, but no features are hidden from this robot; give "
                "random_features, or leave it out"
            )


@dataclass(frozen=True)
class TeamFile:
    """The team file's keys, once `base` and `defaults` are merged in.

    `base` names a team whose file lies below this one, `defaults` holds what robots share; a
    robot's own keys win over both. A number of `robots` means robot_0, which plays the task's
    first agent, and so on. A relative path of `base`, `recipe` or `teacher` (one with a slash)
    begins at its file.
    """

    task: str
    teacher: str
    robots: dict[str, RobotEntry]
    students: str = ""  # the team whose students fly, robot by robot and again; empty: its own
    recipe: str = "distil"  # how students are distilled: config/training/<recipe>.yaml, or a path


find_team_file = functools.partial(config_file, "team", "teams/*.yaml")


def read_team_file(path: Path, changes: Sequence[str] = ()) -> TeamFile:
    """A file's keys, with those of its `base`, and `defaults` merged in.

    Args:
        path: as `find_team_file` gives it.
        changes: values to change before `defaults` are merged in, `key.key=value`.

    Raises:
        UserError: the file is missing or malformed.
    """
    document = with_changes(_read(path), changes)
    return from_mapping(TeamFile, _with_defaults(document, path), str(path))


def _read(path: Path) -> dict[str, Any]:
    """The file's mapping laid over that of the team that its key `base` names, if it has one."""

    def prepare(document: dict[str, Any], file: Path) -> None:
        recipe, teacher = document.get("recipe"), document.get("teacher")
        if isinstance(recipe, str) and is_yaml(recipe):
            document["recipe"] = str(file.parent / recipe)
        if isinstance(teacher, str) and "/" in teacher:
            document["teacher"] = str(file.parent / teacher)

    return read_with_bases(path, find_team_file, prepare)


def _with_defaults(document: dict[str, Any], path: Path) -> dict[str, Any]:
    """Every robot's mapping laid over the mapping under `defaults`, if there is one."""
    defaults, robots = document.pop("defaults", {}), document.get("robots")
    task = document.get("task")
    if isinstance(task, str) and isinstance(robots, int) and not isinstance(robots, bool):
        agents = make_task(task, f"{path}: task").spec.agents
        if robots != len(agents):
            raise UserError(
                f"{path}: robots: {robots} is not {len(agents)}, the number of agents of "
                f"{task}; correct it"
            )
        robots = {f"robot_{i}": {"agent": agent.name} for i, agent in enumerate(agents)}
        document["robots"] = robots
    if not isinstance(defaults, Mapping):
        raise UserError(f"{path}: defaults: expected a mapping of robots' keys, got {defaults!r}")
    if isinstance(robots, Mapping):
        document["robots"] = {
            name: laid_over(defaults, robot) if isinstance(robot, Mapping) else robot
            for name, robot in robots.items()
        }
    return document
