"""Recordings of a run: MCAP files that carry their message definitions and the team's manifests.

The profile is that of rosbag2, so that `ros2 bag`, Foxglove and others open them as they are.
"""

from __future__ import annotations

import contextlib
import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NamedTuple

import yaml
from ament_index_python.packages import PackageNotFoundError, get_package_share_path
from mcap.exceptions import McapError
from mcap.records import Channel as ChannelRecord
from mcap.records import Message, Metadata, Schema
from mcap.stream_reader import StreamReader
from mcap.writer import Writer
from rclpy.duration import Infinite
from rclpy.qos import QoSProfile
from zstandard import ZstdError

from kdmarl_core.errors import UserError

MANIFESTS, PARAMETERS = "manifest/", "parameters/"  # and the robot: the names of metadata
CHUNK_BYTES = 256 * 1024  # what a recorder that is killed loses at most

_BUILT_IN = re.compile(r"(bool|byte|char|w?string(<=\d+)?|float(32|64)|u?int(8|16|32|64))$")
_PROFILE, _ENCODING, _SCHEMA = "ros2", "cdr", "ros2msg"
_RULE = "=" * 80


class Channel(NamedTuple):
    """A topic as it is recorded."""

    topic: str  # with a slash before
    type_name: str  # such as kdmarl_ros/msg/StepResult
    offered: QoSProfile


class Recorded(NamedTuple):
    """One message of a recording."""

    topic: str
    type_name: str
    published_ns: int  # by the publisher's clock
    data: bytes  # CDR


class Recording(NamedTuple):
    """What a file holds, in the order in which it was published."""

    manifests: Mapping[str, str]  # JSON by robot
    parameters: Mapping[str, Mapping[str, Any]]  # of its node, by robot
    messages: Sequence[Recorded]
    cut_off: bool  # its recorder was killed: the end is missing


class RecordingWriter:
    """Writes one file; an `OSError` of any call means that nothing more can be written."""

    def __init__(
        self,
        path: Path,
        channels: Sequence[Channel],
        manifests: Mapping[str, str],
        parameters: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    ) -> None:
        """Begin a file, which replaces one of that name; manifests and parameters are by robot."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = path.open("wb")
        self._writer = Writer(self._file, chunk_size=CHUNK_BYTES)
        self._writer.start(_PROFILE, "kdmarl")
        for robot, manifest in manifests.items():
            self._writer.add_metadata(MANIFESTS + robot, {"json": manifest})
        for robot, values in parameters.items():
            self._writer.add_metadata(PARAMETERS + robot, {"json": json.dumps(values)})
        schemas: dict[str, int] = {}
        self._channels = []
        for channel in channels:
            kind = channel.type_name
            if kind not in schemas:
                definition = message_definition(kind).encode()
                schemas[kind] = self._writer.register_schema(kind, _SCHEMA, definition)
            qos = {"offered_qos_profiles": offered_qos(channel.offered)}
            self._channels.append(
                self._writer.register_channel(channel.topic, _ENCODING, schemas[kind], qos)
            )

    def write(self, channel: int, data: bytes, received_ns: int, published_ns: int) -> None:
        """Add a message of channel number `channel`."""
        self._writer.add_message(self._channels[channel], received_ns, data, published_ns)

    def close(self) -> None:
        """Write the index and close the file; what is closed stays so."""
        if self._file.closed:
            return
        try:
            self._writer.finish()  # type: ignore[no-untyped-call]
        finally:
            self._file.close()

    def abandon(self) -> None:
        """Close a file that cannot be written any more."""
        with contextlib.suppress(OSError):
            self._file.close()


def message_definition(type_name: str) -> str:
    """The text of a message's .msg file and of all that it refers to, as ROS tools expect it.

    Raises:
        UserError: a definition is not installed.
    """
    package, _, name = type_name.split("/")
    texts = {f"{package}/{name}": _read_definition(package, name)}
    todo = [f"{package}/{name}"]
    while todo:
        owner = todo.pop(0)
        for kind in _referred(texts[owner], owner.split("/")[0]):
            if kind not in texts:
                texts[kind] = _read_definition(*kind.split("/"))
                todo.append(kind)
    first, *rest = texts
    parts = [texts[first], *(f"{_RULE}\nMSG: {kind}\n{texts[kind]}" for kind in rest)]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _read_definition(package: str, name: str) -> str:
    try:
        path = Path(get_package_share_path(package)) / "msg" / f"{name}.msg"
        return path.read_text(encoding="utf-8")
    except (PackageNotFoundError, OSError):
        raise UserError(
            f"{package}/msg/{name}: its definition is not installed; install ROS package {package}"
        ) from None


def _referred(text: str, package: str) -> Iterator[str]:
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if not words:
            continue
        kind = words[0].partition("[")[0]
        if _BUILT_IN.match(kind):
            continue
        yield kind.replace("/msg/", "/") if "/" in kind else f"{package}/{kind}"


def offered_qos(profile: QoSProfile) -> str:
    """A QoS profile as rosbag2 writes it."""
    lease_ns = profile.liveliness_lease_duration.nanoseconds or Infinite.nanoseconds
    endless, lease = (
        dict(zip(("sec", "nsec"), divmod(nanoseconds, 10**9), strict=True))
        for nanoseconds in (Infinite.nanoseconds, lease_ns)
    )
    return yaml.safe_dump(
        [
            {
                "history": profile.history.name.lower(),
                "depth": profile.depth,
                "reliability": profile.reliability.name.lower(),
                "durability": profile.durability.name.lower(),
                "deadline": endless,
                "lifespan": endless,
                "liveliness": "automatic",
                "liveliness_lease_duration": lease,
                "avoid_ros_namespace_conventions": False,
            }
        ],
        sort_keys=False,
    )


def read_recording(path: Path) -> Recording:
    """All messages of a recording, also of one whose recorder was killed.

    Raises:
        UserError: there is no such file, or it is no MCAP file of ROS messages.
    """
    schemas: dict[int, str] = {}
    channels: dict[int, tuple[str, str]] = {}
    manifests: dict[str, str] = {}
    parameters: dict[str, Mapping[str, Any]] = {}
    messages: list[Recorded] = []
    cut_off = False
    try:
        with path.open("rb") as file:
            for record in _records(file):
                if record is None:
                    cut_off = True
                elif isinstance(record, Schema):
                    schemas[record.id] = record.name
                elif isinstance(record, ChannelRecord):
                    if record.message_encoding != _ENCODING:
                        raise UserError(f"{path}: {record.topic} is not in {_ENCODING}")
                    channels[record.id] = (record.topic, schemas.get(record.schema_id, ""))
                elif isinstance(record, Metadata) and record.name.startswith(MANIFESTS):
                    robot = record.name.removeprefix(MANIFESTS)
                    manifests[robot] = record.metadata.get("json", "")
                elif isinstance(record, Metadata) and record.name.startswith(PARAMETERS):
                    robot = record.name.removeprefix(PARAMETERS)
                    parameters[robot] = _mapping(record.metadata.get("json", ""), path)
                elif isinstance(record, Message):
                    topic, kind = channels.get(record.channel_id, ("", ""))
                    messages.append(Recorded(topic, kind, record.publish_time, record.data))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if not channels:
        raise UserError(f"{path}: holds no ROS messages; give the recording of a run")
    # The file's order is that of arrival, topic by topic.
    messages.sort(key=lambda message: message.published_ns)
    return Recording(manifests, parameters, messages, cut_off)


def _mapping(text: str, path: Path) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        values = json.loads(text)
        if isinstance(values, dict):
            return values
    raise UserError(f"{path}: a robot's parameters are not JSON; record again")


def _records(file: IO[bytes]) -> Iterator[object]:
    """Records as far as they can be read; None in the place of what cannot."""
    try:
        yield from StreamReader(file, validate_crcs=True).records
    except (McapError, ZstdError, struct.error, ValueError, EOFError, MemoryError):
        yield None
