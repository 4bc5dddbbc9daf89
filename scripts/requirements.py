"""Prints the base requirements and those of the named extras of pyproject.toml, one a line."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def requirements(extras: list[str]) -> list[str]:
    """Returns the base dependencies and those of `extras`, sorted, own extras resolved."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    own_extra = re.compile(rf"{project['name']}\[(\w+)\]")
    found, todo = set(project["dependencies"]), list(extras)
    while todo:
        for requirement in project["optional-dependencies"][todo.pop()]:
            if match := own_extra.fullmatch(requirement):
                todo.append(match[1])
            else:
                found.add(requirement)
    return sorted(found, key=str.lower)


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1:])))
