"""`kdmarl train`: stage 1, the teacher."""

from __future__ import annotations

import argparse
import contextlib
import functools
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdmarl_core.cli.common import (
    add_json,
    add_output,
    add_seed,
    console,
    positive,
    print_json,
    progress_bar,
)

if TYPE_CHECKING:
    from kdmarl_core.tasks import Task
    from kdmarl_core.teacher.mappo import Recipe


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("train", help="train a teacher with MAPPO")
    parser.add_argument("task", help="a task of `kdmarl tasks`, such as mpe/simple_spread")
    parser.add_argument("--recipe", metavar="FILE", help="default config/training/<task>.yaml")
    parser.add_argument("--env-steps", type=positive, help="instead of the recipe's")
    parser.add_argument("--resume", action="store_true", help="go on from the run's checkpoint")
    parser.add_argument(
        "--episodes", type=positive, default=1000, help="to evaluate (default 1000)"
    )
    parser.add_argument("--threads", type=positive, default=2, help="torch threads (default 2)")
    add_output(parser, "runs/train/<task>-<seed>")
    add_seed(parser)
    add_json(parser)
    parser.set_defaults(command=train_teacher)


def train_teacher(arguments: argparse.Namespace) -> None:
    """Train, evaluate in the task's reference simulator, and write weights and card."""
    import torch

    from kdmarl_core.evaluate import evaluation, play
    from kdmarl_core.files import refuse_existing
    from kdmarl_core.tasks import make_task
    from kdmarl_core.teacher.player import TeacherPlayer
    from kdmarl_core.teacher.teacher import save_teacher
    from kdmarl_core.teacher.train import CHECKPOINT, train

    task = make_task(arguments.task)
    recipe = _load_recipe(arguments, task)
    folder = Path(arguments.output or f"runs/train/{task.spec.slug}-{arguments.seed}")
    torch.set_num_threads(arguments.threads)
    refuse_existing(folder, CHECKPOINT, overwrite=arguments.overwrite or arguments.resume)
    if not arguments.resume:
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
    with progress_bar() as bar, _event_files(folder) as events:
        line = bar.add_task(f"train {task.spec.name}", total=recipe.iterations, figures="")

        def report(iteration: int, figures: dict[str, float]) -> None:
            shown = f"return {figures['return']:.2f}"
            if task.spec.can_be_won:
                shown += f" won {figures['win_rate']:.0%}"
            bar.update(line, completed=iteration, figures=shown)
            for name, value in figures.items():
                events().add_scalar(f"train/{name}", value, iteration * recipe.steps_per_iteration)

        try:
            teacher, seconds = train(
                task, recipe, arguments.seed, folder, resume=arguments.resume, report=report
            )
        except KeyboardInterrupt:
            console.print(f"checkpoint kept in {folder}; go on with --resume")
            raise
    player = TeacherPlayer(teacher, task.spec)
    played = list(play(task.make_reference(), player, arguments.episodes, arguments.seed))
    score = evaluation(played, arguments.seed)
    card = _card(arguments, recipe, task, seconds, score)
    save_teacher(teacher, card, folder / "teacher", overwrite=True)
    figures = {
        "teacher": str(folder / "teacher"),
        "return": score.mean_return,
        "standard_error": score.standard_error,
        "episodes": score.episodes,
        "env_steps": card.env_steps,
        "training_seconds": round(seconds, 1),
        "env_steps_per_second": round(card.env_steps / seconds),
    }
    if arguments.json:
        print_json(figures)
    else:
        print(
            f"{folder / 'teacher'}: return {score.mean_return:.2f} +- {score.standard_error:.2f} "
            f"(standard error, {score.episodes} greedy episodes), {seconds:.0f} s, "
            f"{card.env_steps / seconds:.0f} environment steps/s"
        )


def _load_recipe(arguments: argparse.Namespace, task: Task) -> Recipe:
    import dataclasses

    from kdmarl_core.errors import UserError
    from kdmarl_core.files import share_folder
    from kdmarl_core.schema import from_mapping, read_yaml
    from kdmarl_core.teacher.mappo import Recipe

    shipped = share_folder() / "config" / "training" / f"{task.spec.slug}.yaml"
    path = Path(arguments.recipe or shipped)
    recipe = from_mapping(Recipe, read_yaml(path), str(path))
    if recipe.task != task.spec.name:
        raise UserError(
            f"{path}: task: '{recipe.task}' is not '{task.spec.name}'; give that task's recipe"
        )
    if arguments.env_steps is not None:
        recipe = dataclasses.replace(recipe, env_steps=arguments.env_steps)
    return recipe


@contextlib.contextmanager
def _event_files(folder: Path) -> Iterator[Callable[[], Any]]:
    """TensorBoard's writer, made with the first figure: a run that is refused leaves no file."""
    from torch.utils.tensorboard import SummaryWriter

    with contextlib.ExitStack() as stack:
        yield functools.cache(lambda: stack.enter_context(SummaryWriter(str(folder))))


def _card(
    arguments: argparse.Namespace,
    recipe: Recipe,
    task: Task,
    seconds: float,
    score: Any,
) -> Any:
    from kdmarl_core.teacher.teacher import TeacherCard

    command = ["kdmarl", "train", task.spec.name, "--seed", str(arguments.seed)]
    if arguments.recipe:
        command += ["--recipe", arguments.recipe]
    if arguments.env_steps is not None:
        command += ["--env-steps", str(arguments.env_steps)]
    return TeacherCard(
        task=task.spec.name,
        architecture=recipe.architecture,
        reward_scale=recipe.reward_scale,
        gamma=recipe.gamma,
        gae_lambda=recipe.gae_lambda,
        observation_sizes=tuple(agent.observation_size for agent in task.spec.agents),
        num_actions=task.spec.num_actions,
        state_size=task.spec.state_size,
        weights_sha256="",
        command=shlex.join(command),
        env_steps=recipe.iterations * recipe.steps_per_iteration,
        seed=arguments.seed,
        training_seconds=round(seconds, 1),
        evaluation=score,
    )
