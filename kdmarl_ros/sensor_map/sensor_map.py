"""One robot's sensors and actuators, as its bundle knows them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from kdmarl_core.bundle import Manifest
from kdmarl_core.errors import UserError, refuse_unknown
from kdmarl_ros.safety import FUTURE_S
from kdmarl_ros.sensor_map.block import MappedBlock, Newest, Reading
from kdmarl_ros.sensor_map.command import Command
from kdmarl_ros.sensor_map.file import MapFile, read_map
from kdmarl_ros.sensor_map.sources import Sources


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
        """As `load_map`, of the keys of a file; `where` names it."""
        self._sources = Sources(namespace)
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
            self._blocks.append(MappedBlock(entry.blocks[block.name], block, self._sources, at))
        self.command = Command(entry.command, manifest.actions, self._sources, f"{where}: command")
        self.sources = tuple(self._sources.listed)
        self._newest: list[Newest | None] = [None] * len(self.sources)

    def take(self, source: int, message: Any, now_s: float, age_s: float = 0.0) -> list[Reading]:
        """The blocks that a message of source number `source` brings up to date.

        It was received at `now_s`, and was so old by its stamp; zero if that is not trusted. A
        block of relative positions follows the robot's own messages. It is as old as the oldest
        of what it was made from.
        """
        known_s = now_s - max(age_s, 0.0) if age_s >= -FUTURE_S else -math.inf
        self._newest[source] = Newest(message, now_s - age_s, known_s)
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
