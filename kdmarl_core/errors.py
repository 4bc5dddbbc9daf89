"""The one exception that a user is meant to read, and the hints that make it useful."""

import contextlib
import difflib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping

EXIT_USER_ERROR = 2


class UserError(Exception):
    """Bad input: one line that names the file, the key, the value and the remedy.

    Every command turns it into that line on standard error and exit code 2.
    """

    def __str__(self) -> str:
        """One line, even where a quoted name or another library's message holds more."""
        return " ".join(super().__str__().splitlines())


@contextlib.contextmanager
def naming(where: str) -> Iterator[None]:
    """Whatever a `UserError` within says, it says of `where`: a file, a key, a node."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def check_finite(figures: Mapping[str, float], when: str, remedy: str) -> None:
    """Raise a `UserError` that names the parts of a loss or gradient that are not finite."""
    bad = [name for name, value in figures.items() if not math.isfinite(value)]
    if bad:
        verb = "is" if len(bad) == 1 else "are"
        raise UserError(f"loss: {' and '.join(bad)} {verb} not finite {when}; {remedy}")


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """A remedy for an unknown name: the nearest valid ones first, all of them if none is near."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"valid: {', '.join(names)}" if names else "there are none"


def unknown(kind: str, name: str, valid: Iterable[str], where: str = "") -> UserError:
    """The error for a name that is not in a list of valid ones."""
    prefix = f"{where}: " if where else ""
    return UserError(f"{prefix}unknown {kind} '{name}'; {did_you_mean(name, valid)}")


def refuse_unknown(
    kind: str, names: Iterable[str], valid: Collection[str], where: str = ""
) -> None:
    """Raise a `UserError` for the first name that is not in a list of valid ones."""
    for name in names:
        if name not in valid:
            raise unknown(kind, name, valid, where)
