"""One JSON line per finished episode: written by the bridge, read by whoever watches it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdmarl_core.errors import UserError
from kdmarl_core.schema import from_mapping, parse_json

LOCK_STEP = "lock_step"  # without disturbances


@dataclass(frozen=True)
class EpisodeResult:
    """A finished episode as the bridge saw it."""

    team: str
    models: tuple[str, ...]  # SHA-256 of each robot's model, as the robots said
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
    overridden_actions: int  # answers that were a person's
    illegal_actions: int  # impossible at their moment, so that another action was applied
    seconds: float  # wall-clock
    how: str = LOCK_STEP  # mode and disturbances


def append(path: Path, result: EpisodeResult) -> None:
    """Add one line; a process killed meanwhile leaves at most an unfinished last line.

    Such a line is cut off by the process that goes on.
    """
    line = json.dumps(dataclasses.asdict(result), separators=(",", ":")) + "\n"
    with path.open("a+b") as file:
        file.seek(max(file.tell() - 1, 0))
        if file.read() not in (b"", b"\n"):
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line.encode())


class Reader:
    """Reads a results file that grows, each line once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._lines = 0

    def new(self) -> list[EpisodeResult]:
        """Episodes that were finished since the last call; an unfinished last line is left."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        found = []
        for line in whole.decode().splitlines():
            self._lines += 1
            where = f"{self._path}:{self._lines}"
            found.append(from_mapping(EpisodeResult, parse_json(line, Path(where)), where))
        return found


def read(path: Path) -> list[EpisodeResult]:
    """All finished episodes of a results file; none if there is no file."""
    return Reader(path).new()


def check_same_run(
    path: Path,
    earlier: Sequence[EpisodeResult],
    team: str,
    seeds: Callable[[int], int],
    how: str = LOCK_STEP,
) -> None:
    """Refuse to go on behind episodes of another team, of other seeds, or played otherwise.

    Args:
        path: the results file.
        earlier: what it holds.
        team: name of the team that is to play.
        seeds: an episode's seed by its index.
        how: mode and disturbances of this run.

    Raises:
        UserError: an episode is not of this run.
    """
    for episode in earlier:
        if episode.team != team:
            raise UserError(
                f"{path}: episode {episode.index} was played by team '{episode.team}', not "
                f"'{team}'; give another results file"
            )
        if episode.seed != seeds(episode.index):
            raise UserError(
                f"{path}: episode {episode.index} was not played with this seed; give that run's "
                "seed, or another results file"
            )
        if episode.how != how:
            raise UserError(
                f"{path}: episode {episode.index} was played in {episode.how}, not in {how}; play "
                "in the same way, or give another results file"
            )


def check_same_models(
    path: Path, earlier: Sequence[EpisodeResult], robots: Sequence[str], models: Sequence[str]
) -> None:
    """Refuse to mix episodes of robots that fly other models; raises `UserError` if they do."""
    for episode in earlier:
        for robot, then, now in zip(robots, episode.models, models, strict=True):
            if then != now:
                raise UserError(
                    f"{path}: in episode {episode.index}, {robot} flew the model {then[:12]}, now "
                    f"it has {now[:12]}; give it that bundle again, or another results file"
                )


def summary(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """Figures of a run: mean return, steps per second, latency percentiles, misses.

    Percentiles are NaN where no robot ever answered.
    """
    returns = np.array([result.team_return for result in results])
    latencies_s = np.concatenate([result.latencies_s for result in results])
    compute_s = np.concatenate([result.compute_s for result in results])
    steps = sum(result.steps for result in results)
    wins = [result.outcome == "won" for result in results if result.outcome]
    return {
        "episodes": len(results),
        "return": float(returns.mean()),
        "win_rate": float(np.mean(wins)) if wins else None,
        "steps_per_second": steps / sum(result.seconds for result in results),
        "latency_p50_ms": _percentile_ms(latencies_s, 50),
        "latency_p99_ms": _percentile_ms(latencies_s, 99),
        "compute_p50_ms": _percentile_ms(compute_s, 50),
        "compute_p99_ms": _percentile_ms(compute_s, 99),
        "missed_deadlines": sum(result.missed_deadlines for result in results),
        "safe_actions": sum(result.safe_actions for result in results),
        "overridden_actions": sum(result.overridden_actions for result in results),
        "illegal_actions": sum(result.illegal_actions for result in results),
    }


def _percentile_ms(values_s: npt.NDArray[np.float64], q: float) -> float:
    return float(np.percentile(values_s, q)) * 1e3 if len(values_s) else math.nan
