"""Team files: a task, and what each robot senses and can compute."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from kdmarl_core.bundle import (
    MANIFEST,
    NO_TRUST,
    BundlePolicy,
    Manifest,
    MessageEntry,
    PeerEntry,
    Trust,
    check_format,
    load_policy,
)
from kdmarl_core.errors import UserError, did_you_mean, unknown
from kdmarl_core.files import config_file, share_folder
from kdmarl_core.schema import (
    check_at_least,
    check_at_most,
    from_mapping,
    is_yaml,
    laid_over,
    read_with_bases,
    with_changes,
)
from kdmarl_core.tasks import AgentSpec, Block, Task, make_task, select_blocks, visible_block

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
    first agent, and so on. A relative path of `base` or `recipe` begins at its file.
    """

    task: str
    teacher: str
    robots: dict[str, RobotEntry]
    students: str = ""  # the team whose students fly, robot by robot and again; empty: its own
    recipe: str = "distil"  # how students are distilled: config/training/<recipe>.yaml, or a path


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


def team_names() -> list[str]:
    """Teams that ship."""
    return sorted(path.stem for path in (share_folder() / "config" / "teams").glob("*.yaml"))


_team_file = functools.partial(config_file, "team", "teams/*.yaml")


def load_team(name_or_path: str, changes: Sequence[str] = ()) -> Team:
    """Read a team file and check every name in it against the task.

    Args:
        name_or_path: a team that ships, or a YAML file.
        changes: values to change before `defaults` are merged in, `key.key=value`.

    Raises:
        UserError: the file is missing or malformed, or names an unknown task, agent, block,
            action or receiver, or does not give every agent exactly one robot.
    """
    team, students = _load_alone(_team_file(name_or_path), changes)
    return _with_students_of(students, team) if students else team


def _load_alone(path: Path, changes: Sequence[str] = ()) -> tuple[Team, str | None]:
    """A team as if its students were its own, and the name of the team that lends them."""
    document = with_changes(_read(path), changes)
    entry = from_mapping(TeamFile, _with_defaults(document, path), str(path))
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
    path = _team_file(name, where)
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


def _read(path: Path) -> dict[str, Any]:
    """The file's mapping laid over that of the team that its key `base` names, if it has one."""

    def prepare(document: dict[str, Any], file: Path) -> None:
        recipe = document.get("recipe")
        if isinstance(recipe, str) and is_yaml(recipe):
            document["recipe"] = str(file.parent / recipe)

    return read_with_bases(path, _team_file, prepare)


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


def load_bundles(
    team: Team, folder: Path, trust: Mapping[str, Trust] = MappingProxyType({})
) -> list[BundlePolicy]:
    """The policies of a team's robots, in their order, each checked against the team.

    Args:
        team: whose robots.
        folder: with one bundle per robot.
        trust: what is asked of a robot's bundle beyond its hash; nothing of those not named.

    Raises:
        UserError: a bundle is missing, damaged, not vouched for as it must be, or was made for
            another robot, task or sensors.
    """
    refuse_missing_bundles(team, folder)
    policies = [
        _load_bundle(robot, team, folder / robot.bundle, trust.get(robot.name, NO_TRUST))
        for robot in team.robots
    ]
    _refuse_mixed_trainings([policy.manifest for policy in policies], folder)
    return policies


def refuse_missing_bundles(team: Team, folder: Path) -> None:
    """Raise a `UserError` if a robot of a team has no bundle in a folder."""
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; run 'kdmarl distil --team {team.students.name}' first"
        )
    present = [path.parent.name for path in folder.glob(f"*/{MANIFEST}")]
    for robot in team.students.robots:
        if robot.name not in present:
            raise UserError(
                f"{folder}: no bundle for robot '{robot.name}'; "
                f"{did_you_mean(robot.name, present)} Otherwise distil {team.students.name} again"
            )


def _load_bundle(robot: Robot, team: Team, folder: Path, trust: Trust) -> BundlePolicy:
    policy = load_policy(folder, trust, robot.bundle)
    manifest = policy.manifest
    pairs = {
        "task": (manifest.task, team.students.task.spec.name),
        "agent": (manifest.agent, (robot.flies or robot).agent.name),
        "blocks": (
            [(block.name, block.size) for block in manifest.blocks],
            [(block.name, block.size) for block in robot.blocks],
        ),
        "actions": (manifest.actions, robot.agent.actions),
        "message": (_told(manifest.message), _told(robot.messages)),
        **_heard(manifest.peers, robot.peers),
    }
    for key, (found, expected) in pairs.items():
        if found != expected:
            raise UserError(
                f"{folder / MANIFEST}: {key}: {found} is not the team's {expected} for "
                f"{robot.name}; distil the team again"
            )
    return policy


def _refuse_mixed_trainings(manifests: Sequence[Manifest], folder: Path) -> None:
    """Raise a `UserError` if robots that tell each other anything were not distilled together."""
    talking = [manifest for manifest in manifests if manifest.message or manifest.peers]
    for manifest in talking:
        if manifest.training != talking[0].training:
            raise UserError(
                f"{folder / manifest.robot / MANIFEST}: training: {manifest.training} is not the "
                f"{talking[0].training} of {talking[0].robot}: what they tell each other means "
                "something else; copy all bundles of one 'kdmarl distil'"
            )


def _told(message: MessageEntry | MessageSpec | None) -> str:
    """What a robot tells others, in words."""
    if message is None:
        return "silence"
    return f"{message.size} values as {message.format} to {' and '.join(message.to)}"


def _heard(
    found: Sequence[PeerEntry], expected: Sequence[PeerEntry]
) -> dict[str, tuple[object, object]]:
    """Pairs as above: which peers there are, then what is expected of each."""
    names = [[peer.robot for peer in peers] for peers in (found, expected)]
    if names[0] != names[1]:
        return {"peers": (names[0], names[1])}
    return {
        f"peers: {own.robot}": (_of_peer(own), _of_peer(other))
        for own, other in zip(found, expected, strict=True)
    }


def _of_peer(peer: PeerEntry) -> str:
    return (
        f"{peer.size} values as {peer.format}, {peer.delay_steps} steps late, held for "
        f"{peer.hold_steps}"
    )
