"""`kdmarl ablation`: what each term of the objective, and each phase, buys."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdmarl_core.cli.cells import PAGE, add_cell_options, given, refuse_partial_page, students
from kdmarl_core.cli.common import add_list, print_json, print_table, progress_bar
from kdmarl_core.errors import refuse_unknown

if TYPE_CHECKING:
    from kdmarl_core.experiments.ablation import Distilled
    from kdmarl_core.experiments.cells import Cell
    from kdmarl_core.experiments.plan import Plan

HEADER = ("variant", "score", "seeds", "retention %", "change in points")


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "ablation", help="switch terms and phases of the distillation off in turn"
    )
    add_cell_options(parser)
    add_list(parser, "--teams", help="default: all of the plan")
    add_list(parser, "--variants", help="beside that with all terms; default: all")
    parser.add_argument("--compute", action="store_true", help="distil what is missing")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE}")
    parser.set_defaults(command=ablation_command)


def ablation_command(arguments: argparse.Namespace) -> None:
    """Compute what is asked for, then print what there is."""
    from kdmarl_core.experiments.ablation import figures, page_rows
    from kdmarl_core.experiments.plan import load_plan
    from kdmarl_core.experiments.table import markdown, put_between

    refuse_partial_page(arguments, "teams", "variants", "seeds")
    plan = load_plan(Path(arguments.plan) if arguments.plan else None)
    refuse_unknown("team", arguments.teams, plan.ablation.teams)
    refuse_unknown("variant", arguments.variants, plan.ablation.variants())
    with progress_bar() as bar:
        by_team = {
            name: _variants(name, plan, arguments, bar)
            for name in arguments.teams or plan.ablation.teams
        }
    if arguments.json:
        print_json([line for name, found in by_team.items() for line in figures(name, *found)])
    tables = {
        name: page_rows(variants, *known)
        for name, (variants, *known) in by_team.items()
        if any(variant.students for variant in variants)
    }
    if not arguments.json:
        for name, lines in tables.items():
            print_table(name, HEADER, lines)
    if arguments.write:
        parts = [markdown(f"Ablation, {name}", lines, HEADER) for name, lines in tables.items()]
        put_between(PAGE, "ablation", "\n".join(parts))


def _variants(
    name: str, plan: Plan, arguments: argparse.Namespace, bar: Any
) -> tuple[list[Distilled], Cell | None, Cell | None]:
    """A team's variants, and the cells of teacher and random actions."""
    from kdmarl_core.bundle import UNDISTURBED
    from kdmarl_core.distil.recipe import load_recipe
    from kdmarl_core.distil.run import Work
    from kdmarl_core.experiments.ablation import Distilled
    from kdmarl_core.experiments.plan import ALL_ON
    from kdmarl_core.process import prepare_training
    from kdmarl_core.teacher.teacher import find_teacher, load_teacher
    from kdmarl_core.team import load_team

    prepare_training(arguments.threads)
    plain = load_team(name)
    spec = plain.task.spec
    folder = Path(arguments.results) / spec.slug
    # Of whose score students keep a part, whoever teaches them.
    taught = load_teacher(find_teacher(plain.teacher), spec)
    known = given(plain.task, *taught, plan.episodes, folder, bar, compute=arguments.compute)
    found = []
    seeds = range(min(plan.ablation.seeds, arguments.seeds or plan.ablation.seeds))
    for title, variant in plan.ablation.variants().items():
        if arguments.variants and title not in (ALL_ON, *arguments.variants):
            continue
        team = load_team(name, variant.team)
        taught = load_teacher(find_teacher(team.teacher), spec)
        recipe = load_recipe(team.recipe, variant.recipe, variant.without)
        stem = f"ablation-{team.name}-{title.replace(' ', '_')}"
        by_stem = students(
            [Work(team, *taught, recipe, seed) for seed in seeds],
            {stem: UNDISTURBED},
            plan.episodes,
            folder,
            bar,
            compute=arguments.compute,
            assistant=variant.assistant_of(team),
        )
        found.append(Distilled(title, by_stem[stem]))
    return found, *known
