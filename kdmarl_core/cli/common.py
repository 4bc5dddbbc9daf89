"""What all commands share: errors as one line, tables, progress bars, figures as JSON."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from kdmarl_core.errors import EXIT_USER_ERROR, UserError

if TYPE_CHECKING:
    from kdmarl_core.bundle import Disturbance
    from kdmarl_core.team import Team

EXIT_INTERRUPTED = 130
TORCHS_MEMORY_ERROR = "can't allocate memory: "

Command = Callable[[argparse.Namespace], None]
MOST_THREADS = 1024
LONGEST_LINE = 10_000  # characters
SAID_EVERY_S = 60.0  # how far work is, where there is no terminal


def plain_console(*, stderr: bool = False, width: int | None = None) -> Console:
    """Prints text as it is: names of files and tasks may hold brackets."""
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


console = plain_console(stderr=True)


def run(command: Command, arguments: argparse.Namespace) -> int:
    """Run a command; what the user can mend becomes one line on standard error, exit code 2."""
    try:
        command(arguments)
    except UserError as error:
        print(f"kdmarl: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or str(error)
        remedy = "check the path, its permissions and the space left"
        print(f"kdmarl: {place}{reason}; {remedy}", file=sys.stderr)
        return EXIT_USER_ERROR
    except (MemoryError, RuntimeError) as error:
        reason = str(error)
        if isinstance(error, RuntimeError) and TORCHS_MEMORY_ERROR not in reason:
            raise
        remedy = "choose smaller widths, batches or rollouts, or a larger machine"
        asked = reason.rpartition(TORCHS_MEMORY_ERROR)[2].partition(". ")[0]
        print(f"kdmarl: not enough memory ({asked}); {remedy}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("kdmarl: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def add_list(parser: argparse.ArgumentParser, name: str, **more: Any) -> None:
    """An option of any number of values; given once more, it adds to them."""
    parser.add_argument(name, action="extend", nargs="+", default=[], **more)


def add_seed(parser: argparse.ArgumentParser) -> None:
    """`--seed`, for everything that draws."""
    parser.add_argument("--seed", type=natural, default=0, help="base of all draws (default 0)")


def add_json(parser: argparse.ArgumentParser) -> None:
    """`--json`, for everything that prints figures."""
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def add_disturbance(parser: argparse.ArgumentParser) -> None:
    """`--message-loss` and `--message-delay`, for everything that plays offline."""
    parser.add_argument(
        "--message-loss", type=_share, default=0.0, metavar="SHARE", help="lose so many messages"
    )
    parser.add_argument(
        "--message-delay",
        type=natural,
        default=0,
        metavar="STEPS",
        help="messages can be read so many steps late (default: as the manifests say)",
    )


def disturbance(arguments: argparse.Namespace, team: Team) -> Disturbance:
    """What these options say.

    Raises:
        UserError: there are no messages that could be disturbed, or none would ever be read.
    """
    from kdmarl_core.bundle import UNDISTURBED, Disturbance

    given = Disturbance(arguments.message_loss, arguments.message_delay)
    if given != UNDISTURBED and not any(robot.messages for robot in team.robots):
        raise UserError(
            f"{team.path}: robots: nobody has 'messages' that could be lost or late; leave out "
            "--message-loss and --message-delay"
        )
    for robot in team.robots:
        if robot.messages and given.delay_steps > robot.messages.hold_steps:
            raise UserError(
                f"--message-delay {given.delay_steps}: messages of {robot.name} are held for "
                f"{robot.messages.hold_steps} steps at most ({team.path}), so that none could be "
                "read; give no more than that, or --message-loss 1 for silence"
            )
    return given


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{value} is not between 0 and 1")
    return value


def add_output(parser: argparse.ArgumentParser, default: str) -> None:
    """`--output` and `--overwrite`, for everything that writes."""
    parser.add_argument("--output", metavar="DIR", help=f"where to write (default {default})")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def add_run(parser: argparse.ArgumentParser, output: str) -> None:
    """What every run that learns is told: how it goes on, is measured, and where it writes."""
    parser.add_argument("--resume", action="store_true", help="go on from the run's checkpoint")
    parser.add_argument(
        "--episodes", type=positive, default=1000, help="to measure (default 1000)"
    )
    add_threads(parser)
    add_output(parser, output)
    add_seed(parser)
    add_json(parser)


def add_threads(parser: argparse.ArgumentParser) -> None:
    """`--threads`, for everything that learns."""
    parser.add_argument("--threads", type=threads, default=2, help="torch threads (default 2)")


def natural(text: str) -> int:
    """A whole number of zero or more, as an argument type."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is below 0")
    return value


def threads(text: str) -> int:
    """A number of threads, as an argument type."""
    value = positive(text)
    if value > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{value} is above {MOST_THREADS}")
    return value


def positive(text: str) -> int:
    """A whole number of one or more, as an argument type."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


class _Progress(Progress):
    """Bars; where there is no terminal, as in a log, a line every minute instead."""

    _said_s = 0.0

    def start(self) -> None:
        """Begin to count the time."""
        super().start()
        self._said_s = self.get_time()

    def update(self, task_id: TaskID, *arguments: Any, **changes: Any) -> None:
        """As `Progress.update`."""
        super().update(task_id, *arguments, **changes)
        now_s = self.get_time()
        if self.disable and now_s - self._said_s >= SAID_EVERY_S:
            self._said_s = now_s
            self._say(next(task for task in self.tasks if task.id == task_id))

    def _say(self, task: Task) -> None:
        done = "" if task.total is None else f": {task.completed:g} of {task.total:g}"
        parts = [task.description + done]
        if task.fields["figures"]:
            parts.append(task.fields["figures"])
        parts.append(f"{timedelta(seconds=int(task.elapsed or 0))} elapsed")
        if task.time_remaining is not None:
            parts.append(f"{timedelta(seconds=int(task.time_remaining))} left")
        self.console.print(", ".join(parts), soft_wrap=True)


def progress_bar() -> Progress:
    """Progress on standard error with the time left: bars, or lines in a log."""
    return _Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def print_json(figures: Any) -> None:
    """Figures on standard output for other programs; null for what is not a number."""
    print(json.dumps(_without_nan(figures), indent=2))


def _without_nan(figures: Any) -> Any:
    if isinstance(figures, dict):
        return {key: _without_nan(value) for key, value in figures.items()}
    if isinstance(figures, list | tuple):
        return [_without_nan(value) for value in figures]
    return None if isinstance(figures, float) and not math.isfinite(figures) else figures


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output for people."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    # A file or another program is given every row as one line.
    width = None if sys.stdout.isatty() else LONGEST_LINE
    plain_console(width=width).print(title, table, sep="\n")
