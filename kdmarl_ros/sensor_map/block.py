"""Messages of sensors become the values of one block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kdmarl_core.bundle import BlockEntry
from kdmarl_core.errors import UserError
from kdmarl_ros.message_fields import ARRAY, NUMBER, find_field, find_heading, message_class
from kdmarl_ros.sensor_map.file import SourceEntry, TurnEntry, per_value
from kdmarl_ros.sensor_map.sources import Sources

SCAN = ("sensor_msgs/msg/LaserScan", "ranges")


class Reading(NamedTuple):
    """One block's values, as the manifest orders them."""

    block: int
    values: Sequence[float]  # empty if the message lacks an element
    measured_s: float  # when the oldest message in it was measured or, without stamps, arrived


class Newest(NamedTuple):
    """The newest message of a topic."""

    message: Any
    measured_s: float  # as its stamp says
    known_s: float  # the same, but not in the future; of what is from too far ahead: never


class MappedBlock:
    """How one block is read from the newest messages."""

    def __init__(
        self, entry: SourceEntry, block: BlockEntry, sources: Sources, where: str
    ) -> None:
        """A block of the bundle as the file maps it; its topics are added to `sources`."""
        self._entry = entry
        message = message_class(entry.type, f"{where}: type")
        self.source = sources.index(entry.topic, message, where)
        self._fields = [
            find_field(message, name, f"{where}: fields", order_by=entry.order_by)
            for name in entry.fields
        ]
        self._check_kinds(where)
        self._heading = None
        if entry.turn is not None:
            self._heading = find_heading(message, entry.turn.by, f"{where}: turn: by")
        self._peers = self._find_peers(message, sources, where)
        self._points = [np.array(point) for point in entry.points or ()]
        size = self._size(where)
        if size != block.size:
            raise UserError(
                f"{where}: gives {size} values, but the bundle's block has {block.size}; correct "
                "fields, points or peers"
            )
        self._scale = per_value(entry.scale, size, f"{where}: scale")
        self._offset = per_value(entry.offset, size, f"{where}: offset")

    def read(
        self, index: int, newest: list[Newest | None], heard_since_s: float
    ) -> Reading | None:
        """The block, number `index` of the bundle's; None while a peer is unknown.

        `newest` has a place for each topic; who was heard before `heard_since_s` is lost.
        """
        own = newest[self.source]
        assert own is not None
        try:
            values, measured_s = self._relative(own, newest, heard_since_s)
        except (IndexError, ValueError):  # an element that this message does not have
            return Reading(index, (), own.measured_s)
        if values is None:
            return None
        with np.errstate(all="ignore"):
            if self._heading is not None:
                values = _turned(values, self._heading(own.message), self._entry.turn)
            values = values * self._scale + self._offset
            if self._entry.clip is not None:
                values = values.clip(*self._entry.clip)
            single: list[float] = values.astype(np.float32).tolist()
        return Reading(index, single, measured_s)

    def _relative(
        self, own: Newest, newest: list[Newest | None], heard_since_s: float
    ) -> tuple[np.ndarray | None, float]:
        """Values before turning and scaling, and their age; no values while a peer is unknown."""
        here = self._extract(own.message)
        if self._points:
            return np.concatenate([point - here for point in self._points]), own.measured_s
        if self._entry.peers is None:
            return here, own.measured_s
        parts, measured_s = [], own.measured_s
        for peer in self._peers:
            heard = newest[peer]
            if self._entry.lost_peer is not None and (
                heard is None or heard.known_s < heard_since_s
            ):
                parts.append(np.array(self._entry.lost_peer))
                continue
            if heard is None:
                return None, measured_s
            parts.append(self._extract(heard.message) - here)
            measured_s = min(measured_s, heard.known_s)
        return np.concatenate(parts) if parts else np.empty(0), measured_s

    def _extract(self, message: Any) -> np.ndarray:
        if self._entry.resample is not None:
            array = np.asarray(self._fields[0].get(message), np.float64)
            if self._is_scan():
                # Below the scanner's range is noise, not an obstacle; -inf is one (REP-117).
                array = np.where((array < message.range_min) & (array > -np.inf), np.nan, array)
            return _nearest_by_sector(array, self._entry.resample)
        return np.array([field.get(message) for field in self._fields], np.float64)

    def _is_scan(self) -> bool:
        return (self._entry.type, self._entry.fields[0]) == SCAN

    def _check_kinds(self, where: str) -> None:
        entry = self._entry
        kinds = [field.kind for field in self._fields]
        if entry.resample is not None:
            if kinds != [ARRAY]:
                raise UserError(f"{where}: resample: needs one field, an array of numbers")
            return
        for name, field in zip(entry.fields, self._fields, strict=True):
            if field.kind != NUMBER:
                raise UserError(
                    f"{where}: fields: '{name}' is {field.type_name}, not a number; name one "
                    "element as in data[0], or give 'resample'"
                )

    def _find_peers(self, message: type, sources: Sources, where: str) -> list[int]:
        entry = self._entry
        if entry.peers is None:
            return []
        if entry.topic.startswith(("/", "~")):
            raise UserError(
                f"{where}: topic: '{entry.topic}' must be relative, since 'peers' looks for it "
                "in each peer's namespace; remove what it begins with"
            )
        found = []
        for peer in entry.peers:
            if not (peer.isidentifier() and peer.isascii()):
                raise UserError(f"{where}: peers: '{peer}' is not a robot's name; correct it")
            if peer != sources.robot:
                topic = sources.of_peer(peer, entry.topic)
                found.append(sources.index(topic, message, where))
        return found

    def _size(self, where: str) -> int:
        entry = self._entry
        one = len(entry.fields) if entry.resample is None else entry.resample
        relative: dict[str, Sequence[Sequence[float]]] = {"points": entry.points or ()}
        if entry.lost_peer is not None:
            relative["lost_peer"] = [entry.lost_peer]
        for key, items in relative.items():
            for item in items:
                if len(item) != one:
                    raise UserError(
                        f"{where}: {key}: {list(item)} has {len(item)} values, but 'fields' "
                        f"gives {one}; give one per field"
                    )
        if entry.points is not None:
            one *= len(entry.points)
        if entry.peers is not None:
            one *= len(self._peers)
        if entry.turn is not None and one % 2:
            raise UserError(f"{where}: turn: {one} values are not pairs of x and y; remove 'turn'")
        return one


def _nearest_by_sector(array: np.ndarray, sectors: int) -> np.ndarray:
    """The least value in each of so many equal parts of an array; NaN counts nowhere."""
    if array.ndim != 1 or len(array) < sectors:
        raise ValueError("fewer elements than sectors")
    starts = np.arange(sectors) * len(array) // sectors
    nearest: np.ndarray = np.fmin.reduceat(array, starts)
    return nearest


def _turned(values: np.ndarray, heading_rad: float, turn: TurnEntry | None) -> np.ndarray:
    """Pairs of x and y turned from the robot's axes into the world's, or back."""
    assert turn is not None
    angle = heading_rad if turn.into == "world" else -heading_rad
    cos, sin = math.cos(angle), math.sin(angle)
    pairs: np.ndarray = values.reshape(-1, 2) @ np.array([[cos, sin], [-sin, cos]])
    return pairs.ravel()
