"""Named observation blocks: the single source of masks, topics, manifests and documentation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdmarl_core.errors import UserError, refuse_unknown

VISIBLE = "visible"  # what a student that features are hidden from is told


@dataclass(frozen=True)
class Block:
    """A named, contiguous part of an observation, in the task's own order.

    A block may list several things of one kind, each by a row of as many features.
    """

    name: str
    size: int
    unit: str
    description: str = ""
    idle: tuple[int, ...] = ()  # features of the block that never change in this task
    rows: int = 1
    aims: tuple[str, ...] = ()  # by row, the action that aims at the thing there; none: nothing

    def __post_init__(self) -> None:
        if self.rows < 1 or self.size % self.rows or len(self.aims) not in (0, self.rows):
            raise ValueError(
                f"block '{self.name}': {self.size} features and {len(self.aims)} aims do not make "
                f"{self.rows} rows"
            )

    @property
    def lists(self) -> bool:
        """Whether rows of it are worth encoding."""
        return self.rows > 1 or bool(self.aims)


def block_columns(blocks: Sequence[Block]) -> dict[str, slice]:
    """Where each block lies in the concatenated observation."""
    columns, start = {}, 0
    for block in blocks:
        columns[block.name] = slice(start, start + block.size)
        start += block.size
    return columns


def select_blocks(blocks: Sequence[Block], names: Sequence[str], where: str) -> tuple[Block, ...]:
    """The blocks that a robot senses, in the task's order whatever the order of `names`.

    Raises:
        UserError: a name is not a block of this agent, stands twice, or none is given.
    """
    valid = [block.name for block in blocks]
    refuse_unknown("block", names, valid, where)
    if len(set(names)) != len(names) or not names:
        raise UserError(f"{where}: {list(names)} must name each block once and at least one block")
    return tuple(block for block in blocks if block.name in names)


def select_columns(blocks: Sequence[Block], kept: Sequence[Block]) -> npt.NDArray[np.int64]:
    """Indices of the kept blocks' features in the concatenated observation, shape [D_S]."""
    columns = block_columns(blocks)
    return np.concatenate([np.arange(columns[b.name].start, columns[b.name].stop) for b in kept])


def live_columns(blocks: Sequence[Block]) -> npt.NDArray[np.int64]:
    """Indices of the features of the blocks' concatenation that can change, in order."""
    columns = block_columns(blocks)
    idle = {columns[block.name].start + feature for block in blocks for feature in block.idle}
    size = sum(block.size for block in blocks)
    return np.array([column for column in range(size) if column not in idle], np.int64)


def visible_block(sensors: Sequence[Block]) -> Block:
    """The block that tells which features of the sensors' concatenation are not hidden."""
    size = sum(block.size for block in sensors)
    return Block(VISIBLE, size, "1", "whether each sensor feature is visible this episode")
