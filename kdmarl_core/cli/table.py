"""`kdmarl table`: the results of all tasks and settings, from cells that are computed once."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdmarl_core.cli.common import (
    add_json,
    add_threads,
    console,
    positive,
    print_json,
    print_table,
    progress_bar,
)
from kdmarl_core.errors import UserError

if TYPE_CHECKING:
    from kdmarl_core.distil.losses import Terms
    from kdmarl_core.experiments.cells import Cell
    from kdmarl_core.experiments.plan import Row
    from kdmarl_core.experiments.table import RowCells

KINDS = ("given", "students", "bounds", "assisted")
# Computes a cell while it moves one line (the second) of a progress bar (the first).
Compute = Callable[[Any, Any], "Cell"]
PAGE = Path("docs") / "results.md"
GLANCE = Path("README.md")


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "table", help="print the table of results, and compute what it lacks"
    )
    add_cell_options(parser)
    parser.add_argument("--tasks", nargs="+", default=[], help="default: all of the plan")
    parser.add_argument("--settings", nargs="+", default=[], help="default: all of the plan")
    parser.add_argument(
        "--compute",
        nargs="+",
        choices=KINDS,
        default=[],
        help="cells to compute where they are missing: given (teacher and random actions), "
        "students, bounds, assisted (students of the bounds' policies)",
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help=f"put the table into {PAGE}, and what it comes to into {GLANCE}",
    )
    parser.set_defaults(command=table_command)


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


def table_command(arguments: argparse.Namespace) -> None:
    """Compute what is asked for, then print what there is."""
    from kdmarl_core.experiments.plan import load_plan, rows
    from kdmarl_core.experiments.table import (
        HEADER,
        markdown,
        markdown_table,
        put_between,
        summary,
    )

    refuse_partial_page(arguments, "tasks", "settings", "seeds")
    plan = load_plan(Path(arguments.plan) if arguments.plan else None)
    chosen = list(rows(plan, arguments.tasks, arguments.settings))
    results = Path(arguments.results)
    found = []
    with progress_bar() as bar:
        for row in _with_teachers(chosen):
            seeds = min(row.rows.seeds, arguments.seeds or row.rows.seeds)
            found.append(_row(row, seeds, plan.episodes, results, arguments, bar))
    if arguments.json:
        print_json([_figures(cells) for cells in found])
    tables = _tables(found)
    for task, lines in tables.items():
        if not arguments.json:
            print_table(task, HEADER, lines)
    if arguments.write:
        parts = [markdown(task, lines, HEADER) for task, lines in tables.items()]
        put_between(PAGE, "table", "\n".join(parts))
        header = ("task", *plan.settings, "fewer FLOPs")
        put_between(GLANCE, "table", markdown_table(summary(found, plan.settings), header))


def _with_teachers(chosen: Sequence[Row]) -> Iterator[Row]:
    """The rows of which anything can be said; says of which tasks nothing can."""
    from kdmarl_core.teacher.teacher import find_teacher

    said = set()
    for row in chosen:
        team = row.team()
        try:
            find_teacher(team.teacher)
        except UserError as error:
            if row.task not in said:
                console.print(f"{row.task}: left out: {error}")
            said.add(row.task)
        else:
            yield row


def _row(
    row: Row, seeds: int, episodes: int, results: Path, arguments: argparse.Namespace, bar: Any
) -> RowCells:
    """One row's cells: read where they exist, computed where that is asked for."""
    from kdmarl_core.distil.recipe import load_recipe
    from kdmarl_core.distil.run import Work
    from kdmarl_core.experiments import cells
    from kdmarl_core.experiments.table import RowCells
    from kdmarl_core.process import prepare_training
    from kdmarl_core.teacher.teacher import find_teacher, load_teacher

    prepare_training(arguments.threads)
    team = row.team()
    task, spec = team.task, team.task.spec
    teacher, card = load_teacher(find_teacher(team.teacher), spec)
    recipe = load_recipe(team.recipe)
    of_bound = cells.bound_recipe(spec)
    bound_run = cells.run_folder(f"{row.slug}-bound", cells.bound_inputs(team, of_bound, episodes))
    slug = row.setting.replace(" ", "_").replace("+", "")
    kind = "assisted" if row.assisted else "students"

    def cell(
        name: str,
        kind: str,
        inputs: dict[str, Any],
        compute: Compute,
        run: Path | None = None,
    ) -> Cell | None:
        ready = shown(bar, f"{row.task} {name}", compute) if kind in arguments.compute else None
        return cells.obtain(results / row.slug / f"{name}.json", inputs, ready, run)

    def student(seed: int) -> Cell | None:
        work = Work(team, teacher, card, recipe, seed)
        inputs = cells.student_inputs(work, episodes, of_bound if row.assisted else None)
        name = f"{slug}-{kind}-{seed}"
        run = cells.run_folder(f"{row.slug}-{name}", inputs)

        def compute(bar: Any, line: Any) -> Cell:
            ready = work
            if row.assisted:
                report = _training_reporter(bar, line, of_bound.iterations)
                assistant = cells.trained_assistant(team, of_bound, episodes, bound_run, report)
                ready = work._replace(assistant=assistant)
            report = distil_reporter(bar, line)
            return cells.distil_students(ready, inputs, run, report)

        return cell(name, kind, inputs, compute, run)

    def bound() -> Cell | None:
        return cell(
            cells.bound_name(team),
            "bounds",
            cells.bound_inputs(team, of_bound, episodes),
            lambda bar, line: cells.train_bound(
                team,
                of_bound,
                episodes,
                bound_run,
                _training_reporter(bar, line, of_bound.iterations),
            ),
        )

    return RowCells(
        row=row,
        teacher=cell(
            cells.teacher_name(card),
            "given",
            cells.teacher_inputs(task, card, episodes),
            lambda *_: cells.play_teacher(task, teacher, card, episodes),
        ),
        random=cell(
            "random",
            "given",
            cells.common_inputs("random", task, episodes),
            lambda *_: cells.play_random(task, episodes),
        ),
        students=tuple(found for seed in range(seeds) if (found := student(seed)) is not None),
        bound=bound() if row.restricted else None,  # of full observations: the teacher
    )


def shown(bar: Any, name: str, compute: Compute) -> Callable[[], Cell]:
    """A computation that shows its progress as one line of the bar."""

    def run() -> Cell:
        line = bar.add_task(name, total=None, figures="")
        cell = compute(bar, line)
        bar.update(line, total=1, completed=1)
        return cell

    return run


def _training_reporter(bar: Any, line: Any, iterations: int) -> Any:
    def report(iteration: int, figures: dict[str, float]) -> None:
        shown = f"return {figures['return']:.2f}"
        bar.update(line, total=iterations, completed=iteration, figures=shown)

    return report


def distil_reporter(bar: Any, line: Any) -> Any:
    """A report for `distil` that moves one line of the bar through both phases."""

    def report(
        phase: str, done: int, of: int, terms: Terms, mean_return: float, win_rate: float
    ) -> None:
        shown = f"{phase} KL {float(terms.kl):.3f}"
        if math.isfinite(mean_return):
            shown += f" return {mean_return:.2f}"
        bar.update(line, total=of, completed=done, figures=shown)

    return report


def _tables(found: list[RowCells]) -> dict[str, list[list[str]]]:
    """Printed rows by task; those with an assistant only where one has taught."""
    from kdmarl_core.experiments.table import page_rows

    tables: dict[str, list[list[str]]] = {}
    for cells in found:
        if cells.row.assisted and not cells.students:
            continue
        tables.setdefault(cells.row.task, []).append(page_rows(cells))
    return tables


def _figures(cells: RowCells) -> dict[str, Any]:
    from kdmarl_core.experiments import table

    def share(interval: Any) -> Any:
        return interval and interval._asdict()

    return {
        "task": cells.row.task,
        "setting": cells.row.setting,
        "assisted": cells.row.assisted,
        "team": cells.row.team_name,
        "source": dataclasses.asdict(cells.row.rows.source),
        "retention": share(table.retention(cells)),
        "of_bound": share(table.of_bound(cells)),
        "bound_retention": share(table.bound_retention(cells)),
        "scores": {
            "teacher": cells.teacher and float(cells.teacher.scores.mean()),
            "random": cells.random and float(cells.random.scores.mean()),
            "students": [float(cell.scores.mean()) for cell in cells.students],
            "bound": cells.bound and float(cells.bound.scores.mean()),
        },
    }
