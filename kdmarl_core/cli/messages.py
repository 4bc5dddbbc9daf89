"""`kdmarl messages`: what robots gain by telling each other something, cell by cell."""

from __future__ import annotations

import argparse
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
from kdmarl_core.cli.common import add_list, print_json, print_table, progress_bar
from kdmarl_core.errors import UserError, refuse_unknown

if TYPE_CHECKING:
    from kdmarl_core.experiments.messages import Known, Played
    from kdmarl_core.experiments.plan import Plan

PICTURES = Path("docs") / "images"


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "messages", help="retention by size, format, loss and delay of messages"
    )
    add_cell_options(parser)
    add_list(parser, "--teams", help="default: all of the plan")
    add_list(parser, "--variants", help="default: all of the plan")
    parser.add_argument("--compute", action="store_true", help="distil what is missing")
    parser.add_argument(
        "--write",
        action="store_true",
        help=f"put tables into {PAGE} and {GLANCE}, pictures beside",
    )
    parser.set_defaults(command=messages_command)


def messages_command(arguments: argparse.Namespace) -> None:
    """Compute what is asked for, then print what there is."""
    from kdmarl_core.experiments import messages
    from kdmarl_core.experiments.plan import load_plan
    from kdmarl_core.experiments.table import markdown, markdown_table, put_between

    refuse_partial_page(arguments, "teams", "variants", "seeds")
    plan = load_plan(Path(arguments.plan) if arguments.plan else None)
    teams = arguments.teams or list(plan.messages.teams)
    refuse_unknown("team", teams, plan.messages.teams)
    variants = {name for team in teams for name in plan.messages.variants_of(team)}
    refuse_unknown("variant", arguments.variants, sorted(variants))
    parts, glance = [], []
    with progress_bar() as bar:
        tables = {name: _team(name, plan, arguments, bar) for name in teams}
    if arguments.json:
        print_json(
            [
                line
                for name, (found, known, _) in tables.items()
                for line in messages.figures(name, found, known)
            ]
        )
    for name, (found, known, picture) in tables.items():
        if not arguments.json:
            print_table(name, messages.HEADER, messages.page_rows(found, known))
        there = [played for played in found if played.students]
        if there:
            lines = messages.page_rows(there, known)
            parts.append(markdown(f"Messages, {name}", lines, messages.HEADER))
            glance.append(messages.summary(name, there, plan.messages.at_a_glance, known))
            # Variants that tell causes apart send the same bits: they stand in the table alone.
            drawn = [played for played in there if played.case.variant in plan.messages.variants]
            if arguments.write and any(played.bits_per_step for played in drawn):
                messages.draw(name, drawn, known, picture)
                parts.append(f"![Retention against bits per second](images/{picture.name})\n")
    if arguments.write:
        put_between(PAGE, "messages", "\n".join(parts))
        header = ("team", *plan.messages.at_a_glance, messages.BOUND)
        put_between(GLANCE, "messages", markdown_table(glance, header))


def _team(
    name: str, plan: Plan, arguments: argparse.Namespace, bar: Any
) -> tuple[list[Played], Known, Path]:
    """A team's cases, the cells that they are compared with, and where its picture is."""
    from kdmarl_core.distil.recipe import load_recipe
    from kdmarl_core.distil.run import Work
    from kdmarl_core.experiments import messages
    from kdmarl_core.process import prepare_training
    from kdmarl_core.teacher.teacher import find_teacher, load_teacher
    from kdmarl_core.team import load_team

    prepare_training(arguments.threads)
    plain = load_team(name, plan.messages.teams[name])
    spec, episodes = plain.task.spec, plan.episodes
    folder = Path(arguments.results) / spec.slug
    picture = PICTURES / f"messages_{plain.name}.png"
    try:
        place = find_teacher(plain.teacher)
    except UserError:
        if arguments.compute:
            raise
        return [], messages.Known(), picture  # a teacher that has yet to be trained
    # Of whose score students keep a part, whoever teaches them.
    taught = load_teacher(place, spec)
    known = messages.Known(
        *given(plain.task, *taught, episodes, folder, bar, compute=arguments.compute),
        bound(plain.silent(), episodes, folder, bar, compute=False),
    )
    found = []
    seeds = range(min(plan.messages.seeds, arguments.seeds or plan.messages.seeds))
    for variant, how in plan.messages.variants_of(name).items():
        if arguments.variants and variant not in arguments.variants:
            continue
        team = load_team(name, (*plan.messages.teams[name], *how.team))
        recipe = load_recipe(team.recipe, how.recipe, how.without)
        taught = load_teacher(find_teacher(team.teacher), spec)
        assistant = how.assistant_of(team)
        if assistant is not None and assistant.talks:
            hearing = bound(assistant, episodes, folder, bar, compute=arguments.compute)
            known = known._replace(hearing=hearing or known.hearing)
        cases = {
            f"messages-{team.name}-{case.slug}": (case, disturbance)
            for case, disturbance in messages.cases(plan.messages, name, variant).items()
        }
        by_stem = students(
            [Work(team, *taught, recipe, seed) for seed in seeds],
            {stem: disturbance for stem, (_, disturbance) in cases.items()},
            episodes,
            folder,
            bar,
            compute=arguments.compute,
            assistant=assistant,
        )
        bits = messages.bits_per_step(team)
        found += [
            messages.Played(case, bits, bits * spec.rate_hz, by_stem[stem])
            for stem, (case, _) in cases.items()
        ]
    return found, known, picture
