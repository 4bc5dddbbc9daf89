"""Messages between robots: how their values travel, and what a receiver keeps of them.

What a student sends in a step of an episode can be read `delay_steps` steps later, never sooner.
Until something newer can be read, a value is held; once it is older than `hold_steps`, or before
anything has come, zeros stand in its place. The student is told each message's age.

Shapes: `M` values of one sender's message; `R` features that a receiver reads of all its peers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdmarl_core.bundle.sha256 import sha256_hex
from kdmarl_core.errors import UserError, unknown
from kdmarl_core.schema import check_at_least

Values = npt.NDArray[np.float32]


class Format(NamedTuple):
    """How one value between -1 and 1 travels."""

    bits: int
    levels: int | None  # it travels as that many times itself, rounded; None: as a float


FORMATS = {"int4": Format(4, 7), "int8": Format(8, 127), "float32": Format(32, None)}
NIBBLE = 0xF


@dataclass(frozen=True)
class MessageEntry:
    """What a robot's student sends in every step."""

    size: int  # values
    format: str  # one of FORMATS
    to: tuple[str, ...]  # robots
    bits_per_decision: int  # of the values alone, however many robots listen
    bits_per_second: float

    def __post_init__(self) -> None:
        check_at_least(1, self, "size")
        check_format(self.format)
        bits = self.size * FORMATS[self.format].bits
        if self.bits_per_decision != bits:
            raise UserError(
                f"bits_per_decision: {self.bits_per_decision} is not the {bits} of {self.size} "
                f"values as {self.format}; export again"
            )


@dataclass(frozen=True)
class PeerEntry:
    """A robot whose messages are read."""

    robot: str
    size: int  # values
    format: str  # one of FORMATS
    delay_steps: int  # the age at which a message can be read
    hold_steps: int  # the age up to which it is held

    def __post_init__(self) -> None:
        check_at_least(1, self, "size", "delay_steps")
        check_format(self.format)
        check_at_least(self.delay_steps, self, "hold_steps")

    @property
    def block(self) -> str:
        """The name of what is read of it."""
        return f"from_{self.robot}"

    @property
    def features(self) -> int:
        """What is read of it: the values, and their age."""
        return self.size + 1


def check_format(name: str, key: str = "format") -> None:
    """Raise a `UserError` if there is no such format."""
    if name not in FORMATS:
        raise unknown("format", name, FORMATS, key)


def message_entry(size: int, form: str, to: tuple[str, ...], rate_hz: float) -> MessageEntry:
    """An entry with its bits counted."""
    bits = size * FORMATS[form].bits
    return MessageEntry(size, form, to, bits, bits * rate_hz)


def check_peers(robot: str, peers: Sequence[PeerEntry]) -> None:
    """Raise a `UserError` if a robot listens to itself, to one twice, or to what is no name."""
    names = [peer.robot for peer in peers]
    for name in names:
        if not (name.isidentifier() and name.isascii()):
            raise UserError(f"peers: '{name}' cannot be the name of a robot; export again")
    if len({*names, robot}) != len(names) + 1:
        raise UserError(f"peers: {names} must be distinct, and not '{robot}' itself; export again")


def age_share(age_steps: int, hold_steps: int) -> float:
    """An age as a student reads it: 1 means that nothing is held."""
    return min(age_steps, hold_steps + 1) / (hold_steps + 1)


def encode(values: Values, form: str) -> bytes:
    """Values [M] between -1 and 1 as they travel; two to a byte in int4, the first one lower."""
    levels = FORMATS[form].levels
    bounded = values.clip(-1.0, 1.0)
    if levels is None:
        return bounded.astype("<f4").tobytes()
    whole = np.rint(bounded * np.float32(levels)).astype(np.int8)
    if FORMATS[form].bits == 8:
        return whole.tobytes()
    nibbles = np.append(whole, np.zeros(len(whole) % 2, np.int8)).view(np.uint8) & NIBBLE
    return (nibbles[0::2] | nibbles[1::2] << 4).tobytes()


def decode(data: bytes, size: int, form: str) -> tuple[Values, str | None]:
    """What travelled as values [M], and why they cannot be used, as a short word, or None."""
    bits, levels = FORMATS[form]
    if len(data) != (size * bits + 7) // 8:
        return np.zeros(0, np.float32), "wrong_size"
    if levels is None:
        values = np.frombuffer(data, "<f4").astype(np.float32)
        if not np.isfinite(values).all():
            return values, "non_finite"
        return values, None if (np.abs(values) <= 1.0).all() else "out_of_range"
    whole = np.frombuffer(data, np.int8)
    if bits == 4:
        # Shifted up and down again, so that the sign comes along.
        whole = np.stack([whole << 4 >> 4, whole >> 4], 1).ravel()
        if whole[size:].any():
            return np.zeros(0, np.float32), "wrong_size"
    values = whole[:size].astype(np.float32) / np.float32(levels)
    # There is one more negative number than there are positive ones.
    return values, None if whole.min() >= -levels else "out_of_range"


class Disturbance(NamedTuple):
    """What happens to messages on their way, beside what the manifest says."""

    loss: float = 0.0  # share of the messages that get lost
    delay_steps: int = 0  # in place of the manifest's, where above 0


UNDISTURBED = Disturbance()


def is_lost(loss: float, episode: int, step: int, sender: str, receiver: str) -> bool:
    """Whether a message gets lost: drawn once for all time, alike wherever it is asked."""
    if not 0.0 < loss < 1.0:
        return loss >= 1.0
    name = f"{episode}/{step}/{sender}/{receiver}".encode()
    drawn = int(sha256_hex(name)[:8], 16)
    return drawn < loss * 2**32


class Inbox:
    """What one robot has received of its peers in an episode."""

    def __init__(
        self, robot: str, peers: Sequence[PeerEntry], disturbance: Disturbance = UNDISTURBED
    ) -> None:
        """An inbox of that robot that nothing has come to yet."""
        self.peers = tuple(peers)
        self.robot, self._disturbance = robot, disturbance
        self._kept: list[dict[int, Values]] = [{} for _ in peers]  # by step of the episode
        self._early: list[dict[int, Values]] = [{} for _ in peers]  # of the one that comes next
        self._episode = self._before = -1
        self._features = np.zeros(sum(peer.features for peer in peers), np.float32)
        self.ages = [peer.hold_steps + 1 for peer in peers]  # steps, when last read

    def begin(self, episode: int) -> None:
        """Forget everything: an episode begins. Only what peers have said in it already counts."""
        nothing: list[dict[int, Values]] = [{} for _ in self.peers]
        self._kept = self._early if episode == self._episode + 1 else nothing
        self._early = [{} for _ in self.peers]
        self._before, self._episode = self._episode, episode
        self.ages = [peer.hold_steps + 1 for peer in self.peers]

    def put(
        self, index: int, episode: int, step: int, data: bytes, now: int, bits: int = 0
    ) -> str | None:
        """Take in a message of peer number `index`; why it was dropped, in a short word, or None.

        Messages may come in any order; those of steps that have yet to come are kept for them, as
        are those of the next episode, which a peer may be in already. But if an episode is played
        once more, they are of the last time. What is dropped for no fault has an empty word: the
        last ones of the episode before, and losses that are rehearsed.

        Args:
            index: of the peer.
            episode: in which it was sent.
            step: in which it was sent.
            data: its values as they travel.
            now: the receiver's step of its own episode.
            bits: of each value, as the message says; 0: it does not.
        """
        peer = self.peers[index]
        if bits not in (0, FORMATS[peer.format].bits):
            return "wrong_format"
        values, reason = decode(data, peer.size, peer.format)
        if reason is not None:
            return reason
        inbox = self._kept
        if episode == self._episode + 1:
            inbox, now = self._early, 0
        elif episode != self._episode:
            # What was sent in the last step of an episode comes too late, and rightly so.
            return "" if episode == self._before else "other_episode"
        elif self._before == episode and step > now:
            return "old"
        if abs(step - now) > peer.hold_steps + 1:
            return "old" if step < now else "ahead"
        if is_lost(self._disturbance.loss, episode, step, peer.robot, self.robot):
            return ""
        inbox[index][step] = values
        return None

    def read(self, step: int) -> Values:
        """What a student reads in a step of the episode, [R]: of each peer its values and age.

        The array is the inbox's own, and changes with the next call.
        """
        start = 0
        for index, peer in enumerate(self.peers):
            delay = self._disturbance.delay_steps or peer.delay_steps
            kept = self._kept[index]
            readable = sorted(sent for sent in kept if step - sent >= delay)
            for sent in readable[:-1]:
                del kept[sent]
            age = nothing = peer.hold_steps + 1
            if readable:
                age = min(step - readable[-1], nothing)
            end = start + peer.size
            self._features[start:end] = kept[readable[-1]] if age < nothing else 0.0
            self._features[end] = age_share(age, peer.hold_steps)
            self.ages[index] = age
            start = end + 1
        return self._features
