"""`kdmarl train`: stage 1, the teacher."""

from __future__ import annotations

import argparse
import contextlib
import functools
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from kdmarl_core.cli.common import (
    add_run,
    console,
    positive,
    print_json,
    progress_bar,
)
from kdmarl_core.errors import UserError, naming
from kdmarl_core.teacher.architecture import Network

if TYPE_CHECKING:
    from kdmarl_core.tasks import Task
    from kdmarl_core.teacher.mappo import Recipe
    from kdmarl_core.team import Team


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "train", help="train a teacher with MAPPO, or the bound of a team's restriction"
    )
    parser.add_argument("task", help="a task of `kdmarl tasks`, such as mpe/simple_spread")
    parser.add_argument(
        "--recipe", metavar="FILE", help="one that ships, or a YAML file (default <task>)"
    )
    parser.add_argument(
        "--team",
        help="train on what the robots of this team sense and hear: the bound of its restriction",
    )
    parser.add_argument(
        "--network",
        choices=get_args(Network),
        help="the actor's, instead of the recipe's (with --team: gru)",
    )
    parser.add_argument("--env-steps", type=positive, help="instead of the recipe's")
    add_run(parser, "runs/train/<task>[-<team>]-<seed>")
    parser.set_defaults(command=train_teacher)


def train_teacher(arguments: argparse.Namespace) -> None:
    """Train, evaluate in the task's reference simulator, and write weights and card."""
    from kdmarl_core.evaluate import evaluation, play
    from kdmarl_core.files import refuse_existing
    from kdmarl_core.metrics import wins
    from kdmarl_core.process import prepare_training
    from kdmarl_core.tasks import make_task
    from kdmarl_core.teacher.checkpoint import CHECKPOINT
    from kdmarl_core.teacher.player import TeacherPlayer
    from kdmarl_core.teacher.teacher import save_teacher
    from kdmarl_core.teacher.train import make_card, train

    task = make_task(arguments.task)
    team = _team(arguments, task)
    recipe, where = chosen_recipe(arguments, task)
    if team or arguments.network:
        recipe = recipe.with_network(arguments.network or "gru")
    if arguments.network:
        where += f" with --network {arguments.network}"
    name = f"{task.spec.slug}-{team.name}" if team else task.spec.slug
    folder = Path(arguments.output or f"runs/train/{name}-{arguments.seed}")
    prepare_training(arguments.threads)
    refuse_existing(folder, CHECKPOINT, overwrite=arguments.overwrite or arguments.resume)
    with progress_bar() as bar, _event_files(folder, anew=not arguments.resume) as events:
        line = bar.add_task(f"train {task.spec.name}", total=recipe.iterations, figures="")

        def report(iteration: int, figures: dict[str, float]) -> None:
            shown = f"return {figures['return']:.2f}"
            if task.spec.can_be_won:
                shown += f" won {figures['win_rate']:.0%}"
            if "unfollowed" in figures:
                shown += f" KL to followers {figures['unfollowed']:.3f}"
            bar.update(line, completed=iteration, figures=shown)
            for name, value in figures.items():
                events().add_scalar(f"train/{name}", value, iteration * recipe.steps_per_iteration)

        try:
            teacher, seconds = train(
                task,
                recipe,
                arguments.seed,
                folder,
                team=team,
                resume=arguments.resume,
                report=report,
                where=where,
            )
        except KeyboardInterrupt:
            if (folder / CHECKPOINT).is_file():
                console.print(f"checkpoint kept in {folder}; go on with --resume")
            raise
    player = TeacherPlayer(teacher, task.spec)
    played = list(play(task.make_reference(), player, arguments.episodes, arguments.seed))
    score = evaluation(played, arguments.seed)
    card = make_card(
        teacher,
        recipe,
        command=_command(arguments, task),
        seed=arguments.seed,
        seconds=seconds,
        score=score,
    )
    save_teacher(teacher, card, folder / "teacher", overwrite=True)
    figures = {
        "teacher": str(folder / "teacher"),
        "return": score.mean_return,
        "standard_error": score.standard_error,
        "win_rate": score.win_rate,
        "episodes": score.episodes,
        "env_steps": card.env_steps,
        "training_seconds": round(seconds, 1),
        "env_steps_per_second": round(card.env_steps / seconds),
    }
    if arguments.json:
        print_json(figures)
    else:
        won = f", {wins(score.win_rate)}" if task.spec.can_be_won else ""
        print(
            f"{folder / 'teacher'}: return {score.mean_return:.2f} +- {score.standard_error:.2f} "
            f"(standard error, {score.episodes} greedy episodes){won}, {seconds:.0f} s, "
            f"{card.env_steps / seconds:.0f} environment steps/s"
        )


def chosen_recipe(
    arguments: argparse.Namespace, task: Task, suffix: str = ""
) -> tuple[Recipe, str]:
    """The recipe that the arguments ask for; by default the one shipped as `<task><suffix>`.

    Returns it with what is to be named in errors: the file, and what was changed of it.

    Raises:
        UserError: the file is missing or malformed, or is for another task.
    """
    import dataclasses

    from kdmarl_core.teacher.mappo import load_recipe, recipe_file, shipped_recipe

    path = recipe_file(arguments.recipe) if arguments.recipe else shipped_recipe(task.spec, suffix)
    if not (arguments.recipe or path.is_file()):
        raise UserError(
            f"{task.spec.name}: no recipe ships for this task; give --recipe FILE, such as one of "
            f"{path.parent} with another 'task'"
        )
    recipe, where = load_recipe(path, task.spec), str(path)
    if arguments.env_steps is not None:
        where += f" with --env-steps {arguments.env_steps}"
        with naming(where):
            recipe = dataclasses.replace(recipe, env_steps=arguments.env_steps)
    return recipe, where


def _team(arguments: argparse.Namespace, task: Task) -> Team | None:
    from kdmarl_core.team import load_team

    if arguments.team is None:
        return None
    team = load_team(arguments.team)
    if team.task.spec.name != task.spec.name:
        raise UserError(
            f"--team {arguments.team}: its task is '{team.task.spec.name}', not "
            f"'{task.spec.name}'; give a team of this task"
        )
    return team


@contextlib.contextmanager
def _event_files(folder: Path, *, anew: bool) -> Iterator[Callable[[], Any]]:
    """TensorBoard's writer, made with the first figure: a run that is refused leaves no file.

    One that begins anew removes then what the run before it left.
    """
    from torch.utils.tensorboard import SummaryWriter

    with contextlib.ExitStack() as stack:

        def writer() -> Any:
            if anew:
                for old in folder.glob("events.out.tfevents.*"):
                    old.unlink()
                shutil.rmtree(folder / "teacher", ignore_errors=True)
            return stack.enter_context(SummaryWriter(str(folder)))

        yield functools.cache(writer)


def _command(arguments: argparse.Namespace, task: Task) -> str:
    """The command that makes the same teacher again."""
    command = ["kdmarl", "train", task.spec.name, "--seed", str(arguments.seed)]
    command += ["--threads", str(arguments.threads)]
    for option in ("team", "recipe", "network"):
        if getattr(arguments, option):
            command += [f"--{option}", getattr(arguments, option)]
    if arguments.env_steps is not None:
        command += ["--env-steps", str(arguments.env_steps)]
    return shlex.join(command)
