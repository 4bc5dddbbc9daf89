"""Cells of the results table: one trained or given team, played for its score.

A cell is a small JSON file. It holds everything that made it, and is only used again for the same;
so a table fills up over several runs, and anyone can compute one cell again.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdmarl_core import __version__
from kdmarl_core.bundle import UNDISTURBED, BundlePolicy, Disturbance
from kdmarl_core.distil.run import Lessons, Report, Work, distil, export
from kdmarl_core.errors import UserError
from kdmarl_core.evaluate import (
    BundlePlayer,
    Episode,
    RandomPlayer,
    TeamPlayer,
    evaluation,
    play,
    returns,
    scores,
)
from kdmarl_core.files import atomic_write
from kdmarl_core.metrics import Returns
from kdmarl_core.schema import from_mapping, read_json
from kdmarl_core.tasks import Task, TaskSpec
from kdmarl_core.teacher.checkpoint import CHECKPOINT, fingerprint
from kdmarl_core.teacher.mappo import Recipe as TeacherRecipe
from kdmarl_core.teacher.mappo import load_recipe, shipped_recipe
from kdmarl_core.teacher.player import TeacherPlayer
from kdmarl_core.teacher.teacher import CARD, Teacher, TeacherCard, load_bound, save_teacher
from kdmarl_core.teacher.train import make_card, train
from kdmarl_core.team import Team

EVALUATION_SEED = 0  # of all cells: every player plays the same episodes
BOUND_SEED = 0
TEACHER = "teacher"  # where a trained policy lies in the folder of its run
RUNS = Path("runs") / "table"


@dataclass(frozen=True)
class Cell:
    """What was played, and what came out."""

    inputs: dict[str, Any]  # everything that made it
    returns: tuple[float, ...]  # of each episode
    won: tuple[int, ...]  # one or zero for each episode; empty where nothing can be won
    flops_per_episode: float  # of all robots' decisions; 0 where that is not of interest
    seconds: float  # spent on training and playing, since it was last resumed
    kdmarl_version: str
    # Of a bound's policy, or of the assistant that taught students; empty where there is none, or
    # where it was not recorded.
    policy_sha256: str = ""

    @property
    def scores(self) -> Returns:
        """What the table compares: wins where episodes can be won, else returns."""
        return np.array(self.won or self.returns, float)


class Place(NamedTuple):
    """Where a cell belongs, and what makes it."""

    path: Path
    inputs: dict[str, Any]


def read_cell(path: Path, inputs: dict[str, Any]) -> Cell | None:
    """The cell in a file, or None if there is none that was made by these very inputs.

    Raises:
        UserError: the file is damaged, or of another number of episodes: that is another plan's.
    """
    if not path.is_file():
        return None
    cell = from_mapping(Cell, read_json(path), str(path))
    episodes = inputs["episodes"]
    if (played := cell.inputs.get("episodes")) != episodes:
        raise UserError(
            f"{path}: inputs: episodes: {played} is not the plan's {episodes}, and cells of two "
            "plans are kept apart; give another --results"
        )
    if cell.inputs != as_json(inputs):
        return None
    if len(cell.returns) != episodes or len(cell.won) not in (0, episodes):
        raise UserError(
            f"{path}: returns: {len(cell.returns)} of {episodes} episodes; the file is damaged, "
            "remove it and it will be computed again"
        )
    return cell


def run_folder(label: str, inputs: dict[str, Any]) -> Path:
    """Where the run for a cell keeps its checkpoint; another one for everything else."""
    return RUNS / f"{label}-{fingerprint(inputs)[:8]}"


def write_cell(path: Path, cell: Cell) -> None:
    """Keep a cell; the file appears complete or not at all."""
    atomic_write(path, (json.dumps(dataclasses.asdict(cell)) + "\n").encode())


def as_json(value: Any) -> Any:
    """A value as it is read back from JSON: lists for tuples."""
    return json.loads(json.dumps(value))


def common_inputs(kind: str, task: Task, episodes: int) -> dict[str, Any]:
    """What decides every cell of a task."""
    return {
        "kind": kind,
        "task": task.spec.name,
        "fixture": task.spec.fixture_sha256,
        "episodes": episodes,
        "evaluation_seed": EVALUATION_SEED,
    }


def student_inputs(
    work: Work,
    episodes: int,
    assistant: Team | None = None,
    disturbance: Disturbance = UNDISTURBED,
) -> dict[str, Any]:
    """Inputs of the cell of a team's students.

    Of an assistant, the team whose bound it is; of messages, what happens to them.
    """
    inputs = common_inputs("students", work.team.task, episodes)
    inputs |= {
        "teacher": work.card.weights_sha256,
        "team": work.team.record(),
        "recipe": dataclasses.asdict(work.recipe),
        "seed": work.seed,
    }
    if revisions := work.recipe.revisions:
        inputs["revisions"] = revisions
    if assistant is not None:
        inputs["assistant"] = bound_inputs(assistant, episodes)
    if disturbance != UNDISTURBED:
        inputs["messages"] = disturbance._asdict()
    return inputs


def teacher_inputs(task: Task, card: TeacherCard, episodes: int) -> dict[str, Any]:
    """Inputs of the cell of a task's teacher."""
    return common_inputs("teacher", task, episodes) | {"teacher": card.weights_sha256}


def teacher_place(task: Task, card: TeacherCard, episodes: int, folder: Path) -> Place:
    """Where the cell of a task's teacher belongs; a task may have several."""
    path = folder / f"teacher-{card.weights_sha256[:8]}.json"
    return Place(path, teacher_inputs(task, card, episodes))


def random_place(task: Task, episodes: int, folder: Path) -> Place:
    """Where the cell of random actions belongs."""
    return Place(folder / "random.json", common_inputs("random", task, episodes))


def bound_place(team: Team, episodes: int, folder: Path) -> Place:
    """Where the cell of the bound of a team's restriction belongs; a task may have several."""
    kind = "random" if any(robot.random_features for robot in team.robots) else "groups"
    inputs = bound_inputs(team, episodes)
    return Place(folder / f"bound-{kind}-{fingerprint(inputs['restriction'])[:8]}.json", inputs)


def bound_recipe(spec: TaskSpec) -> TeacherRecipe:
    """How the bounds of a task's restrictions are trained: as its teacher, with memory."""
    return load_recipe(shipped_recipe(spec), spec).with_network("gru")


def bound_inputs(team: Team, episodes: int) -> dict[str, Any]:
    """Inputs of the bound of a team's restriction."""
    sensed = {agent: own.record() for agent, own in team.restriction().items()}
    return common_inputs("bound", team.task, episodes) | {
        "restriction": sensed,
        "recipe": bound_recipe(team.task.spec).record(),
        "seed": BOUND_SEED,
    }


def play_random(task: Task, episodes: int) -> Cell:
    """The cell of uniformly random legal actions."""
    inputs = common_inputs("random", task, episodes)
    return _played(task, RandomPlayer(), inputs, 0, time.monotonic())


def play_teacher(task: Task, teacher: Teacher, card: TeacherCard, episodes: int) -> Cell:
    """The cell of a task's teacher."""
    player = TeacherPlayer(teacher, task.spec)
    inputs = teacher_inputs(task, card, episodes)
    flops = teacher.cost().flops * task.spec.num_agents
    return _played(task, player, inputs, flops, time.monotonic())


def distil_students(
    work: Work,
    wanted: Sequence[tuple[dict[str, Any], Disturbance]],
    folder: Path,
    report: Report,
) -> list[Cell]:
    """Cells of a team's students: distil, export, play once for each disturbance of messages.

    Goes on where it was interrupted. The checkpoint stays in `folder`: `discard` it once the cells
    are kept.
    """
    begun = time.monotonic()
    students = distil(work, report, folder=folder, resume=True)
    exported = export(work, students)
    policies = [BundlePolicy(item.draft, item.model) for item in exported]
    flops = sum(item.draft.student.flops_per_decision for item in exported)
    made = [
        _played(
            work.team.task, BundlePlayer(policies, work.team, disturbance), inputs, flops, begun
        )
        for inputs, disturbance in wanted
    ]
    taught_by = work.assistant.card.weights_sha256 if work.assistant else ""
    return [dataclasses.replace(cell, policy_sha256=taught_by) for cell in made]


def train_bound(
    team: Team, episodes: int, report: Callable[[int, dict[str, float]], None]
) -> Cell:
    """The bound of a team's restriction: a big policy trained by RL under it.

    Goes on where it was interrupted; the policy stays for `trained_assistant`.
    """
    begun = time.monotonic()
    inputs, recipe = bound_inputs(team, episodes), bound_recipe(team.task.spec)
    folder = _bound_folder(team, inputs)
    resume = (folder / CHECKPOINT).is_file()
    policy, seconds = train(
        team.task, recipe, BOUND_SEED, folder, team=team, resume=resume, report=report
    )
    player = TeacherPlayer(policy, team.task.spec)
    episodes_played = list(play(team.task.make_reference(), player, episodes, EVALUATION_SEED))
    card = make_card(
        policy,
        recipe,
        command=f"kdmarl train {team.task.spec.name} --team {team.name}",
        seed=BOUND_SEED,
        seconds=seconds,
        score=evaluation(episodes_played, EVALUATION_SEED),
    )
    saved = save_teacher(policy, card, folder / TEACHER, overwrite=True)
    cell = _cell(team.task, episodes_played, inputs, 0, begun)
    return dataclasses.replace(cell, policy_sha256=saved.weights_sha256)


def trained_assistant(
    team: Team, episodes: int, report: Callable[[int, dict[str, float]], None]
) -> Lessons:
    """The policy of the bound of a team's restriction; trained if it is not there."""
    folder = _bound_folder(team, bound_inputs(team, episodes)) / TEACHER
    if not (folder / CARD).is_file():
        train_bound(team, episodes, report)
    return Lessons(*load_bound(folder, team))


def refuse_other_assistants(cells: Mapping[Path, Cell], card: TeacherCard | None = None) -> None:
    """Raise a `UserError` if the policies of cells differ, or are not that of `card`.

    Training an assistant anew, on another machine, gives another policy: its students are not to
    be held against those of the first one. Cells that do not say who taught them are let pass.
    """
    known = {path: cell.policy_sha256 for path, cell in cells.items() if cell.policy_sha256}
    if card is not None:
        known[RUNS] = card.weights_sha256
    if len(set(known.values())) > 1:
        who = ", ".join(f"{path} {sha256[:12]}" for path, sha256 in known.items())
        raise UserError(
            f"policy_sha256: students of one assistant are asked for, and these differ: {who}; "
            "bring back the policy of the others, or remove their cells and compute them again"
        )


def _bound_folder(team: Team, inputs: dict[str, Any]) -> Path:
    return run_folder(f"{team.task.spec.slug}-bound", inputs)


def _played(
    task: Task,
    player: TeamPlayer,
    inputs: dict[str, Any],
    flops_per_step: int,
    begun: float,
) -> Cell:
    played = list(play(task.make_reference(), player, inputs["episodes"], EVALUATION_SEED))
    return _cell(task, played, inputs, flops_per_step, begun)


def _cell(
    task: Task,
    episodes: Sequence[Episode],
    inputs: dict[str, Any],
    flops_per_step: int,
    begun: float,
) -> Cell:
    steps = float(np.mean([episode.steps for episode in episodes]))
    return Cell(
        inputs=as_json(inputs),
        returns=tuple(round(value, 4) for value in returns(episodes)),
        won=tuple(int(won) for won in scores(episodes)) if task.spec.can_be_won else (),
        flops_per_episode=flops_per_step * steps,
        seconds=round(time.monotonic() - begun, 1),
        kdmarl_version=__version__,
    )
