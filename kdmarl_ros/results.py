"""One JSON line per finished episode: written by the bridge, read by whoever watches it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdmarl_core.schema import from_mapping, parse_json


@dataclass(frozen=True)
class EpisodeResult:
    """A finished episode as the bridge saw it."""

    index: int
    seed: int
    team_return: float
    steps: int
    outcome: str
    actions: tuple[tuple[int, ...], ...]  # [steps][robots], as applied
    latencies_s: tuple[
        float, ...
    ]  # first block out to action in, per step and robot that answered
    compute_s: tuple[float, ...]  # the robots' own part of it
    missed_deadlines: int  # answers that did not come in time
    safe_actions: int  # answers that were the robot's safe action
    seconds: float  # wall-clock


def append(path: Path, result: EpisodeResult) -> None:
    """Add one line; a process killed meanwhile leaves at most an unfinished last line."""
    line = json.dumps(dataclasses.asdict(result), separators=(",", ":")) + "\n"
    with path.open("a", encoding="utf-8") as file:
        file.write(line)


def read(path: Path) -> list[EpisodeResult]:
    """All finished episodes; an unfinished last line is left out."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [
        from_mapping(EpisodeResult, parse_json(line, path), f"{path}:{number}")
        for number, line in enumerate(whole.splitlines(), 1)
    ]


def summary(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """Figures of a run: mean return, steps per second, latency percentiles, misses."""
    returns = np.array([result.team_return for result in results])
    latencies = np.concatenate([result.latencies_s for result in results]) * 1e3
    compute = np.concatenate([result.compute_s for result in results]) * 1e3
    steps = sum(result.steps for result in results)
    wins = [result.outcome == "won" for result in results if result.outcome]
    return {
        "episodes": len(results),
        "return": float(returns.mean()),
        "win_rate": float(np.mean(wins)) if wins else None,
        "steps_per_second": steps / sum(result.seconds for result in results),
        "latency_p50_ms": float(np.percentile(latencies, 50)),
        "latency_p99_ms": float(np.percentile(latencies, 99)),
        "compute_p50_ms": float(np.percentile(compute, 50)),
        "compute_p99_ms": float(np.percentile(compute, 99)),
        "missed_deadlines": sum(result.missed_deadlines for result in results),
        "safe_actions": sum(result.safe_actions for result in results),
    }
