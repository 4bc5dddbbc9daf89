"""`kdmarl opponent`: train what plays the other side of a task, together with a team."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from kdmarl_core.cli.common import (
    add_json,
    add_output,
    add_seed,
    add_threads,
    positive,
    print_json,
    progress_bar,
)


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "opponent", help="train a task's opponent against a team of its own"
    )
    parser.add_argument("task", help="a task with an opponent, such as mpe/simple_adversary")
    parser.add_argument(
        "--recipe", metavar="FILE", help="one that ships, or a YAML file (default <task>_opponent)"
    )
    parser.add_argument("--env-steps", type=positive, help="instead of the recipe's")
    parser.add_argument(
        "--episodes", type=positive, default=1000, help="to evaluate (default 1000)"
    )
    add_threads(parser)
    add_output(parser, "runs/opponent/<task>-<seed>")
    add_seed(parser)
    add_json(parser)
    parser.set_defaults(command=train_opponent)


def train_opponent(arguments: argparse.Namespace) -> None:
    """Train both sides, let them play greedily, and write the opponent's weights and card."""
    from kdmarl_core.cli.train import chosen_recipe
    from kdmarl_core.files import refuse_existing
    from kdmarl_core.process import prepare_training
    from kdmarl_core.tasks.mpe import task_with_opponent
    from kdmarl_core.tasks.opponent import CARD, OpponentCard, save_opponent
    from kdmarl_core.teacher.self_play import match_returns, self_play

    task = task_with_opponent(arguments.task)
    recipe, where = chosen_recipe(arguments, task, "_opponent")
    folder = Path(arguments.output or f"runs/opponent/{task.spec.slug}-{arguments.seed}")
    refuse_existing(folder, CARD, overwrite=arguments.overwrite)
    prepare_training(arguments.threads)
    with progress_bar() as bar:
        line = bar.add_task(f"opponent of {task.spec.name}", total=recipe.iterations, figures="")

        def report(iteration: int, team_return: float, opponent_return: float) -> None:
            shown = f"team {team_return:.2f} opponent {opponent_return:.2f}"
            bar.update(line, completed=iteration, figures=shown)

        trained = self_play(task.make_match, recipe, arguments.seed, report, where)
    returns = match_returns(task.make_match, trained, arguments.episodes, arguments.seed)
    card = OpponentCard(
        task=task.spec.name,
        agent=trained.opponent.spec.agents[0].name,
        weights_sha256="",
        command=_command(arguments),
        env_steps=trained.env_steps,
        seed=arguments.seed,
        training_seconds=round(trained.seconds, 1),
        episodes=arguments.episodes,
        opponent_return=returns.opponent,
        team_return=returns.team,
        random_team_return=returns.random_team,
    )
    save_opponent(trained.opponent_layers, card, folder, overwrite=arguments.overwrite)
    if arguments.json:
        written = {"folder": str(folder), "training_seconds": card.training_seconds}
        print_json(written | returns._asdict())
    else:
        print(
            f"{folder}: opponent {returns.opponent:.2f}, its team {returns.team:.2f}, a random "
            f"team {returns.random_team:.2f} ({arguments.episodes} greedy episodes), "
            f"{trained.seconds:.0f} s"
        )


def _command(arguments: argparse.Namespace) -> str:
    command = ["kdmarl", "opponent", arguments.task, "--seed", str(arguments.seed)]
    command += ["--threads", str(arguments.threads)]
    if arguments.recipe:
        command += ["--recipe", arguments.recipe]
    if arguments.env_steps is not None:
        command += ["--env-steps", str(arguments.env_steps)]
    return shlex.join(command)
