"""What all commands share: errors as one line, tables, progress bars, figures as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from kdmarl_core.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

Command = Callable[[argparse.Namespace], None]
console = Console(stderr=True, highlight=False)


def run(command: Command, arguments: argparse.Namespace) -> int:
    """Run a command; the user's mistakes become one line on standard error and exit code 2."""
    try:
        command(arguments)
    except UserError as error:
        print(f"kdmarl: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("kdmarl: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def add_seed(parser: argparse.ArgumentParser) -> None:
    """`--seed`, for everything that draws."""
    parser.add_argument("--seed", type=natural, default=0, help="base of all draws (default 0)")


def add_json(parser: argparse.ArgumentParser) -> None:
    """`--json`, for everything that prints figures."""
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def add_output(parser: argparse.ArgumentParser, default: str) -> None:
    """`--output` and `--overwrite`, for everything that writes."""
    parser.add_argument("--output", metavar="DIR", help=f"where to write (default {default})")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def natural(text: str) -> int:
    """A whole number of zero or more, as an argument type."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is below 0")
    return value


def positive(text: str) -> int:
    """A whole number of one or more, as an argument type."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def progress_bar() -> Progress:
    """A progress bar on standard error with the time left; silent where there is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def print_json(figures: Any) -> None:
    """Figures on standard output for other programs."""
    print(json.dumps(figures, indent=2))


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output for people."""
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)
