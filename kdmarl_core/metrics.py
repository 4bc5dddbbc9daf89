"""Figures about returns: means with errors, and retention with its bootstrap interval."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Returns = npt.NDArray[np.float64]

BOOTSTRAP_DRAWS = 2000


@dataclass(frozen=True)
class Evaluation:
    """How well something played, greedily, in the task's reference simulator."""

    mean_return: float
    standard_error: float
    episodes: int
    seed: int
    win_rate: float | None  # None where nothing can be won


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


def standard_error(values: Returns) -> float:
    """Standard error of the mean; zero for a single value."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def normalised_retention(
    students: Returns | Sequence[Returns], teacher: Returns, random: Returns, seed: int = 0
) -> Interval | None:
    """(R_student - R_random) / (R_teacher - R_random) of mean returns, 95 % bootstrap interval.

    Students of several training seeds may be given: seeds are drawn with replacement, and so are
    episodes, for all players together if they played the same number of episodes (the same
    seeds), else for each by itself. None if the teacher is as good as random actions: nothing can
    be retained then. Where that is so in more than a fortieth of the draws, an end is infinite.
    """
    if teacher.mean() == random.mean():
        return None
    rng = np.random.default_rng(seed)
    trained = [students] if isinstance(students, np.ndarray) else list(students)
    episodes = len(teacher)
    paired = all(len(values) == episodes for values in (random, *trained))
    draws = np.empty((BOOTSTRAP_DRAWS, 3))
    for i in range(BOOTSTRAP_DRAWS):
        rows = rng.integers(episodes, size=episodes)

        def drawn(values: Returns, rows: npt.NDArray[np.int64] = rows) -> float:
            index = rows if paired else rng.integers(len(values), size=len(values))
            return float(values[index].mean())

        some = rng.integers(len(trained), size=len(trained))
        draws[i] = np.mean([drawn(trained[k]) for k in some]), drawn(teacher), drawn(random)
    gained, possible = draws[:, 0] - draws[:, 2], draws[:, 1] - draws[:, 2]
    known = (gained != 0) | (possible != 0)
    with np.errstate(divide="ignore"):
        shares = gained[known] / possible[known]
    finite = bool(np.isfinite(shares).all())
    low = np.percentile(shares, 2.5, method="linear" if finite else "lower")
    high = np.percentile(shares, 97.5, method="linear" if finite else "higher")
    mean = np.mean([values.mean() for values in trained])
    value = (mean - random.mean()) / (teacher.mean() - random.mean())
    return Interval(float(value), float(low), float(high))


def mean_difference(ones: Sequence[Returns], others: Sequence[Returns], seed: int = 0) -> Interval:
    """Difference of mean returns of two methods with several training seeds each, 95 % interval.

    Training seeds are drawn with replacement for each method by itself, episodes for both
    together: all of them play the same ones.
    """
    rng = np.random.default_rng(seed)
    one, other = np.stack(ones), np.stack(others)
    draws = np.empty(BOOTSTRAP_DRAWS)
    for i in range(BOOTSTRAP_DRAWS):
        episodes = rng.integers(one.shape[1], size=one.shape[1])
        first, second = (
            values[rng.integers(len(values), size=len(values))][:, episodes].mean()
            for values in (one, other)
        )
        draws[i] = first - second
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(float(one.mean() - other.mean()), float(low), float(high))


def wins(rate: float | None) -> str:
    """A win rate for people; empty where nothing can be won."""
    return "" if rate is None else f"{rate:.1%} won"


def percent(interval: Interval | None) -> str:
    """A retention with its interval for people."""
    if interval is None:
        return "undefined"
    return f"{interval.value:.1%} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
