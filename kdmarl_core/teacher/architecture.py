"""The shape of a teacher's networks, stated apart from torch so that commands start fast."""

from dataclasses import dataclass
from typing import Literal

from kdmarl_core.schema import check_at_least

Network = Literal["mlp", "gru", "units"]


@dataclass(frozen=True)
class Architecture:
    """The teacher's networks.

    In a recurrent one the actor's last hidden layer is a GRU; one of units is for battles
    (`kdmarl_core.nets.units`), where every unit is known.
    """

    network: Network
    width: int
    layers: int

    def __post_init__(self) -> None:
        check_at_least(1, self, "width", "layers")
