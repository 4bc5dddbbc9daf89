"""What messages are good for, and what they say.

A link (a sender and one receiver) is tampered with while the team plays the same seeded episodes:
cut, frozen at the first message of the episode, or shuffled (the message of the same step of
another episode). What the score loses by it (wins where episodes can be won, else the return) is
what that link is worth. A linear probe, fitted on half of the episodes and scored on the other
half, tells what can be read from a message.

Shapes: `S` samples, `M` values of a message, `F` features to be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdmarl_core.bundle import BundlePolicy, Inbox
from kdmarl_core.bundle.messages import decode
from kdmarl_core.evaluate import BundlePlayer, play, scores
from kdmarl_core.metrics import Interval, mean_difference
from kdmarl_core.tasks import ReferenceEnv, View
from kdmarl_core.team import Team

TAMPERINGS = ("cut", "frozen", "shuffled")
COLOURS = ("#3366cc", "#99bbee", "#cc6677")
RIDGE = 1e-3  # of the probe, as a share of the values' variance


class Link(NamedTuple):
    """Who tells whom."""

    sender: str
    receiver: str


class Loss(NamedTuple):
    """What a link is worth."""

    link: Link
    tampering: str
    change: Interval  # of the mean score, against episodes that nobody tampered with


class Readable(NamedTuple):
    """What a linear probe reads of a sender's messages."""

    sender: str
    subject: str  # `<robot>: <block>[<feature>]`
    share: float  # R^2 on episodes that the probe has not seen; 1: all of the variance


class Recorded(NamedTuple):
    """Episodes as they were played."""

    scores: npt.NDArray[np.float64]
    told: list[list[dict[str, bytes]]]  # by episode and step
    views: list[list[View]]


class _Player(BundlePlayer):
    """Keeps what is said, and tampers with one link."""

    def __init__(self, policies: Sequence[BundlePolicy], team: Team) -> None:
        super().__init__(policies, team)
        self.told: list[list[dict[str, bytes]]] = []
        self.views: list[list[View]] = []
        self.link: Link | None = None
        self.tampering = ""
        self.others: list[list[dict[str, bytes]]] = []  # what was told before, to shuffle

    def reset(self, seed: int) -> None:
        super().reset(seed)
        self.told.append([])
        self.views.append([])

    def act(self, view: View) -> list[int]:
        self.views[-1].append(view)
        return super().act(view)

    def _deliver(self, inbox: Inbox, episode: int, step: int, told: dict[str, bytes]) -> None:
        if inbox is self._inboxes[0]:
            self.told[-1].append(told)
        if self.link is not None and inbox.robot == self.link.receiver:
            told = self._tampered(told, episode, step, self.link.sender)
        super()._deliver(inbox, episode, step, told)

    def _tampered(
        self, told: dict[str, bytes], episode: int, step: int, sender: str
    ) -> dict[str, bytes]:
        if self.tampering == "cut":
            return {name: data for name, data in told.items() if name != sender}
        if self.tampering == "frozen":
            return told | {sender: self.told[-1][0][sender]}
        other = self.others[(episode + 1) % len(self.others)]
        return told | {sender: other[min(step, len(other) - 1)][sender]}


def links(team: Team) -> list[Link]:
    """All links of a team."""
    return [Link(peer.robot, robot.name) for robot in team.robots for peer in robot.peers]


def record(
    env: ReferenceEnv, team: Team, policies: Sequence[BundlePolicy], episodes: int, seed: int
) -> Recorded:
    """Play untampered."""
    player = _Player(policies, team)
    played = list(play(env, player, episodes, seed))
    return Recorded(scores(played), player.told, player.views)


def worth(
    env: ReferenceEnv,
    team: Team,
    policies: Sequence[BundlePolicy],
    link: Link,
    tampering: str,
    plain: Recorded,
    seed: int,
) -> Loss:
    """What the score loses when a link is tampered with, one of `TAMPERINGS`."""
    player = _Player(policies, team)
    player.link, player.tampering, player.others = link, tampering, plain.told
    played = list(play(env, player, len(plain.scores), seed))
    return Loss(link, tampering, mean_difference([scores(played)], [plain.scores]))


def readable(team: Team, sender: str, plain: Recorded) -> list[Readable]:
    """What a linear probe reads of a sender's messages: every robot's full observation.

    Features that never change are left out. In simple_spread, landmarks and others are relative
    positions: what can be read of another robot's landmarks is where that robot is.
    """
    [size_and_form] = [
        (robot.messages.size, robot.messages.format)
        for robot in team.robots
        if robot.name == sender and robot.messages
    ]
    messages = [
        np.stack([_values(told[sender], *size_and_form) for told in episode])
        for episode in plain.told
    ]
    half = len(messages) // 2
    found = []
    for index, robot in enumerate(team.robots):
        seen = [
            np.stack([view.observations[index] for view in episode]) for episode in plain.views
        ]
        share = probe(
            np.concatenate(messages[:half]),
            np.concatenate(seen[:half]),
            np.concatenate(messages[half:]),
            np.concatenate(seen[half:]),
        )
        names = [
            f"{robot.name}: {block.name}[{i}]"
            for block in robot.agent.blocks
            for i in range(block.size)
        ]
        found += [
            Readable(sender, name, float(value))
            for name, value in zip(names, share, strict=True)
            if np.isfinite(value)
        ]
    return found


def probe(
    x: npt.NDArray[np.float32],
    y: npt.NDArray[np.float32],
    unseen_x: npt.NDArray[np.float32],
    unseen_y: npt.NDArray[np.float32],
) -> npt.NDArray[np.float64]:
    """R^2 [F] of a ridge regression from messages [S, M] to features [S, F], on unseen samples.

    NaN for features that do not change.
    """
    centre_x, centre_y = x.mean(0, dtype=float), y.mean(0, dtype=float)
    spread = x.std(0, dtype=float)
    scale = np.where(spread > 1e-9, spread, 1.0)
    own = (x - centre_x) / scale
    gram = own.T @ own + RIDGE * len(x) * np.eye(x.shape[1])
    weight = np.linalg.solve(gram, own.T @ (y - centre_y))
    error = np.square(unseen_y - centre_y - (unseen_x - centre_x) / scale @ weight).mean(0)
    variance = unseen_y.var(0, dtype=float)
    live = variance > 1e-9
    return np.where(live, 1 - error / np.where(live, variance, 1.0), np.nan)


def worths(losses: Sequence[Loss], unit: float) -> list[list[str]]:
    """One line per link: what its score changes by each tampering, in units."""
    by_link: dict[Link, list[str]] = {}
    for loss in losses:
        value, low, high = _in(unit, loss.change)
        by_link.setdefault(loss.link, []).append(f"{value:+.2f} [{low:+.2f}, {high:+.2f}]")
    return [[*link, *changes] for link, changes in by_link.items()]


def draw(
    title: str,
    lost: str,
    unit: float,
    losses: Sequence[Loss],
    read: Sequence[Readable],
    path: Path,
) -> None:
    """What each link is worth, and what can be read from each sender's messages, as PNG."""
    from matplotlib.figure import Figure

    from kdmarl_core.pictures import save_png

    figure = Figure(figsize=(10, 4), layout="constrained")
    bars, shares = figure.subplots(1, 2)
    told = list(dict.fromkeys(loss.link for loss in losses))
    height = 0.8 / len(TAMPERINGS)
    for index, (tampering, colour) in enumerate(zip(TAMPERINGS, COLOURS, strict=True)):
        changes = [_in(unit, loss.change) for loss in losses if loss.tampering == tampering]
        bars.barh(
            [row + (index - 1) * height for row in range(len(told))],
            [-change.value for change in changes],
            height,
            xerr=[
                [change.high - change.value for change in changes],
                [change.value - change.low for change in changes],
            ],
            label=tampering,
            color=colour,
        )
    bars.set_yticks(range(len(told)), [f"{link.sender} to {link.receiver}" for link in told])
    bars.invert_yaxis()
    bars.set(title=f"{title}: what a link is worth", xlabel=lost)
    bars.legend(frameon=False)

    by_block: dict[tuple[str, str], list[float]] = {}
    for entry in read:
        block = entry.subject.partition("[")[0]
        by_block.setdefault((entry.sender, block), []).append(max(entry.share, 0.0))
    senders = list(dict.fromkeys(sender for sender, _ in by_block))
    blocks = list(dict.fromkeys(block for _, block in by_block))
    grid = [[100 * float(np.mean(by_block[s, block])) for s in senders] for block in blocks]
    if grid:
        shares.imshow(grid, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for row, values in enumerate(grid):
        for column, value in enumerate(values):
            dark = "white" if value > 50 else "black"
            shares.text(column, row, f"{value:.0f}", ha="center", va="center", color=dark)
    shares.set_xticks(range(len(senders)), senders)
    shares.set_yticks(range(len(blocks)), blocks)
    shares.set(title="read from its messages, % of variance", xlabel="sender")
    save_png(figure, path)


def _in(unit: float, change: Interval) -> Interval:
    return Interval(*(part / unit for part in change))


def _values(data: bytes, size: int, form: str) -> npt.NDArray[np.float32]:
    return decode(data, size, form)[0]
