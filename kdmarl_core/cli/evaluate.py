"""`kdmarl evaluate`: seeded greedy episodes offline, in the task's reference simulator."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdmarl_core.cli.common import (
    add_disturbance,
    add_json,
    add_list,
    add_seed,
    console,
    disturbance,
    positive,
    print_json,
    print_table,
    progress_bar,
)

if TYPE_CHECKING:
    from kdmarl_core.bundle import Manifest
    from kdmarl_core.evaluate import Episode
    from kdmarl_core.team import Team

PLAYERS = ("students", "teacher", "random")


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("evaluate", help="play seeded episodes offline")
    parser.add_argument("--team", required=True, help="a team that ships, or a YAML file")
    parser.add_argument("--bundles", metavar="DIR", help="default runs/bundles/<team>")
    parser.add_argument("--teacher", metavar="DIR", help="default: the team file's teacher")
    add_list(
        parser,
        "--players",
        choices=PLAYERS,
        help="who plays (default: all, which gives the retention; of a team that flies another "
        "one's students, all but the teacher)",
    )
    parser.add_argument("--episodes", type=positive, default=1000, help="each (default 1000)")
    add_disturbance(parser)
    add_seed(parser)
    add_json(parser)
    parser.set_defaults(command=evaluate_command)


def evaluate_command(arguments: argparse.Namespace) -> None:
    """Play the same episodes with each player; print returns, retention, and times of decisions.

    A decision is that of the whole team in one step, all robots one after another on one thread;
    its deviation is that of episodes.
    """
    from kdmarl_core.errors import UserError
    from kdmarl_core.evaluate import TimedPlayer, evaluation, play, scores
    from kdmarl_core.metrics import normalised_retention, percent, wins
    from kdmarl_core.team import load_team

    team = load_team(arguments.team)
    default = [name for name in PLAYERS if not (team.lender and name == "teacher")]
    names = dict.fromkeys(arguments.players or default)
    if "students" not in names and (arguments.message_loss or arguments.message_delay):
        raise UserError(
            "--message-loss and --message-delay: only students tell each other anything; let them "
            "play, or leave these out"
        )
    players = {name: _player(name, arguments, team) for name in names}
    if "teacher" in names and "students" in names:
        _note_other_teacher(players["students"].manifests, arguments.teacher or team.teacher)
    timed = {name: TimedPlayer(player) for name, player in players.items()}
    env = team.task.make_reference()
    played: dict[str, list[Episode]] = {}
    with progress_bar() as bar:
        for name, player in timed.items():
            line = bar.add_task(name, total=arguments.episodes, figures="")
            played[name] = []
            for episode in play(env, player, arguments.episodes, arguments.seed):
                played[name].append(episode)
                bar.update(line, advance=1)
    found = {name: evaluation(episodes, arguments.seed) for name, episodes in played.items()}
    took = {name: player.decision_ms() for name, player in timed.items()}
    retention = None
    if set(played) == set(PLAYERS):
        retention = normalised_retention(
            scores(played["students"]), scores(played["teacher"]), scores(played["random"])
        )
    if arguments.json:
        print_json(
            {
                "players": {
                    name: {
                        "return": score.mean_return,
                        "standard_error": score.standard_error,
                        "win_rate": score.win_rate,
                        "decision_ms": took[name][0],
                        "decision_ms_deviation": took[name][1],
                    }
                    for name, score in found.items()
                },
                "retention": retention and retention._asdict(),
                "episodes": {
                    name: [episode._asdict() for episode in episodes]
                    for name, episodes in played.items()
                },
            }
        )
        return
    header = ["player", "return", "standard error"]
    rows = [
        [name, f"{score.mean_return:.3f}", f"{score.standard_error:.3f}"]
        for name, score in found.items()
    ]
    if team.task.spec.can_be_won:
        header.append("wins")
        for row, score in zip(rows, found.values(), strict=True):
            row.append(wins(score.win_rate))
    header.append("ms/decision")
    for row, (mean, deviation) in zip(rows, took.values(), strict=True):
        row.append(f"{mean:.3f} ± {deviation:.3f}")
    title = f"{team.task.spec.name}, {arguments.episodes} episodes, seed {arguments.seed}"
    print_table(title, header, rows)
    if retention:
        print(f"retention {percent(retention)}")


def _note_other_teacher(manifests: Sequence[Manifest], name: str) -> None:
    """Say so if the students did not learn from the teacher whose score they are to retain."""
    from kdmarl_core.teacher.teacher import find_teacher, read_card

    sha256 = read_card(find_teacher(name)).weights_sha256
    others = {m.teacher.sha256 for m in manifests} - {sha256}
    if others:
        console.print(
            f"students were distilled from teacher {', '.join(sorted(o[:12] for o in others))}, "
            f"not from '{name}' ({sha256[:12]}), whose score is what retention is measured by",
            soft_wrap=True,
        )


def _player(name: str, arguments: argparse.Namespace, team: Team) -> Any:
    from kdmarl_core.evaluate import BundlePlayer, RandomPlayer
    from kdmarl_core.files import bundles_folder
    from kdmarl_core.team_bundles import load_bundles

    spec = team.task.spec
    if name == "random":
        return RandomPlayer()
    if name == "students":
        folder = (
            Path(arguments.bundles) if arguments.bundles else bundles_folder(team.students.name)
        )
        return BundlePlayer(load_bundles(team, folder), team, disturbance(arguments, team))
    import torch

    from kdmarl_core.teacher.player import TeacherPlayer
    from kdmarl_core.teacher.teacher import find_teacher, load_teacher

    teacher, _ = load_teacher(find_teacher(arguments.teacher or team.teacher), spec)
    torch.set_num_threads(1)  # as students have
    return TeacherPlayer(teacher, spec)
