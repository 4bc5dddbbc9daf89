"""Importing JaxMARL, which takes seconds and prints greetings."""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def import_quietly(module: str) -> Any:
    """A module of JaxMARL, without its greetings."""
    with _silent_stdout():
        return importlib.import_module(module)


@contextlib.contextmanager
def _silent_stdout() -> Iterator[None]:
    """Keep JaxMARL's greetings out of our figures; what it imports undoes `redirect_stdout`."""
    sys.stdout.flush()
    saved = os.dup(1)
    with Path(os.devnull).open("wb") as null:
        os.dup2(null.fileno(), 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)
