"""Messages between students in training: what `bundle/messages.py` does for one robot, in torch.

Which messages arrive when does not depend on what they say. It is drawn apart from the students
(`Post`), kept with the experience (`Delivery`), and followed again whenever they learn from it.

Shapes: `T` steps, `B` episodes side by side, `N` robots, `L` links (a sender and one receiver),
`M` widest message, `V` most values that a robot receives, `P` most peers of a robot.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kdmarl_core.bundle import FORMATS
from kdmarl_core.team import Team

# Rounded to that many levels, a value is as good as a float32 between -1 and 1.
FLOAT_LEVELS = 2.0**22


class Delivery(NamedTuple):
    """What becomes of messages, step by step."""

    arrives: Tensor  # [T, L, B], whether a message can be read that could not be before
    age: Tensor  # [T, L, B], steps, of what is held; one beyond the limit where nothing is
    delay: Tensor  # [T, L, B], steps
    levels: Tensor  # [T, N, B], by which values are multiplied before they are rounded


class Mail(NamedTuple):
    """What is on its way before a step, and what receivers hold."""

    recent: Tensor  # [D * N * M, B], what was sent in the last D steps, oldest first
    held: Tensor  # [N * V, B]


class Wiring:
    """Who tells whom what, as indices."""

    def __init__(self, team: Team) -> None:
        robots = team.robots
        index = {robot.name: number for number, robot in enumerate(robots)}
        told = [robot.messages for robot in robots]
        self.sizes = [spec.size if spec else 0 for spec in told]  # of each robot's message
        self.robots, self.widest = len(robots), max(self.sizes)
        senders = [[index[peer.robot] for peer in robot.peers] for robot in robots]
        self.values = [sum(self.sizes[j] for j in own) for own in senders]  # that each receives
        self.peers = [len(own) for own in senders]
        self.links = [(sender, receiver) for receiver, own in enumerate(senders) for sender in own]
        specs = [spec for sender, _ in self.links if (spec := told[sender])]
        self.loss = torch.tensor([spec.training.loss for spec in specs]).view(-1, 2)
        self.delays = torch.tensor([spec.delays for spec in specs]).view(-1, 2)
        self.hold = torch.tensor([spec.hold_steps for spec in specs])[:, None]
        self.longest = int(self.delays.max()) if specs else 1
        self.formats = [spec.formats if spec else ("float32",) for spec in told]
        # Padding reads the link behind the last one: nothing ever arrives on it.
        none = len(self.links)
        self.value_links = torch.full((self.robots, max(self.values)), none)
        self.value_rows = torch.zeros(self.robots, max(self.values), dtype=torch.long)
        self.age_links = torch.full((self.robots, max(self.peers)), none)
        for receiver, own in enumerate(senders):
            links = [number for number, link in enumerate(self.links) if link[1] == receiver]
            self.age_links[receiver, : len(own)] = torch.tensor(links)
            pairs = zip(links, own, strict=True)
            rows = [(link, j, value) for link, j in pairs for value in range(self.sizes[j])]
            for place, (link, sender, value) in enumerate(rows):
                self.value_links[receiver, place] = link
                self.value_rows[receiver, place] = sender * self.widest + value

    def empty(self, episodes: int) -> Mail:
        """Before anything was sent."""
        return Mail(
            torch.zeros(self.longest * self.robots * self.widest, episodes),
            torch.zeros(self.value_links.numel(), episodes),
        )

    def ages(self, delivery: Delivery) -> Tensor:
        """Ages as students read them, [N, P, T * B]."""
        share = delivery.age / (self.hold + 1)
        padded = torch.nn.functional.pad(share, (0, 0, 0, 1))
        by_robot = padded[:, self.age_links]  # [T, N, P, B]
        return by_robot.permute(1, 2, 0, 3).flatten(2)

    def read_by(self, receiver: int, held: Tensor, delivery: Delivery) -> Tensor:
        """What one robot read as an `Inbox` gives it, [T, B, R], of values held [T, B, N, V]."""
        ages = self.ages(delivery)[receiver].view(-1, *held.shape[:2])
        return self.in_order(receiver, held[:, :, receiver].permute(2, 0, 1), ages).permute(
            1, 2, 0
        )

    def in_order(self, receiver: int, values: Tensor, ages: Tensor) -> Tensor:
        """A robot's own of values [V, ...] and ages [P, ...], [R, ...], in an `Inbox`'s order."""
        rows, start = [values[:0]], 0
        senders = [sender for sender, robot in self.links if robot == receiver]
        for peer, sender in enumerate(senders):
            end = start + self.sizes[sender]
            rows += [values[start:end], ages[peer : peer + 1]]
            start = end
        return torch.cat(rows)

    def routes(self, delivery: Delivery) -> Routes:
        """The same as factors and indices of all values that travel."""
        links = self.value_links.flatten()
        stays = ~delivery.arrives & (delivery.age <= self.hold)
        sent = (self.longest - delivery.delay) * (self.robots * self.widest)
        arrives, stays, sent = (
            _padded(by_link).index_select(1, links)
            for by_link in (delivery.arrives.float(), stays.float(), sent)
        )
        return Routes(arrives, stays, sent.add_(self.value_rows.flatten()[:, None]))


class Routes(NamedTuple):
    """How what is held follows from what was held, and from what was sent."""

    arrives: Tensor  # [T, N * V, B], one or zero
    stays: Tensor  # [T, N * V, B], one or zero
    source: Tensor  # [T, N * V, B], rows of `Mail.recent`


class Post:
    """Draws what becomes of messages in running episodes."""

    def __init__(self, wiring: Wiring, episodes: int, generator: torch.Generator) -> None:
        self._wiring, self._generator = wiring, generator
        links, robots = len(wiring.links), wiring.robots
        self._steps = torch.zeros(episodes, dtype=torch.long)  # since the episode began
        self._age = (wiring.hold + 1).expand(links, episodes)
        self._delay = torch.ones(links, episodes, dtype=torch.long)
        self._loss = torch.zeros(links, episodes)
        self._levels = torch.ones(robots, episodes)

    def step(self, begins: Tensor) -> Delivery:
        """One step [1, ...] of all episodes, of which some begin [B]."""
        wiring = self._wiring
        if begins.any():
            self._begin(begins)
        self._steps = torch.where(begins, 0, self._steps + 1)
        lost = torch.rand(self._loss.shape, generator=self._generator) < self._loss
        arrives = (self._steps >= self._delay) & ~lost
        older = torch.minimum(self._age + 1, wiring.hold + 1)
        self._age = torch.where(arrives, self._delay, older)
        return Delivery(
            arrives[None], self._age[None], self._delay[None], self._levels[None].clone()
        )

    def _begin(self, begins: Tensor) -> None:
        """Draw loss, delay and format of the episodes that begin, and forget the one before."""
        wiring = self._wiring
        shape = self._delay.shape

        def between(bounds: Tensor) -> Tensor:
            low, high = bounds[:, :1], bounds[:, 1:]
            return low + (high - low) * torch.rand(shape, generator=self._generator)

        loss = between(wiring.loss)
        beyond = wiring.delays + torch.tensor([0, 1])  # each whole number is as likely as others
        delay = torch.minimum(between(beyond).long(), wiring.delays[:, 1:])
        levels = torch.stack([self._draw_levels(formats) for formats in wiring.formats])
        self._loss = torch.where(begins, loss, self._loss)
        self._delay = torch.where(begins, delay, self._delay)
        self._levels = torch.where(begins, levels, self._levels)
        self._age = torch.where(begins, wiring.hold + 1, self._age)

    def _draw_levels(self, formats: tuple[str, ...]) -> Tensor:
        choices = torch.tensor([FORMATS[name].levels or FLOAT_LEVELS for name in formats])
        shape = self._steps.shape
        return choices[torch.randint(len(choices), shape, generator=self._generator)].float()


def draw_delivery(wiring: Wiring, begins: Tensor, generator: torch.Generator) -> Delivery:
    """Of whole sequences, in which episodes begin as given [T, B]."""
    post = Post(wiring, begins.shape[1], generator)
    return joined([post.step(now) for now in begins])


def joined(steps: list[Delivery]) -> Delivery:
    """Steps behind one another."""
    return Delivery(*(torch.cat(fields) for fields in zip(*steps, strict=True)))


def _padded(by_link: Tensor) -> Tensor:
    """A zero behind the links of [T, L, B]."""
    return torch.nn.functional.pad(by_link, (0, 0, 0, 1))
