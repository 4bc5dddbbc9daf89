"""A frozen opponent: a small network that plays the other side of a task, shipped with its card.

`kdmarl opponent` trains both sides against each other and writes the opponent's files. From then
on the opponent is part of the task: the simulators load it when they are made, and it always takes
its most probable action.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kdmarl_core.errors import UserError
from kdmarl_core.files import atomic_folder, share_folder
from kdmarl_core.schema import from_mapping, read_json
from kdmarl_core.tasks.task import AgentSpec, BatchStep, Floats, Integers, TaskSpec

CARD = "opponent.json"  # not a teacher's card: an opponent cannot be distilled
WEIGHTS = "weights.safetensors"

# Weight [in, out] and bias [out] of each dense layer; ReLU behind all but the last.
Layers = tuple[tuple[Floats, Floats], ...]


@dataclass(frozen=True)
class Opponent:
    """An agent of the simulator that no robot plays."""

    agent: AgentSpec
    model: str  # a folder under models/, or an absolute path


@dataclass(frozen=True)
class OpponentCard:
    """How an opponent was made and how well it plays; `opponent.json` beside its weights."""

    task: str
    agent: str
    weights_sha256: str
    command: str
    env_steps: int
    seed: int
    training_seconds: float
    # Mean returns of greedy episodes.
    episodes: int
    opponent_return: float  # against the team that it was trained with
    team_return: float  # of that team
    random_team_return: float  # of random actions against the opponent


class Match(Protocol):
    """A batch of episodes that a team and its opponent play, neither of them frozen."""

    @property
    def sides(self) -> tuple[TaskSpec, TaskSpec]:
        """The team, and its opponent as a team of one."""

    def reset(self, seed: int) -> tuple[BatchStep, BatchStep]:
        """Begin new episodes; returns what each side is shown."""

    def step(self, team: Integers, opponent: Integers) -> tuple[BatchStep, BatchStep]:
        """Apply actions [E, N] and [E, 1]; each side is shown its own reward."""


def greedy(layers: Layers, observation: Any) -> Any:
    """Most probable actions [...] of observations [..., D], as arrays of NumPy or of JAX."""
    x = observation
    for weight, bias in layers[:-1]:
        x = (x @ weight + bias).clip(min=0)
    weight, bias = layers[-1]
    return (x @ weight + bias).argmax(-1)


def save_opponent(layers: Layers, card: OpponentCard, folder: Path, *, overwrite: bool) -> None:
    """Write weights (safetensors) and card (JSON) so that both appear at once.

    Raises:
        UserError: the folder exists and may not be replaced, or cannot be written.
    """
    from safetensors.numpy import save

    tensors: dict[str, Floats] = {}
    for i, (weight, bias) in enumerate(layers):
        tensors |= {_weight(i): np.ascontiguousarray(weight), _bias(i): bias}
    content = save(tensors)
    card = dataclasses.replace(card, weights_sha256=hashlib.sha256(content).hexdigest())
    with atomic_folder(folder, CARD, overwrite=overwrite) as temporary:
        (temporary / WEIGHTS).write_bytes(content)
        (temporary / CARD).write_text(json.dumps(dataclasses.asdict(card), indent=2) + "\n")


def weights_sha256(opponent: Opponent) -> str:
    """What an opponent's weights are known by; empty before it has been trained.

    Raises:
        UserError: its card is damaged.
    """
    path = _folder(opponent) / CARD
    return _read_card(path).weights_sha256 if path.is_file() else ""


def load_opponent(opponent: Opponent, task: str) -> Layers:
    """The weights of a task's opponent.

    Raises:
        UserError: files missing, cut short or altered, or made for another opponent.
    """
    folder = _folder(opponent)
    card = _read_card(folder / CARD)
    if (card.task, card.agent) != (task, opponent.agent.name):
        raise UserError(
            f"{folder / CARD}: is '{card.agent}' of '{card.task}', not '{opponent.agent.name}' of "
            f"'{task}'; copy that opponent's files"
        )
    path = folder / WEIGHTS
    layers = _read_layers(path, card.weights_sha256)
    sizes = (layers[0][0].shape[0], layers[-1][0].shape[1])
    if sizes != (opponent.agent.observation_size, len(opponent.agent.actions)):
        raise UserError(f"{path}: {sizes} inputs and outputs do not fit; train the opponent again")
    return layers


def _folder(opponent: Opponent) -> Path:
    return share_folder() / "models" / opponent.model


def _read_card(path: Path) -> OpponentCard:
    return from_mapping(OpponentCard, read_json(path), str(path))


def _read_layers(path: Path, sha256: str) -> Layers:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise UserError(f"{path}: SHA-256 is not the card's {sha256[:12]}...; copy it again")
        tensors = load(content)
        return tuple((tensors[_weight(i)], tensors[_bias(i)]) for i in range(len(tensors) // 2))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; copy the opponent's folder again") from None
    except (SafetensorError, KeyError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); copy it again") from None


def _weight(layer: int) -> str:
    return f"{layer}.weight"


def _bias(layer: int) -> str:
    return f"{layer}.bias"
