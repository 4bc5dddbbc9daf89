"""The keys of a sensor map's file, checked as far as they can be without a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from kdmarl_core.errors import UserError
from kdmarl_core.schema import check_above_zero, check_at_least, from_mapping, read_yaml

LEAST_COMMAND_HZ = 5.0  # so that a base is told to brake soon after a stop
PerValue = float | tuple[float, ...]


@dataclass(frozen=True)
class TurnEntry:
    """A rotation about the vertical axis by the heading of a quaternion field."""

    by: str
    into: Literal["world", "body"]


@dataclass(frozen=True)
class SourceEntry:
    """Where a block's values come from, and what is done to them on the way."""

    topic: str
    type: str
    fields: tuple[str, ...]
    order_by: str | None = None  # field with the names of the elements that `fields` name
    resample: int | None = None  # the one array among the fields becomes so many sectors' minima
    points: tuple[tuple[float, ...], ...] | None = None  # relative to the fields: points - fields
    peers: tuple[str, ...] | None = None  # relative to the fields: the peers' fields - own fields
    lost_peer: tuple[float, ...] | None = None  # stands for a peer that is silent
    turn: TurnEntry | None = None
    scale: PerValue = 1.0
    offset: PerValue = 0.0
    clip: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.resample is not None:
            check_at_least(1, self, "resample")
            if self.clip is None:
                raise UserError(
                    "clip: missing with 'resample': beams without an echo are infinite"
                )
        if self.points is not None and self.peers is not None:
            raise UserError("points: given beside 'peers'; keep one, or make two blocks")
        if self.lost_peer is not None and self.peers is None:
            raise UserError("lost_peer: given without 'peers'; remove it")
        if self.clip is not None and not (len(self.clip) == 2 and self.clip[0] < self.clip[1]):
            raise UserError(
                f"clip: {list(self.clip)} must be two numbers, the lower first, such as [-1, 1]"
            )


@dataclass(frozen=True)
class DifferentialEntry:
    """A base that can only drive forwards and turn, steered by a point ahead of its axle."""

    topic: str
    type: str
    heading: str
    ahead_m: float

    def __post_init__(self) -> None:
        check_above_zero(self, "ahead_m")


@dataclass(frozen=True)
class CommandEntry:
    """What each action commands, and within which limits."""

    topic: str
    type: str
    fields: tuple[str, ...]
    actions: dict[str, tuple[float, ...]]
    velocity: PerValue  # largest absolute value of each field
    acceleration: PerValue  # per second
    deceleration: PerValue | None = None  # per second, towards zero; None: as acceleration
    rate_hz: float = 20.0
    frame_id: str = ""
    differential: DifferentialEntry | None = None

    def __post_init__(self) -> None:
        check_at_least(LEAST_COMMAND_HZ, self, "rate_hz")
        if self.rate_hz > 1000:
            raise UserError(f"rate_hz: {self.rate_hz} is above 1000; give at most 1000")


@dataclass(frozen=True)
class MapFile:
    """The file's own keys."""

    blocks: dict[str, SourceEntry]
    command: CommandEntry


def read_map(path: Path) -> MapFile:
    """The file's content, checked as far as it can be without a bundle.

    Raises:
        UserError: the file is missing or malformed.
    """
    return from_mapping(MapFile, read_yaml(path), str(path))


def per_value(given: PerValue, size: int, where: str) -> np.ndarray:
    """One number for all values, or one for each."""
    if isinstance(given, float):
        return np.full(size, given)
    if len(given) != size:
        raise UserError(
            f"{where}: {list(given)} has {len(given)} values for {size}; give one number, or "
            f"{size}"
        )
    return np.array(given)
