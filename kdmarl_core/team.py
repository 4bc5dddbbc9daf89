"""Team files: a task, and what each robot senses and can compute."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kdmarl_core.bundle import MANIFEST, BundlePolicy, load_policy
from kdmarl_core.errors import UserError, did_you_mean, unknown
from kdmarl_core.files import share_folder
from kdmarl_core.schema import check_at_least, from_mapping, read_yaml
from kdmarl_core.tasks import AgentSpec, Block, Task, make_task, select_blocks


@dataclass(frozen=True)
class StudentSpec:
    """One robot's network."""

    network: Literal["mlp"]
    width: int

    def __post_init__(self) -> None:
        check_at_least(1, self, "width")


@dataclass(frozen=True)
class RobotEntry:
    """A robot as the team file has it."""

    agent: str
    sensors: tuple[str, ...]
    safe_action: str
    student: StudentSpec


@dataclass(frozen=True)
class TeamFile:
    """The team file's own keys."""

    task: str
    teacher: str
    robots: dict[str, RobotEntry]


@dataclass(frozen=True)
class Robot:
    """A robot with its names resolved against the task."""

    name: str
    agent: AgentSpec
    blocks: tuple[Block, ...]
    safe_action: str  # one of the agent's actions
    student: StudentSpec


@dataclass(frozen=True)
class Team:
    """A checked team: robots in the order of the task's agents."""

    name: str
    path: Path
    task: Task
    teacher: str
    robots: tuple[Robot, ...]


def team_names() -> list[str]:
    """Teams that ship."""
    return sorted(path.stem for path in (share_folder() / "config" / "teams").glob("*.yaml"))


def team_path(name_or_path: str) -> Path:
    """A shipped team by its name, or any file by its path.

    Raises:
        UserError: neither exists.
    """
    if name_or_path.endswith((".yaml", ".yml")):
        return Path(name_or_path)
    path = share_folder() / "config" / "teams" / f"{name_or_path}.yaml"
    if not path.is_file():
        raise unknown("team", name_or_path, team_names())
    return path


def load_team(name_or_path: str) -> Team:
    """Read a team file and check every name in it against the task.

    Raises:
        UserError: the file is missing or malformed, or names an unknown task, agent, block or
        action,
            or does not give every agent exactly one robot.
    """
    path = team_path(name_or_path)
    entry = from_mapping(TeamFile, read_yaml(path), str(path))
    task = make_task(entry.task, f"{path}: task")
    robots = [_resolve(name, robot, task, path) for name, robot in entry.robots.items()]
    order = [agent.name for agent in task.spec.agents]
    if sorted(robot.agent.name for robot in robots) != sorted(order):
        raise UserError(
            f"{path}: robots: agents {sorted(r.agent.name for r in robots)} must be each of "
            f"{order} once; correct the robots' 'agent' keys"
        )
    robots.sort(key=lambda robot: order.index(robot.agent.name))
    return Team(path.stem, path, task, entry.teacher, tuple(robots))


def _resolve(name: str, entry: RobotEntry, task: Task, path: Path) -> Robot:
    where = f"{path}: robots: {name}"
    if not (name.isidentifier() and name.islower() and name.isascii()):
        raise UserError(f"{where}: not a valid namespace; use small letters, digits and '_'")
    agent = task.spec.agent(entry.agent, f"{where}: agent")
    blocks = select_blocks(agent.blocks, entry.sensors, f"{where}: sensors")
    if entry.safe_action not in agent.actions:
        raise unknown("action", entry.safe_action, agent.actions, f"{where}: safe_action")
    return Robot(name, agent, blocks, entry.safe_action, entry.student)


def load_bundles(team: Team, folder: Path) -> list[BundlePolicy]:
    """The policies of a team's robots, in their order, each checked against the team.

    Raises:
        UserError: a bundle is missing, damaged, or was made for another robot, task or sensors.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; run 'kdmarl distil --team {team.name}' first")
    present = [path.parent.name for path in folder.glob(f"*/{MANIFEST}")]
    for robot in team.robots:
        if robot.name not in present:
            raise UserError(
                f"{folder}: no bundle for robot '{robot.name}'; "
                f"{did_you_mean(robot.name, present)} Otherwise distil {team.name} again"
            )
    return [_load_bundle(robot, team, folder / robot.name) for robot in team.robots]


def _load_bundle(robot: Robot, team: Team, folder: Path) -> BundlePolicy:
    policy = load_policy(folder)
    manifest = policy.manifest
    pairs = {
        "task": (manifest.task, team.task.spec.name),
        "agent": (manifest.agent, robot.agent.name),
        "blocks": (
            [(block.name, block.size) for block in manifest.blocks],
            [(block.name, block.size) for block in robot.blocks],
        ),
        "actions": (manifest.actions, robot.agent.actions),
    }
    for key, (found, expected) in pairs.items():
        if found != expected:
            raise UserError(
                f"{folder / MANIFEST}: {key}: {found} is not the team's {expected} for "
                f"{robot.name}; distil the team again"
            )
    return policy
