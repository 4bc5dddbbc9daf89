"""`kdmarl distil`: stage 2, one bundle per robot."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdmarl_core.cli.common import (
    add_list,
    add_run,
    console,
    print_json,
    print_table,
    progress_bar,
)

if TYPE_CHECKING:
    from kdmarl_core.distil.losses import Terms
    from kdmarl_core.distil.run import DistilledTeam


RUNS = Path("runs") / "distil"  # what was begun, each by all that decides it

# Of the students' episodes: a few that last long are no reason to sample longer ones.
CUT_SHARE = 0.05


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("distil", help="distil a teacher into a team's students")
    parser.add_argument("--team", required=True, help="a team that ships, or a YAML file")
    parser.add_argument("--teacher", metavar="DIR", help="default: the team file's teacher")
    parser.add_argument(
        "--assistant",
        metavar="DIR",
        help="learn from this policy of `kdmarl train --team`, "
        "which senses what the robots do and, if it hears, those whom they hear",
    )
    parser.add_argument(
        "--recipe",
        metavar="FILE",
        help="one that ships, or a YAML file (default: the team file's)",
    )
    add_list(parser, "--set", metavar="KEY=VALUE", help="values of the recipe to change")
    add_list(parser, "--without", metavar="TERM", help="terms to switch off (ablation)")
    parser.add_argument(
        "--buffer", metavar="FILE", help="expert buffer to read, or to write if there is none"
    )
    add_run(parser, "runs/bundles/<team>")
    parser.set_defaults(command=distil_command)


def distil_command(arguments: argparse.Namespace) -> None:
    """Distil, export, measure, write, and print what was kept."""
    done = run_distil(
        arguments.team,
        teacher=arguments.teacher,
        assistant=arguments.assistant,
        recipe=arguments.recipe,
        changes=arguments.set,
        without=arguments.without,
        output=arguments.output,
        overwrite=arguments.overwrite,
        resume=arguments.resume,
        buffer=arguments.buffer,
        episodes=arguments.episodes,
        threads=arguments.threads,
        seed=arguments.seed,
    )
    if arguments.json:
        print_json(_figures(done))
    else:
        _print(done)


def run_distil(
    team_name: str,
    *,
    teacher: str | None,
    assistant: str | None = None,
    recipe: str | None = None,
    changes: Sequence[str] = (),
    without: Sequence[str] = (),
    output: str | None,
    overwrite: bool,
    resume: bool,
    buffer: str | None,
    episodes: int,
    threads: int,
    seed: int,
) -> DistilledTeam:
    """The whole of stage 2 with progress bars; the arguments are the command's options."""
    from kdmarl_core.distil.expert_buffer import bytes_per_step
    from kdmarl_core.distil.recipe import load_recipe
    from kdmarl_core.distil.run import (
        BUNDLES,
        DistilledTeam,
        Lessons,
        Work,
        discard,
        distil,
        export,
        measure,
        planned_buffer,
        write_team,
    )
    from kdmarl_core.errors import UserError
    from kdmarl_core.files import bundles_folder, refuse_existing
    from kdmarl_core.process import prepare_training
    from kdmarl_core.teacher.checkpoint import CHECKPOINT
    from kdmarl_core.teacher.teacher import find_teacher, load_bound, load_teacher
    from kdmarl_core.team import load_team

    team = load_team(team_name)
    if team.lender:
        raise UserError(
            f"{team.path}: students: its robots fly those of {team.lender.name}; distil that team"
        )
    if teacher:
        team = dataclasses.replace(team, teacher=teacher)
    how = load_recipe(recipe or team.recipe, changes, without)
    frozen, card = load_teacher(find_teacher(team.teacher), team.task.spec)
    between = Lessons(*load_bound(Path(assistant), team)) if assistant else None
    work = Work(team, frozen, card, how, seed, between)
    spec, roles = team.task.spec, how.roles
    folder = Path(output) if output else bundles_folder(team.name)
    identity = work.identity(planned_buffer(work))
    checkpoints = RUNS / f"{team.name}-{seed}-{identity[:8]}"
    refuse_existing(folder, BUNDLES, overwrite=overwrite)
    kept = (checkpoints / CHECKPOINT).is_file()
    if kept and not (resume or overwrite):
        raise UserError(
            f"{checkpoints}: holds the checkpoint of a run that was interrupted; go on with "
            "--resume, or give --overwrite to begin anew"
        )
    if resume and not kept:
        others = sorted(str(path.parent) for path in RUNS.glob(f"{team.name}-*/{CHECKPOINT}"))
        raise UserError(
            f"{checkpoints}: no checkpoint of this team, teacher, recipe and seed; give those of "
            f"the run that was interrupted ({', '.join(others) or 'there is none'}), or leave "
            "out --resume"
        )
    prepare_training(threads)
    with progress_bar() as bar:
        lines: dict[str, Any] = {}

        def report(
            phase: str, done: int, of: int, terms: Terms, mean_return: float, win_rate: float
        ) -> None:
            if phase not in lines:
                lines[phase] = bar.add_task(f"{team.name}: {phase}", total=of, figures="")
            shown = f"KL {float(terms.kl):.3f}"
            if math.isfinite(mean_return):
                shown += f" return {mean_return:.2f}"
            if spec.can_be_won and math.isfinite(win_rate):
                shown += f" won {win_rate:.0%}"
            bar.update(lines[phase], completed=done, figures=shown)

        def on_buffer(done: int, of: int) -> None:
            if done == 1:
                room = planned_buffer(work).steps * bytes_per_step(spec, work.lessons.card, roles)
                title = f"{team.name}: expert buffer"
                lines["buffer"] = bar.add_task(title, total=of, figures=f"{room / 1e6:,.0f} MB")
            bar.update(lines["buffer"], completed=done)

        try:
            students = distil(
                work,
                report,
                folder=checkpoints,
                resume=resume,
                buffer_file=Path(buffer) if buffer else None,
                on_buffer=on_buffer,
            )
            exported = export(work, students)
            line = bar.add_task(f"{team.name}: measure", total=3, figures="")
            played = measure(
                team, frozen, exported, episodes, seed, lambda: bar.update(line, advance=1)
            )
            write_team(exported, played.measured, folder, overwrite=overwrite)
            sampled = how.on_policy.rollout_steps if how.on_policy.iterations else math.inf
            cut = float((played.steps > sampled).mean())
            if cut > CUT_SHARE:
                console.print(
                    f"warning: {cut:.0%} of the students' episodes last longer than "
                    f"on_policy.rollout_steps: {sampled}, and they never met what comes after it; "
                    "raise it, and lower on_policy.num_envs to take no longer"
                )
        except KeyboardInterrupt:
            if (checkpoints / CHECKPOINT).is_file():
                console.print(f"checkpoint kept in {checkpoints}; go on with --resume")
            raise
    discard(checkpoints)
    return DistilledTeam(folder, team, frozen, exported, played)


def _figures(done: DistilledTeam) -> dict[str, Any]:
    return {
        "bundles": str(done.folder),
        "measured": dataclasses.asdict(done.played.measured),
        "robots": {
            item.robot.name: dataclasses.asdict(item.draft.student)
            | {"bytes": len(item.model), "largest_difference": item.difference}
            for item in done.exported
        },
    }


def _print(done: DistilledTeam) -> None:
    from kdmarl_core.metrics import percent, wins

    rows = [
        [
            item.robot.name,
            f"{item.draft.student.network} {item.draft.student.width}",
            f"{item.draft.student.parameters:,}",
            f"{item.draft.student.flops_per_decision:,}",
            f"{len(item.model):,}",
            f"{item.difference:.1e}",
        ]
        for item in done.exported
    ]
    header = ["robot", "student", "parameters", "FLOPs/decision", "bytes", "ONNX - torch"]
    print_table(f"bundles in {done.folder}", header, rows)
    measured = done.played.measured
    won = ""
    if measured.student_win_rate is not None:
        won = f", {wins(measured.student_win_rate)} (teacher {wins(measured.teacher_win_rate)})"
    print(
        f"return {measured.student_return:.2f} (teacher {measured.teacher_return:.2f}, random "
        f"{measured.random_return:.2f}){won}: retention {percent(done.played.retention)}, "
        f"{measured.episodes} greedy episodes"
    )
