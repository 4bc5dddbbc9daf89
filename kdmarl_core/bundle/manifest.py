"""`manifest.json`: what a robot must know of its model, checked before it is believed."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kdmarl_core.bundle.messages import MessageEntry, PeerEntry, check_peers
from kdmarl_core.bundle.onnx_check import LARGEST_MODEL
from kdmarl_core.bundle.sha256 import sha256_hex
from kdmarl_core.errors import UserError
from kdmarl_core.schema import from_mapping, read_json

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
MODEL = "model.onnx"
HIGHEST_RATE_HZ = 1000.0  # of any robot's decisions
TRAINING = re.compile("[0-9a-f]{8}")
ACTION_MASK = "action_mask"  # the input, beside the blocks, of a robot whose legal actions vary


@dataclass(frozen=True)
class BlockEntry:
    """One input block, in the order in which blocks are concatenated."""

    name: str
    size: int
    unit: str


@dataclass(frozen=True)
class StudentEntry:
    """The network and what one decision costs, counted from the ONNX graph."""

    network: str
    width: int
    parameters: int
    flops_per_decision: int
    state_size: int  # of a recurrent student's state, which is zero when an episode begins; else 0


@dataclass(frozen=True)
class TeacherEntry:
    """Where the behaviour came from."""

    name: str
    sha256: str
    assistant_sha256: str | None = None  # of the policy between teacher and student, if any


@dataclass(frozen=True)
class Measured:
    """The whole team's score in the task's reference simulator, greedy actions."""

    episodes: int
    seed: int
    student_return: float
    teacher_return: float
    random_return: float
    # Of wins where episodes can be won, else of returns; None: the teacher is as good as random.
    retention: float | None
    retention_low: float | None  # of the 95 % interval
    retention_high: float | None
    student_win_rate: float | None = None  # None where nothing can be won
    teacher_win_rate: float | None = None


@dataclass(frozen=True)
class ModelEntry:
    """The file that was hashed."""

    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """Everything beside the weights."""

    schema_version: int
    kdmarl_version: str
    team: str
    robot: str
    task: str
    agent: str
    rate_hz: float
    blocks: tuple[BlockEntry, ...]
    actions: tuple[str, ...]
    safe_action: str
    legal_actions_vary: bool  # the robot is told which actions are legal, step by step
    student: StudentEntry
    teacher: TeacherEntry
    measured: Measured | None  # None while a model is being exported
    model: ModelEntry
    message: MessageEntry | None = None  # what the robot tells others; None: it is silent
    peers: tuple[PeerEntry, ...] = ()  # whose messages it reads, in the order of its input
    # Eight hexadecimal digits that bundles share if they were distilled together: what messages
    # mean was learned, and is another thing in every training. Empty: the robot neither tells nor
    # hears anything.
    training: str = ""

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise UserError(
                f"schema_version: {self.schema_version} is not the {SCHEMA_VERSION} that this "
                "version reads; export the bundle again with this version"
            )
        if not 0 < self.rate_hz <= HIGHEST_RATE_HZ:
            raise UserError(
                f"rate_hz: {self.rate_hz} must be above 0 and at most {HIGHEST_RATE_HZ}; export "
                "again"
            )
        names = [block.name for block in self.blocks]
        if not names or len({*names, ACTION_MASK}) != len(names) + 1:
            raise UserError(
                f"blocks: {names} must be distinct, not '{ACTION_MASK}' and not empty; "
                "export again"
            )
        for block in self.blocks:
            if not (block.name.isidentifier() and block.name.isascii()):
                raise UserError(
                    f"blocks: '{block.name}' cannot be the name of a topic; export again"
                )
            if block.size < 1:
                raise UserError(
                    f"blocks: {block.name}: size {block.size} is below 1; export again"
                )
        if self.student.state_size < 0:
            raise UserError(
                f"student.state_size: {self.student.state_size} is below 0; export again"
            )
        check_peers(self.robot, self.peers)
        if (self.message or self.peers) and not TRAINING.fullmatch(self.training):
            raise UserError(
                f"training: '{self.training}' is not eight hexadecimal digits; export again"
            )
        if self.safe_action not in self.actions:
            raise UserError(
                f"safe_action: '{self.safe_action}' is not one of {list(self.actions)}; "
                "export again"
            )

    @cached_property
    def observation_size(self) -> int:
        """Number of input features of all blocks."""
        return sum(block.size for block in self.blocks)

    @cached_property
    def messages_size(self) -> int:
        """Number of input features of all peers' messages."""
        return sum(peer.features for peer in self.peers)

    @cached_property
    def training_number(self) -> int:
        """What robots say of their training when they tell each other something."""
        return int(self.training or "0", 16)

    @property
    def safe_index(self) -> int:
        """Index of the action that is published when no decision can be trusted."""
        return self.actions.index(self.safe_action)


def write_bundle(folder: Path, manifest: Manifest, model: bytes) -> Manifest:
    """Write a bundle into an existing folder; returns the manifest with hash and size."""
    entry = ModelEntry(MODEL, sha256_hex(model), len(model))
    manifest = dataclasses.replace(manifest, model=entry)
    (folder / MODEL).write_bytes(model)
    (folder / MANIFEST).write_text(
        json.dumps(dataclasses.asdict(manifest), indent=2, allow_nan=False) + "\n"
    )
    return manifest


def read_bundle(folder: Path) -> tuple[Manifest, bytes]:
    """The manifest and the very bytes that were verified against it.

    Raises:
        UserError: a file is missing or unreadable, the manifest is of another version or
            inconsistent, or the model is not the one that was hashed.
    """
    path = folder / MANIFEST
    manifest = from_mapping(Manifest, read_json(path), str(path))
    if manifest.model.file != MODEL:
        raise UserError(f"{path}: model.file: '{manifest.model.file}' must be '{MODEL}'")
    try:
        with (folder / MODEL).open("rb") as file:
            model = file.read(LARGEST_MODEL + 1)
    except OSError as error:
        raise UserError(
            f"{folder / MODEL}: cannot be read ({error.strerror}); copy the bundle again"
        ) from None
    if len(model) > LARGEST_MODEL:
        raise UserError(
            f"{folder / MODEL}: more than {LARGEST_MODEL} bytes: no student's model; "
            "copy the bundle again"
        )
    if len(model) != manifest.model.bytes:
        raise UserError(
            f"{folder / MODEL}: {len(model)} bytes, the manifest says {manifest.model.bytes}; "
            "copy the bundle again"
        )
    found = sha256_hex(model)
    if found != manifest.model.sha256:
        raise UserError(
            f"{folder / MODEL}: SHA-256 {found[:12]}... is not the manifest's "
            f"{manifest.model.sha256[:12]}...; the model was altered, copy the bundle again"
        )
    return manifest, model
