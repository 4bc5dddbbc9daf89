"""Students that learn about a thing once, whichever row of a block lists it.

A block may list several things of one kind: enemies, landmarks, other robots. A student that
encodes them reads each row by the same weights, pools the encodings by their maximum, and scores
an action that aims at a thing by the encoding of that thing. So does a teacher of battles
(`nets/units.py`; Hao et al. 2023), but a student knows only the rows that its robot senses.

What is pooled tells nobody else where an enemy is: a student that tells others what it sees may
read the rows as they are, too (`raw_rows`).

Shapes: `C` samples, `N` robots, `I` widest student input, `W` widest student, `A` most actions,
`E` widest encoding; of the block that is looked at `U` rows of `F` numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from kdmarl_core.distil.stacked import StackedLinear, stacked_weight
from kdmarl_core.export import EncodedWeights, Encodings
from kdmarl_core.tasks import block_columns
from kdmarl_core.team import Robot


def rows_of(robot: Robot, name: str) -> np.ndarray:
    """Where the rows of a block lie in a robot's input, [U, F]; [0, 0] if it does not encode it.

    Where features are hidden at random, a row ends with what tells which of its own are visible.
    """
    block = next((block for block in robot.encoded if block.name == name), None)
    if block is None:
        return np.zeros((0, 0), np.int64)
    features = block_columns(robot.sensors)[name].start + np.arange(block.size)
    rows: np.ndarray = features.reshape(block.rows, -1)
    if robot.random_features is not None:
        rows = np.concatenate([rows, rows + sum(block.size for block in robot.sensors)], 1)
    return rows


def rest_of(robot: Robot) -> np.ndarray:
    """Where all that it does not only encode lies in a robot's input."""
    size = sum(block.size for block in robot.blocks)
    if robot.student.raw_rows:
        return np.arange(size)
    taken = {column for b in robot.encoded for column in rows_of(robot, b.name).flat}
    return np.array([column for column in range(size) if column not in taken], np.int64)


class Encoding(nn.Module):
    """What a team's robots encode; nothing, if no robot does."""

    def __init__(self, robots: Sequence[Robot], sizes: Sequence[int]) -> None:
        """For robots whose inputs have so many columns each."""
        super().__init__()
        names = {block.name for robot in robots for block in robot.encoded}
        blocks = (block.name for robot in robots for block in robot.agent.blocks)
        self._blocks = [
            EncodedBlock(robots, name, max(sizes))
            for name in dict.fromkeys(name for name in blocks if name in names)
        ]
        self.blocks = nn.ModuleList(self._blocks)
        self._rest = [rest_of(robot) for robot in robots]
        self.rest_sizes = [len(own) for own in self._rest]
        everything = self.rest_sizes == list(sizes)
        self._cut = None if everything else Cut(self._rest, max(sizes))

    def forward(self, features: Tensor) -> list[Tensor]:
        """Encodings [N, E, U, C] of each block, of inputs [N, I, C]."""
        return [block(features) for block in self._blocks]

    def rest(self, features: Tensor) -> Tensor:
        """What is not only encoded, [N, any, C], of inputs [N, I, C]."""
        return self._cut(features) if self._cut else features

    def add_pooled(self, to: Tensor, encodings: Sequence[Tensor]) -> Tensor:
        """The first hidden layer [N, W, C], with what encodings add to it."""
        for block, encoded in zip(self._blocks, encodings, strict=True):
            to = to + block.pooled(encoded)
        return to

    def add_scores(self, to: Tensor, encodings: Sequence[Tensor], embedding: Tensor) -> Tensor:
        """Logits [N, A, C], with what encodings add to them, given the last hidden layer."""
        for block, encoded in zip(self._blocks, encodings, strict=True):
            scores = block.scores(encoded, embedding)
            to = to if scores is None else to + scores
        return to

    def of_robot(self, robot: int) -> Encodings | None:
        """One robot's weights without padding; None if it encodes nothing."""
        of_blocks = (block.of_robot(robot) for block in self._blocks)
        blocks = [weights for weights in of_blocks if weights]
        return Encodings(self._rest[robot], blocks) if blocks else None


class Cut(nn.Module):
    """Columns of each robot's input, an array of any shape; zeros where others have more."""

    def __init__(self, columns: Sequence[np.ndarray], inputs: int) -> None:
        """For inputs of which the widest has so many columns."""
        super().__init__()
        shape = (len(columns), *np.max([own.shape for own in columns], axis=0))
        flat, there = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        for robot, own in enumerate(columns):
            part = tuple(map(slice, own.shape))
            flat[robot][part], there[robot][part] = robot * inputs + own, 1.0
        self.shape = shape[1:]
        self._flat = torch.from_numpy(flat)
        self._there = None if there.all() else torch.from_numpy(there)[..., None]

    def forward(self, features: Tensor) -> Tensor:
        """[N, *shape, C] of inputs [N, I, C]."""
        cut = features.flatten(0, 1).index_select(0, self._flat.flatten())
        cut = cut.view(len(features), *self.shape, features.shape[-1])
        return cut if self._there is None else cut * self._there


class EncodedBlock(nn.Module):
    """One block, of all robots that encode it; others have no weights here."""

    def __init__(self, robots: Sequence[Robot], name: str, inputs: int) -> None:
        """For robots of whose inputs the widest has so many columns."""
        super().__init__()
        rows = self._rows = [rows_of(robot, name) for robot in robots]
        features = [own.shape[1] for own in rows]
        sizes = [
            robot.student.encoding if len(own) else 0
            for robot, own in zip(robots, rows, strict=True)
        ]
        widths = self._widths = [robot.student.width for robot in robots]
        self._actions = [_aimed(robot, name) for robot in robots]
        # Features come first, so that all rows are samples of one product. What robots without
        # weights here read does not matter.
        most = tuple(np.max([own.shape for own in rows], axis=0))
        self.cut = Cut([(own if len(own) else np.zeros(most, int)).T for own in rows], inputs)
        self.encoder = StackedLinear(features, sizes, math.sqrt(2))
        self.pool_weight = nn.Parameter(stacked_weight(sizes, widths, math.sqrt(2)))
        aiming = [size if own else 0 for size, own in zip(sizes, self._actions, strict=True)]
        self.aim = StackedLinear(widths, aiming, 0.01) if any(aiming) else None
        # Which rows a robot has, and which action aims at a row.
        actions = max(len(robot.agent.actions) for robot in robots)
        there = torch.zeros(len(robots), 1, most[0], 1)
        aimed = torch.zeros(len(robots), actions, most[0])
        for robot, (own, targets) in enumerate(zip(rows, self._actions, strict=True)):
            there[robot, :, : len(own)] = 1.0
            aimed[robot, targets, range(len(targets))] = 1.0
        differ = len({len(own) for own in rows} - {0}) > 1
        self._there, self._aimed = there if differ else None, aimed

    def forward(self, features: Tensor) -> Tensor:
        """Encodings [N, E, U, C] of inputs [N, I, C]; zero where a robot has no such row."""
        rows = self.cut(features)
        encoded = torch.relu(self.encoder(rows.flatten(2)))
        encoded = encoded.view(*encoded.shape[:2], *rows.shape[2:])
        return encoded if self._there is None else encoded * self._there

    def pooled(self, encoded: Tensor) -> Tensor:
        """What encodings add to the first hidden layer, [N, W, C]."""
        return self.pool_weight @ encoded.amax(2)

    def scores(self, encoded: Tensor, embedding: Tensor) -> Tensor | None:
        """What encodings add to logits, [N, A, C], given the last hidden layer [N, W, C]."""
        if self.aim is None:
            return None
        of_rows = (encoded * self.aim(embedding)[:, :, None]).sum(1)
        scores: Tensor = self._aimed @ of_rows
        return scores

    def of_robot(self, robot: int) -> EncodedWeights | None:
        """One robot's weights without padding; None if it does not encode the block."""
        rows, actions = self._rows[robot], self._actions[robot]
        if not len(rows):
            return None
        size = self.encoder.outputs[robot]
        pool = self.pool_weight.detach()[robot, : self._widths[robot], :size].T.numpy()
        aim = self.aim.of_robot(robot).single() if self.aim and actions else None
        return EncodedWeights(rows, self.encoder.of_robot(robot).single(), pool, aim, actions)


def _aimed(robot: Robot, name: str) -> list[int]:
    """The action that aims at each row of a block that a robot encodes; empty if none do."""
    return [
        robot.agent.actions.index(action)
        for block in robot.encoded
        if block.name == name
        for action in block.aims
    ]
