"""`kdmarl table`: the results of all tasks and settings, from cells that are computed once."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdmarl_core.cli.cells import (
    GLANCE,
    PAGE,
    add_cell_options,
    bound,
    given,
    refuse_partial_page,
    students,
)
from kdmarl_core.cli.common import add_list, console, print_json, print_table, progress_bar
from kdmarl_core.errors import UserError

if TYPE_CHECKING:
    from kdmarl_core.experiments.plan import Row
    from kdmarl_core.experiments.table import RowCells

KINDS = ("given", "students", "bounds", "assisted")


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "table", help="print the table of results, and compute what it lacks"
    )
    add_cell_options(parser)
    add_list(parser, "--tasks", help="default: all of the plan")
    add_list(parser, "--settings", help="default: all of the plan")
    add_list(
        parser,
        "--compute",
        choices=KINDS,
        help="cells to compute where they are missing: given (teacher and random actions), "
        "students, bounds, assisted (students of the bounds' policies)",
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help=f"put the table into {PAGE}, and what it comes to into {GLANCE}",
    )
    parser.set_defaults(command=table_command)


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
    from kdmarl_core.bundle import UNDISTURBED
    from kdmarl_core.distil.recipe import load_recipe
    from kdmarl_core.distil.run import Work
    from kdmarl_core.experiments.table import RowCells
    from kdmarl_core.process import prepare_training
    from kdmarl_core.teacher.teacher import find_teacher, load_teacher

    prepare_training(arguments.threads)
    team = row.team()
    task, folder = team.task, results / team.task.spec.slug
    teacher, card = load_teacher(find_teacher(team.teacher), task.spec)
    recipe = load_recipe(team.recipe)
    kind = "assisted" if row.assisted else "students"
    stem = f"{row.setting.replace(' ', '_').replace('+', '')}-{kind}"
    of_teacher, of_random = given(
        task, teacher, card, episodes, folder, bar, compute="given" in arguments.compute
    )
    return RowCells(
        row=row,
        teacher=of_teacher,
        random=of_random,
        # The bound of full observations is the teacher.
        bound=bound(team, episodes, folder, bar, compute="bounds" in arguments.compute)
        if row.restricted
        else None,
        students=students(
            [Work(team, teacher, card, recipe, seed) for seed in range(seeds)],
            {stem: UNDISTURBED},
            episodes,
            folder,
            bar,
            compute=kind in arguments.compute,
            assistant=team if row.assisted else None,
        )[stem],
    )


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
