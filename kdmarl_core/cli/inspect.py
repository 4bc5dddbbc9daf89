"""`kdmarl inspect`: what each robot's messages are worth to each other, and what they say."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdmarl_core.cli.common import (
    add_json,
    add_seed,
    positive,
    print_json,
    print_table,
    progress_bar,
)
from kdmarl_core.errors import UserError

if TYPE_CHECKING:
    from kdmarl_core.inspect_messages import Loss, Readable

MOST_SUBJECTS = 6  # of each sender that are printed


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("inspect", help="what messages are worth, and what they say")
    parser.add_argument("--team", required=True, help="a team that ships, or a YAML file")
    parser.add_argument("--bundles", metavar="DIR", help="default runs/bundles/<team>")
    parser.add_argument("--episodes", type=positive, default=200, help="each (default 200)")
    parser.add_argument("--picture", metavar="FILE", help="draw the figures, as PNG")
    add_seed(parser)
    add_json(parser)
    parser.set_defaults(command=inspect_command)


def inspect_command(arguments: argparse.Namespace) -> None:
    """Play with every link tampered with in turn, and probe what was said."""
    from kdmarl_core import inspect_messages as messages
    from kdmarl_core.files import bundles_folder
    from kdmarl_core.team import load_team
    from kdmarl_core.team_bundles import load_bundles

    team = load_team(arguments.team)
    links = messages.links(team)
    if not links:
        raise UserError(
            f"{team.path}: robots: nobody tells anybody anything; give some 'messages'"
        )
    if arguments.episodes < 2:
        raise UserError(
            "--episodes: 1 is below 2: messages of one episode are held against others"
        )
    if arguments.picture and Path(arguments.picture).suffix.lower() != ".png":
        raise UserError(f"--picture: {arguments.picture} is no PNG; give a name that ends in .png")
    folder = Path(arguments.bundles) if arguments.bundles else bundles_folder(team.name)
    policies = load_bundles(team, folder)
    losses = []
    with progress_bar() as bar:
        line = bar.add_task("links", total=len(links) * len(messages.TAMPERINGS), figures="")
        env = team.task.make_reference()
        plain = messages.record(env, team, policies, arguments.episodes, arguments.seed)
        for link in links:
            for tampering in messages.TAMPERINGS:
                losses.append(
                    messages.worth(env, team, policies, link, tampering, plain, arguments.seed)
                )
                bar.update(line, advance=1)
    told = {link.sender for link in links}
    senders = [robot.name for robot in team.robots if robot.name in told]
    read = [entry for sender in senders for entry in messages.readable(team, sender, plain)]
    score, can_be_won = float(plain.scores.mean()), team.task.spec.can_be_won
    measure, unit = ("wins", 0.01) if can_be_won else ("return", 1.0)
    if arguments.json:
        print_json({"measure": measure, "score": score} | _figures(losses, read))
    else:
        of = f"{100 * score:.1f} %, in points" if can_be_won else f"{score:.2f}"
        title = f"change of the {measure} of {of}, {arguments.episodes} episodes"
        header = ["sender", "receiver", *messages.TAMPERINGS]
        print_table(title, header, messages.worths(losses, unit))
        _print_readable(read)
    if arguments.picture:  # last: what has been found is not lost if it cannot be written
        lost = "wins lost, points" if can_be_won else "return lost"
        messages.draw(team.name, lost, unit, losses, read, Path(arguments.picture))


def _figures(losses: Sequence[Loss], read: Sequence[Readable]) -> dict[str, Any]:
    return {
        "links": [
            {
                **loss.link._asdict(),
                "tampering": loss.tampering,
                "change": loss.change._asdict(),
            }
            for loss in losses
        ],
        "readable": [entry._asdict() for entry in read],
    }


def _print_readable(read: Sequence[Readable]) -> None:
    for sender in dict.fromkeys(entry.sender for entry in read):
        own = sorted((e for e in read if e.sender == sender), key=lambda e: -e.share)
        print_table(
            f"read from messages of {sender}, best first",
            ["subject", "share of variance"],
            [[entry.subject, f"{entry.share:.0%}"] for entry in own[:MOST_SUBJECTS]],
        )
