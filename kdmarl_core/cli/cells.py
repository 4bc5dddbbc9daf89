"""Cells for commands: read where they exist, computed with progress where that is asked for."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdmarl_core.cli.common import add_json, add_threads, positive
from kdmarl_core.errors import UserError

if TYPE_CHECKING:
    from kdmarl_core.bundle import Disturbance
    from kdmarl_core.distil.losses import Terms
    from kdmarl_core.distil.run import Work
    from kdmarl_core.experiments.cells import Assistant, Cell
    from kdmarl_core.teacher.mappo import Recipe as TeacherRecipe
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


def obtain(
    path: Path, inputs: dict[str, Any], bar: Any, compute: Callable[[Any], Cell] | None
) -> Cell | None:
    """The cell in a file or, if it is not there, computed and written; None without `compute`.

    `compute` moves the line of the progress bar that it is given. A killed run leaves the old file
    or the new one.
    """
    from kdmarl_core.experiments import cells

    cell = cells.read_cell(path, inputs)
    if cell is None and compute is not None:
        line = bar.add_task(f"{path.parent.name} {path.stem}", total=None, figures="")
        cell = compute(line)
        cells.write_cell(path, cell)
        bar.update(line, total=1, completed=1)
    return cell


def bound(
    team: Team, recipe: TeacherRecipe, episodes: int, folder: Path, bar: Any, *, compute: bool
) -> Cell | None:
    """The cell of the bound of a team's restriction."""
    from kdmarl_core.experiments import cells

    def train(line: Any) -> Cell:
        report = _training_reporter(bar, line, recipe.iterations)
        return cells.train_bound(team, recipe, episodes, report)

    return obtain(
        folder / f"{cells.bound_name(team)}.json",
        cells.bound_inputs(team, recipe, episodes),
        bar,
        train if compute else None,
    )


def students(
    work: Work,
    places: Mapping[Path, Disturbance],
    episodes: int,
    bar: Any,
    *,
    compute: bool,
    assistant: Assistant | None = None,
    siblings: Sequence[Cell] = (),
) -> list[Cell | None]:
    """Cells of the same students, which play once for each disturbance of their messages.

    Where some are missing, the students are distilled once for all of those. Once cells are kept,
    the checkpoint of the run is of no more use, and goes.

    Args:
        work: what is distilled, and how.
        places: the cells' files, and what happens to messages.
        episodes: that they play.
        bar: shows progress.
        compute: whether missing cells are computed.
        assistant: the policy that stands between teacher and students; None: none.
        siblings: cells of other seeds, whose assistant must be the same policy.

    Raises:
        UserError: the assistant that is there has taught none of the siblings.
    """
    from kdmarl_core.distil.run import discard
    from kdmarl_core.experiments import cells

    plain = cells.student_inputs(work, episodes, assistant)
    inputs = {path: cells.disturbed_inputs(plain, how) for path, how in places.items()}
    found = {path: cells.read_cell(path, inputs[path]) for path in places}
    missing = [path for path in places if found[path] is None]
    if missing and compute:
        first = next(iter(places))
        label = f"{first.parent.name}-{first.stem}"
        line = bar.add_task(label, total=None, figures="")
        if assistant is not None:
            report = _training_reporter(bar, line, assistant.recipe.iterations)
            lessons = cells.trained_assistant(assistant, episodes, report)
            cells.refuse_other_assistant(lessons.card, siblings, first)
            work = work._replace(assistant=lessons)
        run = cells.run_folder(label, plain)
        wanted = [(inputs[path], places[path]) for path in missing]
        made = cells.distil_students(work, wanted, run, _distil_reporter(bar, line))
        for path, cell in zip(missing, made, strict=True):
            cells.write_cell(path, cell)
            found[path] = cell
        discard(run)
        bar.update(line, total=1, completed=1)
    return list(found.values())


def _training_reporter(bar: Any, line: Any, iterations: int) -> Any:
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
