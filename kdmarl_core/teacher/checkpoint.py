"""Checkpoints of a training run: weights, optimiser state and a record in one safetensors file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from kdmarl_core.errors import UserError
from kdmarl_core.files import atomic_write
from kdmarl_core.schema import from_mapping, parse_json
from kdmarl_core.tasks import TaskSpec
from kdmarl_core.teacher.teacher import load_into, read_tensors
from kdmarl_core.team import Team


@dataclass(frozen=True)
class Progress:
    """How far a run has come, and which run it is."""

    recipe_sha256: str
    seed: int
    iteration: int
    seconds: float


def recipe_hash(recipe: object, spec: TaskSpec, team: Team | None) -> str:
    """A hash of recipe, opponent and restriction: a run is only resumed with what began it."""
    record: list[Any] = [dataclasses.asdict(recipe), spec.fixture_sha256]  # type: ignore[call-overload]
    if team is not None:
        restriction = team.restriction()
        record.append({agent: dataclasses.asdict(sensed) for agent, sensed in restriction.items()})
    return fingerprint(record)


def fingerprint(record: object) -> str:
    """A hash of what made something, as far as JSON can say it."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def save_checkpoint(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write atomically: a killed run leaves the previous checkpoint whole."""
    tensors = {f"module.{name}": value for name, value in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
    content = save(
        {name: value.detach().contiguous() for name, value in tensors.items()},
        metadata={"progress": json.dumps(dataclasses.asdict(progress))},
    )
    atomic_write(path, content)


def load_checkpoint(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, recipe_sha256: str, seed: int
) -> Progress:
    """Restore weights and optimiser in place.

    Raises:
        UserError: the file is missing, cut short, or belongs to other work.
    """
    tensors, metadata = read_tensors(path)
    record = parse_json(metadata.get("progress", "{}"), path)
    progress = from_mapping(Progress, record, str(path))
    if (progress.recipe_sha256, progress.seed) != (recipe_sha256, seed):
        raise UserError(
            f"{path}: was made with another recipe, seed, team, teacher, opponent or buffer (seed "
            f"{progress.seed}, now {seed}); resume with the same ones, or start afresh "
            "without --resume"
        )
    own = {n.removeprefix("module."): t for n, t in tensors.items() if n.startswith("module.")}
    load_into(module, own, path)
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    return progress
