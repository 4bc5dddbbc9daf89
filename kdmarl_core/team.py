"""Teams: robots with what each senses and can compute, by the names of their task."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdmarl_core.bundle import PeerEntry
from kdmarl_core.errors import UserError, unknown
from kdmarl_core.tasks import AgentSpec, Block, Task, make_task, select_blocks, visible_block
from kdmarl_core.team_file import (
    MessageSpec,
    RobotEntry,
    StudentSpec,
    find_team_file,
    read_team_file,
)


@dataclass(frozen=True)
class Robot:
    """A robot with its names resolved against the task."""

    name: str
    agent: AgentSpec
    sensors: tuple[Block, ...]  # the agent's blocks that this robot has
    safe_action: str  # one of the agent's actions
    student: StudentSpec
    random_features: tuple[int, int] | None = None  # as in the team file
    messages: MessageSpec | None = None  # to robots by their names; None: it is silent
    peers: tuple[PeerEntry, ...] = ()  # whose messages it reads, in the team's order
    flies: Robot | None = None  # another team's robot, whose student it flies; None: its own

    @property
    def bundle(self) -> str:
        """Name of the folder of its bundle: the robot that this was made for."""
        return self.flies.name if self.flies else self.name

    @property
    def encoded(self) -> tuple[Block, ...]:
        """The sensors whose rows its student encodes."""
        return tuple(block for block in self.sensors if self.student.encoding and block.lists)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """What the student reads: its sensors and, if some are hidden, which are visible."""
        if self.random_features is None:
            return self.sensors
        return (*self.sensors, visible_block(self.sensors))


@dataclass(frozen=True)
class SensedBlocks:
    """What a robot senses, for records."""

    sensors: tuple[str, ...]
    random_features: tuple[int, ...] | None
    hears: tuple[str, ...] = ()  # agents whose robots tell it something

    def record(self) -> dict[str, Any]:
        """For keys and hashes."""
        record = dataclasses.asdict(self)
        if not self.hears:
            del record["hears"]
        return record


@dataclass(frozen=True)
class Team:
    """A checked team: robots in the order of the task's agents."""

    name: str
    path: Path
    task: Task
    teacher: str
    recipe: str
    robots: tuple[Robot, ...]
    lender: Team | None = None  # whose students fly, if not its own

    @property
    def students(self) -> Team:
        """The team that its students were distilled for."""
        return self.lender or self

    @property
    def talks(self) -> bool:
        """Whether any robot hears another."""
        return any(robot.peers for robot in self.robots)

    def restriction(self) -> dict[str, SensedBlocks]:
        """What each agent's robot senses: whatever its students, all that a bound depends on."""
        agents = {robot.name: robot.agent.name for robot in self.robots}
        return {
            robot.agent.name: SensedBlocks(
                tuple(block.name for block in robot.sensors),
                robot.random_features,
                tuple(agents[peer.robot] for peer in robot.peers),
            )
            for robot in self.robots
        }

    def silent(self) -> Team:
        """The same robots without messages."""
        mute = (dataclasses.replace(robot, messages=None, peers=()) for robot in self.robots)
        return dataclasses.replace(self, robots=tuple(mute))

    def record(self) -> dict[str, Any]:
        """What decides what a team's students can learn, for keys and hashes."""
        return {
            "task": self.task.spec.name,
            "robots": {robot.name: _record(robot) for robot in self.robots},
        }


def _record(robot: Robot) -> dict[str, Any]:
    student = dataclasses.asdict(robot.student)
    for key in ("impute", "encoding", "raw_rows"):
        if not student[key]:
            del student[key]
    record = {
        "agent": robot.agent.name,
        "sensors": [block.name for block in robot.sensors],
        "random_features": robot.random_features,
        "student": student,
    }
    if robot.messages:
        record["messages"] = dataclasses.asdict(robot.messages)
    return record


def load_team(name_or_path: str, changes: Sequence[str] = ()) -> Team:
    """Read a team file and check every name in it against the task.

    Args:
        name_or_path: a team that ships, or a YAML file.
        changes: values to change before `defaults` are merged in, `key.key=value`.

    Raises:
        UserError: the file is missing or malformed, or names an unknown task, agent, block,
            action or receiver, or does not give every agent exactly one robot.
    """
    team, students = _load_alone(find_team_file(name_or_path), changes)
    return _with_students_of(students, team) if students else team


def _load_alone(path: Path, changes: Sequence[str] = ()) -> tuple[Team, str | None]:
    """A team as if its students were its own, and the name of the team that lends them."""
    entry = read_team_file(path, changes)
    task = make_task(entry.task, f"{path}: task")
    robots = [_resolve(name, robot, task, path) for name, robot in entry.robots.items()]
    order = [agent.name for agent in task.spec.agents]
    if sorted(robot.agent.name for robot in robots) != sorted(order):
        raise UserError(
            f"{path}: robots: agents {sorted(r.agent.name for r in robots)} must be each of "
            f"{order} once; correct the robots' 'agent' keys"
        )
    networks = {robot.student.network for robot in robots}
    if len(networks) > 1:
        raise UserError(
            f"{path}: robots: student: network: {sorted(networks)} are mixed, but a team is "
            "trained as one; give all robots the same network"
        )
    _check_encodings(robots, task, path)
    robots.sort(key=lambda robot: order.index(robot.agent.name))
    robots = _connected(robots, task.spec.episode_steps, path)
    return Team(path.stem, path, task, entry.teacher, entry.recipe, tuple(robots)), entry.students


def _check_encodings(robots: Sequence[Robot], task: Task, path: Path) -> None:
    encode = [robot for robot in robots if robot.student.encoding]
    if encode and not any(robot.encoded for robot in encode):
        listing = {block.name for a in task.spec.agents for block in a.blocks if block.lists}
        raise UserError(
            f"{path}: robots: {encode[0].name}: student: encoding: {encode[0].student.encoding}, "
            f"but no robot senses a block that lists things, of which {task.spec.name} has "
            f"{', '.join(sorted(listing)) or 'none'}; leave it out"
        )
    impute = [robot for robot in robots if robot.student.impute]
    if encode and impute:
        raise UserError(
            f"{path}: robots: {encode[0].name} encodes and {impute[0].name} imputes: what is "
            "imputed is not known before a step, and encodings are computed for all steps at "
            "once; leave out 'encoding' or 'impute' in the whole team"
        )


def _with_students_of(name: str, team: Team) -> Team:
    """The same team, with the students of another one, which must sense and act alike."""
    where = f"{team.path}: students"
    path = find_team_file(name, where)
    if path == team.path:
        raise UserError(f"{where}: '{name}' is this team itself; leave the key out")
    lender, lends = _load_alone(path)
    if lends:
        raise UserError(f"{where}: '{name}' has students of {lends}; name a team with its own")
    if any(robot.messages for robot in (*lender.robots, *team.robots)):
        raise UserError(
            f"{where}: '{name}': robots that tell each other something can neither lend nor "
            "borrow students; name a team of silent robots, and be silent"
        )
    pairs = zip(team.robots, itertools.cycle(lender.robots))
    robots = tuple(dataclasses.replace(robot, flies=twin) for robot, twin in pairs)
    for robot, twin in zip(robots, itertools.cycle(lender.robots)):
        for key, own, lent in (
            ("sensors", _sizes(robot), _sizes(twin)),
            ("actions", robot.agent.actions, twin.agent.actions),
            ("safe_action", robot.safe_action, twin.safe_action),
        ):
            if own != lent:
                raise UserError(
                    f"{where}: '{name}': {key} of its {twin.name}: {lent} are not {robot.name}'s "
                    f"{own}; name a team whose robots sense and act alike"
                )
    return dataclasses.replace(team, robots=robots, lender=lender)


def _sizes(robot: Robot) -> list[tuple[str, int]]:
    return [(block.name, block.size) for block in robot.blocks]


def _resolve(name: str, entry: RobotEntry, task: Task, path: Path) -> Robot:
    where = f"{path}: robots: {name}"
    if not (name.isidentifier() and name.islower() and name.isascii()):
        raise UserError(f"{where}: not a valid namespace; use small letters, digits and '_'")
    agent = task.spec.agent(entry.agent, f"{where}: agent")
    sensors = select_blocks(agent.blocks, entry.sensors, f"{where}: sensors")
    if entry.safe_action not in agent.actions:
        raise unknown("action", entry.safe_action, agent.actions, f"{where}: safe_action")
    bounds = (
        (entry.random_features[0], entry.random_features[1]) if entry.random_features else None
    )
    return Robot(name, agent, sensors, entry.safe_action, entry.student, bounds, entry.messages)


def _connected(robots: Sequence[Robot], episode_steps: int, path: Path) -> list[Robot]:
    """The robots with receivers by their names, and each with the peers that it listens to."""
    names = [robot.name for robot in robots]
    for robot in robots:
        if robot.messages and max(robot.messages.delays) >= episode_steps:
            raise UserError(
                f"{path}: robots: {robot.name}: messages: delay_steps: "
                f"{max(robot.messages.delays)} is not below the {episode_steps} steps of an "
                "episode: no message would ever be read; lower it"
            )
    speaking = [_with_receivers(robot, names, path) for robot in robots]
    connected = [
        dataclasses.replace(
            robot,
            peers=tuple(
                PeerEntry(peer.name, told.size, told.format, told.delay_steps, told.hold_steps)
                for peer in speaking
                if (told := peer.messages) and robot.name in told.receivers
            ),
        )
        for robot in speaking
    ]
    for robot in connected:
        if robot.student.impute and robot.student.network == "mlp" and not robot.peers:
            raise UserError(
                f"{path}: robots: {robot.name}: student: impute: true, but a feed-forward robot "
                "that hears nobody has nothing to tell hidden features from; take network: gru, "
                "let others tell it something, or leave it out"
            )
    return connected


def _with_receivers(robot: Robot, names: Sequence[str], path: Path) -> Robot:
    messages = robot.messages
    if messages is None or messages.size == 0:
        return dataclasses.replace(robot, messages=None)
    where = f"{path}: robots: {robot.name}: messages: to"
    others = [name for name in names if name != robot.name]
    to = others if messages.to == "all" else messages.to
    for name in to:
        if name == robot.name:
            raise UserError(f"{where}: '{name}' is the robot itself; name others")
        if name not in others:
            raise unknown("robot", name, others, where)
    if len(set(to)) != len(to):
        raise UserError(f"{where}: {list(to)} must name each robot once")
    if not to:
        raise UserError(f"{where}: the team has no other robot; remove the robot's messages")
    heard = tuple(name for name in others if name in to)
    return dataclasses.replace(robot, messages=dataclasses.replace(messages, to=heard))
