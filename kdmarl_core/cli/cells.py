"""Cells for commands: read where they exist, computed with progress where that is asked for."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdmarl_core.cli.common import add_json, add_threads, positive
from kdmarl_core.errors import UserError

if TYPE_CHECKING:
    from kdmarl_core.bundle import Disturbance
    from kdmarl_core.distil.losses import Terms
    from kdmarl_core.distil.run import Lessons, Work
    from kdmarl_core.experiments.cells import Cell, Place
    from kdmarl_core.tasks import Task
    from kdmarl_core.teacher.teacher import Teacher, TeacherCard
    from kdmarl_core.team import Team

PAGE = Path("docs") / "results.md"
GLANCE = Path("README.md")


def add_cell_options(parser: argparse.ArgumentParser) -> None:
    """What every command that reads and computes cells is told."""
    parser.add_argument("--plan", metavar="FILE", help="default config/results.yaml")
    parser.add_argument("--results", metavar="DIR", default="results", help="default results")
    parser.add_argument("--seeds", type=positive, help="at most so many of the plan's")
    add_threads(parser)
    add_json(parser)


def refuse_partial_page(arguments: argparse.Namespace, *options: str) -> None:
    """Raise a `UserError` if a part of the plan would replace all of it on the page."""
    given = [f"--{option}" for option in options if getattr(arguments, option)]
    if arguments.write and given:
        raise UserError(
            f"--write: replaces all of the plan's tables in {PAGE}, and {' and '.join(given)} "
            "chooses some; write in a second call, without it"
        )


def obtain(place: Place, bar: Any, compute: Callable[[Any], Cell] | None) -> Cell | None:
    """The cell that belongs there; if it is missing, computed and written, or None.

    `compute` moves the line of the progress bar that it is given. A killed run leaves the old file
    or the new one.
    """
    from kdmarl_core.experiments import cells

    cell = cells.read_cell(*place)
    if cell is None and compute is not None:
        line = bar.add_task(f"{place.path.parent.name} {place.path.stem}", total=None, figures="")
        cell = compute(line)
        cells.write_cell(place.path, cell)
        bar.update(line, total=1, completed=1)
    return cell


def given(
    task: Task,
    teacher: Teacher,
    card: TeacherCard,
    episodes: int,
    folder: Path,
    bar: Any,
    *,
    compute: bool,
) -> tuple[Cell | None, Cell | None]:
    """The cells of a teacher and of random actions: students keep a part of what is between."""
    from kdmarl_core.experiments import cells

    return (
        obtain(
            cells.teacher_place(task, card, episodes, folder),
            bar,
            (lambda _: cells.play_teacher(task, teacher, card, episodes)) if compute else None,
        ),
        obtain(
            cells.random_place(task, episodes, folder),
            bar,
            (lambda _: cells.play_random(task, episodes)) if compute else None,
        ),
    )


def bound(team: Team, episodes: int, folder: Path, bar: Any, *, compute: bool) -> Cell | None:
    """The cell of the bound of a team's restriction."""
    from kdmarl_core.experiments import cells

    def train(line: Any) -> Cell:
        return cells.train_bound(team, episodes, _training_reporter(bar, line, team))

    place = cells.bound_place(team, episodes, folder)
    return obtain(place, bar, train if compute else None)


def students(
    works: Sequence[Work],
    stems: Mapping[str, Disturbance],
    episodes: int,
    folder: Path,
    bar: Any,
    *,
    compute: bool,
    assistant: Team | None = None,
) -> dict[str, tuple[Cell, ...]]:
    """Cells of students by training seed, which play once for each disturbance of their messages.

    Where one of a seed's is missing, its students are distilled, and play for all of them: what
    cells of one seed tell is of the same students. Once cells are kept, the checkpoint of the run
    is of no more use, and goes.

    Args:
        works: what is distilled, and how; they differ in their seed.
        stems: names of the cells, but for the seed, and what happens to messages.
        episodes: that they play.
        folder: of the cells.
        bar: shows progress.
        compute: whether missing cells are computed. Those that do not say which assistant taught
            them are computed again with the missing ones.
        assistant: the team whose bound is the policy between teacher and students; None: none.

    Raises:
        UserError: students of several assistants stand side by side, or would.
    """
    from kdmarl_core.distil.run import discard
    from kdmarl_core.experiments import cells

    places = {
        (stem, work.seed): cells.Place(
            folder / f"{stem}-{work.seed}.json",
            cells.student_inputs(work, episodes, assistant, how),
        )
        for work in works
        for stem, how in stems.items()
    }
    found = _read(places.values())
    lessons = None
    if assistant is not None:
        of_bound = _read([cells.bound_place(assistant, episodes, folder)])
        cells.refuse_other_assistants(found | of_bound)
        if compute and len(found) < len(places):
            found = {path: cell for path, cell in found.items() if cell.policy_sha256}
            lessons = _lessons(assistant, episodes, bar)
            cells.refuse_other_assistants(found | of_bound, lessons.card)
    for work in works if compute else ():
        own = [(places[stem, work.seed], how) for stem, how in stems.items()]
        if any(place.path not in found for place, _ in own):
            label = f"{folder.name}-{own[0][0].path.stem}"
            run = cells.run_folder(label, cells.student_inputs(work, episodes, assistant))
            line = bar.add_task(label, total=None, figures="")
            wanted = [(place.inputs, how) for place, how in own]
            ready = work._replace(assistant=lessons)
            made = cells.distil_students(ready, wanted, run, _distil_reporter(bar, line))
            for (place, _), cell in zip(own, made, strict=True):
                cells.write_cell(place.path, cell)
                found[place.path] = cell
            discard(run)
            bar.update(line, total=1, completed=1)
    return {
        stem: tuple(
            found[path] for work in works if (path := places[stem, work.seed].path) in found
        )
        for stem in stems
    }


def _read(places: Iterable[Place]) -> dict[Path, Cell]:
    """The cells that are there."""
    from kdmarl_core.experiments import cells

    read = {place.path: cells.read_cell(*place) for place in places}
    return {path: cell for path, cell in read.items() if cell is not None}


def _lessons(assistant: Team, episodes: int, bar: Any) -> Lessons:
    """The policy of the bound of that team, trained if it is not there."""
    from kdmarl_core.experiments import cells

    line = bar.add_task(f"assistant of {assistant.name}", total=None, figures="")
    lessons = cells.trained_assistant(
        assistant, episodes, _training_reporter(bar, line, assistant)
    )
    bar.update(line, total=1, completed=1)
    return lessons


def _training_reporter(bar: Any, line: Any, team: Team) -> Any:
    from kdmarl_core.experiments.cells import bound_recipe

    iterations = bound_recipe(team.task.spec).iterations

    def report(iteration: int, figures: dict[str, float]) -> None:
        shown = f"return {figures['return']:.2f}"
        bar.update(line, total=iterations, completed=iteration, figures=shown)

    return report


def _distil_reporter(bar: Any, line: Any) -> Any:
    """A report for `distil` that moves one line of the bar through both phases."""

    def report(
        phase: str, done: int, of: int, terms: Terms, mean_return: float, win_rate: float
    ) -> None:
        shown = f"{phase} KL {float(terms.kl):.3f}"
        if math.isfinite(mean_return):
            shown += f" return {mean_return:.2f}"
        bar.update(line, total=of, completed=done, figures=shown)

    return report
