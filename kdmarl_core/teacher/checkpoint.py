"""Checkpoints of a training run: weights, optimiser state and a record in one safetensors file."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

from kdmarl_core.errors import UserError
from kdmarl_core.files import atomic_write
from kdmarl_core.interrupt import deferred_interrupt
from kdmarl_core.schema import from_mapping, parse_json
from kdmarl_core.tasks import TaskSpec
from kdmarl_core.teacher.teacher import load_into, read_tensors
from kdmarl_core.team import Team

CHECKPOINT = "checkpoint.safetensors"
SECONDS_BETWEEN_CHECKPOINTS = 30.0


@dataclass(frozen=True)
class Progress:
    """How far a run has come, and which run it is."""

    recipe_sha256: str
    seed: int
    iteration: int
    seconds: float


def recipe_hash(recipe: dict[str, Any], spec: TaskSpec, team: Team | None) -> str:
    """A hash of recipe, opponent and restriction: a run is only resumed with what began it."""
    record: list[Any] = [recipe, spec.fixture_sha256]
    if team is not None:
        record.append({agent: own.record() for agent, own in team.restriction().items()})
    return fingerprint(record)


def fingerprint(record: object) -> str:
    """A hash of what made something, as far as JSON can say it."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


class Run:
    """How far a training run is, and its checkpoint.

    The file is written now and then, at the end, and on Ctrl-C. A step that spoils the weights
    shows in the loss of the next one only. So if a loss is not finite, the file is given what the
    last whole iteration began with, as losses were finite with that, or else the run itself.
    """

    def __init__(
        self,
        folder: Path,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        identity: str,
        seed: int,
    ) -> None:
        """A run that begins; `identity` is a hash of all that decides it."""
        self.path = folder / CHECKPOINT
        self.done = 0  # iterations
        self._module, self._optimizer = module, optimizer
        self._identity, self._seed = identity, seed
        self._seconds = 0.0  # before it was resumed
        self._begun = self._saved = time.monotonic()
        self._good: _State

    @property
    def seconds(self) -> float:
        """Spent so far, with the time before a resumption."""
        return self._seconds + time.monotonic() - self._begun

    def resume(self) -> None:
        """Go on from the file.

        Raises:
            UserError: it is missing, cut short, or belongs to other work.
        """
        progress = _load(self.path, self._module, self._optimizer, self._identity, self._seed)
        self.done, self._seconds = progress.iteration, progress.seconds

    @contextlib.contextmanager
    def going(self) -> Iterator[threading.Event]:
        """All iterations; the event says that no other one is to be begun.

        Raises:
            UserError: as raised within, with the place of what was good last.
            KeyboardInterrupt: the event was set.
        """
        self._good = self._state()
        try:
            with deferred_interrupt() as interrupted:
                yield interrupted
                self.save()
        except UserError as error:
            _write(self.path, self._good)
            raise UserError(f"{error}; {self.path} keeps what was good last") from None
        if interrupted.is_set():
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def iteration(self) -> Iterator[int]:
        """One iteration, by its number."""
        before = self._state()
        yield self.done
        self._good = before
        self.done += 1
        if time.monotonic() - self._saved > SECONDS_BETWEEN_CHECKPOINTS:
            self.save()

    def save(self) -> None:
        """Write what there is now; a killed run leaves the file before whole."""
        _write(self.path, self._state())
        self._saved = time.monotonic()

    def _state(self) -> _State:
        tensors = {f"module.{name}": value for name, value in self._module.state_dict().items()}
        for index, state in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
        copies = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
        return _State(copies, Progress(self._identity, self._seed, self.done, self.seconds))


class _State(NamedTuple):
    tensors: dict[str, Tensor]
    progress: Progress


def _write(path: Path, state: _State) -> None:
    record = {"progress": json.dumps(dataclasses.asdict(state.progress))}
    atomic_write(path, save(state.tensors, metadata=record))


def _load(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, recipe_sha256: str, seed: int
) -> Progress:
    """Restore weights and optimiser in place; errors as `Run.resume`."""
    tensors, metadata = read_tensors(path)
    record = parse_json(metadata.get("progress", "{}"), path)
    progress = from_mapping(Progress, record, str(path))
    if (progress.recipe_sha256, progress.seed) != (recipe_sha256, seed):
        raise UserError(
            f"{path}: was made with another recipe, seed, team, teacher, opponent or buffer (seed "
            f"{progress.seed}, now {seed}); resume with the same ones, or start afresh "
            "with --overwrite and without --resume"
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
