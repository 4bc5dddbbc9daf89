"""The parser of the core's commands."""

from __future__ import annotations

import argparse

from kdmarl_core import __version__


def make_parser() -> tuple[argparse.ArgumentParser, argparse._SubParsersAction]:  # type: ignore[type-arg]
    """The parser with the core's commands, and where further commands are added.

    Each command's module is imported when the parser is made and is light; torch and simulators
    are imported when a command runs.
    """
    from kdmarl_core.cli import (
        ablation,
        distil,
        evaluate,
        inspect,
        messages,
        opponent,
        security,
        table,
        tasks,
        train,
    )

    parser = argparse.ArgumentParser(
        prog="kdmarl",
        description="Train a teacher, distil it into one small student per robot, fly the team.",
    )
    parser.add_argument("--version", action="version", version=f"kdmarl {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (
        tasks,
        train,
        opponent,
        distil,
        evaluate,
        inspect,
        table,
        ablation,
        messages,
        security,
    ):
        module.add_command(commands)
    return parser, commands
