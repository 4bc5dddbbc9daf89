"""Standard messages become blocks and actions become commands, as one YAML file says.

A simulated robot is sent its blocks; a real one has sensors that publish standard messages. The
file names, for each block of the bundle, a topic, a message type and its fields, and for each
action what to command. `docs/real_robots.md` describes every key. Units and axes are those of
REP-103: metres, radians, seconds; x forward, y to the left.

No ROS client here: message classes are looked up by name, a node brings the messages. Time is
steady, in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from kdmarl_core.bundle import BlockEntry, Manifest
from kdmarl_core.errors import UserError, refuse_unknown
from kdmarl_core.schema import check_above_zero, check_at_least, from_mapping, read_yaml
from kdmarl_ros.message_fields import (
    ARRAY,
    NUMBER,
    Setter,
    find_field,
    find_setter,
    has_header,
    message_class,
)
from kdmarl_ros.safety import FUTURE_S

SCAN = ("sensor_msgs/msg/LaserScan", "ranges")
LEAST_COMMAND_HZ = 5.0  # so that a base is told to brake soon after a stop
LONGEST_BRAKE_S = 0.1  # of braking that one command makes up for, where others failed to come
QUATERNION_TOLERANCE = 0.1  # of the squared length: 1 for a rotation, 0 for a field never set
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


class Source(NamedTuple):
    """A topic to subscribe to."""

    topic: str
    message: type


class Reading(NamedTuple):
    """One block's values, as the manifest orders them."""

    block: int
    values: Sequence[float]  # empty if the message lacks an element
    measured_s: float  # when the oldest message in it was measured or, without stamps, arrived


class _Newest(NamedTuple):
    message: Any
    measured_s: float  # as its stamp says
    known_s: float  # the same, but not in the future; of what is from too far ahead: never


def read_map(path: Path) -> MapFile:
    """The file's content, checked as far as it can be without a bundle.

    Raises:
        UserError: the file is missing or malformed.
    """
    return from_mapping(MapFile, read_yaml(path), str(path))


def load_map(path: Path, manifest: Manifest, namespace: str, timeout_s: float) -> SensorMap:
    """The map in a file, checked against a bundle and the installed message types.

    Args:
        path: the file.
        manifest: of the robot's bundle.
        namespace: the robot's, such as /robot_0; its last part is the robot's name.
        timeout_s: after this silence a peer counts as lost.

    Raises:
        UserError: the file is missing or malformed, names an unknown block, action, message type
            or field, or a size or a limit is wrong.
    """
    return SensorMap(read_map(path), manifest, namespace, timeout_s, str(path))


class SensorMap:
    """One robot's sensors and actuators as its bundle knows them."""

    def __init__(
        self, entry: MapFile, manifest: Manifest, namespace: str, timeout_s: float, where: str
    ) -> None:
        self._sources = _Sources(namespace, where)
        self._timeout_s = timeout_s
        if manifest.legal_actions_vary:
            raise UserError(
                f"{where}: the bundle's legal actions vary, and no sensor tells them; drive this "
                "robot through sensors/<block>, or train it on a task whose actions are all legal"
            )
        names = [block.name for block in manifest.blocks]
        refuse_unknown("block", entry.blocks, names, f"{where}: blocks")
        self._blocks = []
        for block in manifest.blocks:
            if block.name not in entry.blocks:
                raise UserError(
                    f"{where}: blocks: no '{block.name}', which the bundle reads; map it"
                )
            at = f"{where}: blocks: {block.name}"
            self._blocks.append(_Block(entry.blocks[block.name], block, self._sources, at))
        self.command = Command(entry.command, manifest.actions, self._sources, f"{where}: command")
        self.sources = tuple(self._sources.listed)
        self._newest: list[_Newest | None] = [None] * len(self.sources)

    def take(self, source: int, message: Any, now_s: float, age_s: float = 0.0) -> list[Reading]:
        """The blocks that a message of source number `source` brings up to date.

        It was received at `now_s`, and was so old by its stamp; zero if that is not trusted. A
        block of relative positions follows the robot's own messages. It is as old as the oldest
        of what it was made from.
        """
        known_s = now_s - max(age_s, 0.0) if age_s >= -FUTURE_S else -math.inf
        self._newest[source] = _Newest(message, now_s - age_s, known_s)
        self.command.hear(source, message, known_s, self._timeout_s)
        readings = []
        for index, block in enumerate(self._blocks):
            if block.source == source:
                reading = block.read(index, self._newest, now_s - self._timeout_s)
                if reading is not None:
                    readings.append(reading)
        return readings

    def forget(self) -> None:
        """As if nothing had been heard yet; what is commanded goes on from where it is."""
        self._newest = [None] * len(self.sources)
        self.command.forget()


class _Sources:
    """Topics that are listened to, each once."""

    def __init__(self, namespace: str, where: str) -> None:
        self._parent, _, self.robot = namespace.rstrip("/").rpartition("/")
        self._where = where
        self.listed: list[Source] = []

    def index(self, topic: str, message: type, where: str) -> int:
        for index, source in enumerate(self.listed):
            if source.topic == topic:
                if source.message is not message:
                    raise UserError(
                        f"{where}: type: topic '{topic}' is of another type elsewhere in the "
                        "file; correct one of them"
                    )
                return index
        self.listed.append(Source(topic, message))
        return len(self.listed) - 1

    def of_peer(self, peer: str, topic: str) -> str:
        return f"{self._parent}/{peer}/{topic}"


class _Block:
    """How one block is read from the newest messages."""

    def __init__(
        self, entry: SourceEntry, block: BlockEntry, sources: _Sources, where: str
    ) -> None:
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
            self._heading = _find_heading(message, entry.turn.by, f"{where}: turn: by")
        self._peers = self._find_peers(message, sources, where)
        self._points = [np.array(point) for point in entry.points or ()]
        size = self._size(where)
        if size != block.size:
            raise UserError(
                f"{where}: gives {size} values, but the bundle's block has {block.size}; correct "
                "fields, points or peers"
            )
        self._scale = _per_value(entry.scale, size, f"{where}: scale")
        self._offset = _per_value(entry.offset, size, f"{where}: offset")

    def read(
        self, index: int, newest: list[_Newest | None], heard_since_s: float
    ) -> Reading | None:
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
        self, own: _Newest, newest: list[_Newest | None], heard_since_s: float
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

    def _find_peers(self, message: type, sources: _Sources, where: str) -> list[int]:
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


class Command:
    """Actions as a stream of commands that never jump."""

    def __init__(
        self, entry: CommandEntry, actions: Sequence[str], sources: _Sources, where: str
    ) -> None:
        self.topic = entry.topic
        self.message = message_class(entry.type, f"{where}: type")
        self.period_s = 1.0 / entry.rate_hz
        self._frame_id = entry.frame_id
        self._stamped = has_header(self.message)
        self._setters: list[Setter] = [
            find_setter(self.message, name, f"{where}: fields") for name in entry.fields
        ]
        size = len(entry.fields)
        self._velocity = _limits(entry.velocity, size, f"{where}: velocity")
        self._acceleration = _limits(entry.acceleration, size, f"{where}: acceleration")
        self._deceleration = self._acceleration
        if entry.deceleration is not None:
            self._deceleration = _limits(entry.deceleration, size, f"{where}: deceleration")
        self._differential = entry.differential
        self._heading_source = -1
        self._heading_of: Callable[[Any], float] = _no_heading
        if entry.differential is not None:
            self._connect_heading(entry.differential, sources, where)
        self._targets = self._read_actions(entry, actions, where)
        self._aim: np.ndarray | None = None  # None: stand still
        self._heading_rad, self._heading_until_s = math.nan, -math.inf
        self._now = np.zeros(size)
        self._sent_s = -math.inf

    @property
    def at_rest(self) -> bool:
        """Whether the last command was to stand still."""
        return not self._now.any()

    def aim(self, action: int | None) -> None:
        """Head for what an action commands, by its index; None: for standing still."""
        self._aim = None if action is None else self._targets[action]

    def hear(self, source: int, message: Any, measured_s: float, timeout_s: float) -> None:
        """Take the heading out of a message, if it is the one that has it."""
        if source == self._heading_source:
            self._heading_rad = self._heading_of(message)
            self._heading_until_s = measured_s + timeout_s

    def heading_trouble(self, now_s: float) -> str:
        """Why the base stands though it is to move: its heading is not known; empty if it is."""
        if self._differential is None or now_s <= self._heading_until_s:
            return ""
        return f"{self._differential.topic}: no heading, so that the base stands"

    def forget(self) -> None:
        """The heading is not known until it is heard again."""
        self._heading_until_s = -math.inf

    def next(self, now_s: float, stamp: Any) -> Any:
        """The next command, at most one limited change away from the last one."""
        target = self._target(now_s)
        # After a pause the limits still hold for what the base saw last.
        most_s = 2 * self.period_s if target.any() else max(2 * self.period_s, LONGEST_BRAKE_S)
        elapsed_s = min(now_s - self._sent_s, most_s)
        self._sent_s = now_s
        braking = self._now * (target - self._now) < 0
        step = np.where(braking, self._deceleration, self._acceleration) * elapsed_s
        after = self._now + (target - self._now).clip(-step, step)
        # Braking ends at zero: what lies behind it is acceleration again.
        self._now = np.where(braking & (after * self._now < 0), 0.0, after)
        return self._filled(self._now, stamp)

    def standing(self, stamp: Any) -> Any:
        """The command to stand still, at once."""
        self._aim = None
        self._now = np.zeros_like(self._now)
        return self._filled(self._now, stamp)

    def _filled(self, values: np.ndarray, stamp: Any) -> Any:
        message = self.message()
        if self._stamped:
            message.header.stamp = stamp
            message.header.frame_id = self._frame_id
        for setter, value in zip(self._setters, values.tolist(), strict=True):
            setter.set(message, value)
        return message

    def _target(self, now_s: float) -> np.ndarray:
        if self._aim is None:
            return np.zeros_like(self._now)
        if self._differential is None:
            return self._aim
        if now_s > self._heading_until_s or not math.isfinite(self._heading_rad):
            return np.zeros_like(self._now)
        # The point `ahead_m` in front of the axle moves with this velocity x, y of the world.
        x, y = self._aim
        cos, sin = math.cos(self._heading_rad), math.sin(self._heading_rad)
        wanted = np.array([cos * x + sin * y, (cos * y - sin * x) / self._differential.ahead_m])
        return wanted.clip(-self._velocity, self._velocity)

    def _connect_heading(self, entry: DifferentialEntry, sources: _Sources, where: str) -> None:
        at = f"{where}: differential"
        if len(self._setters) != 2:
            raise UserError(
                f"{where}: fields: {len(self._setters)} given, but a differential drive has two, "
                "forwards and turn, such as [linear.x, angular.z]; correct them"
            )
        message = message_class(entry.type, f"{at}: type")
        self._heading_of = _find_heading(message, entry.heading, f"{at}: heading")
        self._heading_source = sources.index(entry.topic, message, at)

    def _read_actions(
        self, entry: CommandEntry, actions: Sequence[str], where: str
    ) -> list[np.ndarray]:
        at = f"{where}: actions"
        refuse_unknown("action", entry.actions, actions, at)
        missing = [name for name in actions if name not in entry.actions]
        if missing:
            raise UserError(f"{at}: no '{missing[0]}', which the bundle may choose; add it")
        for name, values in entry.actions.items():
            if len(values) != len(entry.fields):
                raise UserError(
                    f"{at}: {name}: {list(values)} has {len(values)} values, but there are "
                    f"{len(entry.fields)} fields; give one per field"
                )
            self._check_reach(np.array(values), f"{at}: {name}")
        return [np.array(entry.actions[name]) for name in actions]

    def _check_reach(self, values: np.ndarray, where: str) -> None:
        if self._differential is not None:
            speeds, limits = np.array([math.hypot(*values)]), self._velocity[:1]
        else:
            speeds, limits = np.abs(values), self._velocity
            for setter, value in zip(self._setters, values.tolist(), strict=True):
                setter.check(value, where)
        for speed, limit in zip(speeds.tolist(), limits.tolist(), strict=True):
            if speed > limit:
                raise UserError(
                    f"{where}: {speed:g} is above the limit 'velocity' of {limit:g}; lower one or "
                    "raise the other"
                )


def _nearest_by_sector(array: np.ndarray, sectors: int) -> np.ndarray:
    """The least value in each of so many equal parts of an array; NaN counts nowhere."""
    if array.ndim != 1 or len(array) < sectors:
        raise ValueError("fewer elements than sectors")
    starts = np.arange(sectors) * len(array) // sectors
    nearest: np.ndarray = np.fmin.reduceat(array, starts)
    return nearest


def _find_heading(message: type, name: str, where: str) -> Callable[[Any], float]:
    """A function that reads the heading in radians from a quaternion field."""
    field = find_field(message, name, where)
    if field.type_name != "geometry_msgs/Quaternion":
        raise UserError(
            f"{where}: '{name}' is {field.type_name}, not geometry_msgs/Quaternion; name an "
            "orientation, such as pose.pose.orientation"
        )
    return lambda received: _heading_rad(field.get(received))


def _heading_rad(q: Any) -> float:
    length = q.w * q.w + q.x * q.x + q.y * q.y + q.z * q.z
    if not abs(length - 1.0) < QUATERNION_TOLERANCE:
        return math.nan
    return math.atan2(2 * (q.w * q.z + q.x * q.y), q.w * q.w + q.x * q.x - q.y * q.y - q.z * q.z)


def _no_heading(message: Any) -> float:
    return math.nan


def _turned(values: np.ndarray, heading_rad: float, turn: TurnEntry | None) -> np.ndarray:
    """Pairs of x and y turned from the robot's axes into the world's, or back."""
    assert turn is not None
    angle = heading_rad if turn.into == "world" else -heading_rad
    cos, sin = math.cos(angle), math.sin(angle)
    pairs: np.ndarray = values.reshape(-1, 2) @ np.array([[cos, sin], [-sin, cos]])
    return pairs.ravel()


def _per_value(given: PerValue, size: int, where: str) -> np.ndarray:
    """One number for all values, or one for each."""
    if isinstance(given, float):
        return np.full(size, given)
    if len(given) != size:
        raise UserError(
            f"{where}: {list(given)} has {len(given)} values for {size}; give one number, or "
            f"{size}"
        )
    return np.array(given)


def _limits(given: PerValue, size: int, where: str) -> np.ndarray:
    limits = _per_value(given, size, where)
    if not (limits > 0).all():
        raise UserError(f"{where}: {limits.min():g} must be above 0; correct it")
    return limits
