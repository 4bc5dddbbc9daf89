"""Fields of parameter dataclasses: described, ranged, with choices.

No import that takes time: the command line and the launch files make their options of such fields.
"""

from __future__ import annotations

import dataclasses
from typing import Any


def described(
    description: str,
    default: Any = dataclasses.MISSING,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field of a dataclass; without a default it is required."""
    metadata = {"description": description, "low": low, "high": high, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)
