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
    """(R_student - R_random) / (R_teacher - R_random) of mean returns, with its 95 % interval.

    Episodes are drawn with replacement (bootstrap), for all players together if they played the
    same number of them (the same seeds), else for each by itself. Students of several training
    seeds widen the interval by what these differ (`_over_seeds`); those of one say nothing of
    another training. None if the teacher is as good as random actions: nothing can be retained
    then. Where that is so in more than a fortieth of the draws, an end is infinite.
    """
    if teacher.mean() == random.mean():
        return None
    rng = np.random.default_rng(seed)
    trained = [students] if isinstance(students, np.ndarray) else list(students)
    if all(len(values) == len(teacher) for values in (random, *trained)):
        draws = _drawn_means(np.stack([np.mean(trained, 0), teacher, random]), rng)
    else:
        own = [_drawn_means(values[None], rng) for values in (*trained, teacher, random)]
        draws = np.concatenate([np.mean(own[:-2], 0), *own[-2:]])
    gained, possible = draws[0] - draws[2], draws[1] - draws[2]
    known = (gained != 0) | (possible != 0)
    with np.errstate(divide="ignore"):
        shares = gained[known] / possible[known]
    finite = bool(np.isfinite(shares).all())
    low = np.percentile(shares, 2.5, method="linear" if finite else "lower")
    high = np.percentile(shares, 97.5, method="linear" if finite else "higher")
    means = np.array([values.mean() for values in trained])
    kept = (means - random.mean()) / (teacher.mean() - random.mean())
    return _over_seeds(Interval(float(kept.mean()), float(low), float(high)), kept)


def mean_difference(ones: Sequence[Returns], others: Sequence[Returns], seed: int = 0) -> Interval:
    """Difference of mean returns of two methods with several training seeds each, 95 % interval.

    Episodes are drawn with replacement, for both together: all of them play the same ones.
    Training seeds widen the interval, as in `normalised_retention`.
    """
    rng = np.random.default_rng(seed)
    one, other = np.stack(ones), np.stack(others)
    differences = one.mean(0) - other.mean(0)  # of each episode
    low, high = np.percentile(_drawn_means(differences[None], rng), [2.5, 97.5])
    over_episodes = Interval(float(differences.mean()), float(low), float(high))
    return _over_seeds(over_episodes, one.mean(1), other.mean(1))


def _drawn_means(values: Returns, rng: np.random.Generator) -> Returns:
    """Means [P, draws] of episodes drawn with replacement (bootstrap), the same of all players.

    Not all at once: a million drawn episodes take 8 MB and as much for each player.
    """
    episodes = values.shape[1]
    at_once = max(1, 1_000_000 // episodes)
    parts = []
    for first in range(0, BOOTSTRAP_DRAWS, at_once):
        draws = min(at_once, BOOTSTRAP_DRAWS - first)
        parts.append(values[:, rng.integers(episodes, size=(draws, episodes))].mean(-1))
    return np.concatenate(parts, -1)


def _over_seeds(over_episodes: Interval, *groups: Returns) -> Interval:
    """An interval over episodes, widened by what the training seeds of each group differ.

    The 95 % interval of the sum or difference of the groups' means over seeds is Student's, with
    Welch's degrees of freedom, since a bootstrap of three seeds would be far too narrow. Both are
    independent, so their half-widths are added as squares.
    """
    several = [group for group in groups if len(group) > 1]
    squares = np.array([group.var(ddof=1) / len(group) for group in several])
    if not squares.any():
        return over_episodes
    from scipy.special import stdtrit  # here, since who plays a single training does without

    freedom = np.array([len(group) - 1 for group in several])
    degrees = squares.sum() ** 2 / (squares**2 / freedom).sum()
    width = stdtrit(degrees, 0.975) * np.sqrt(squares.sum())
    value, low, high = over_episodes
    return Interval(
        value,
        value - float(np.hypot(value - low, width)),
        value + float(np.hypot(high - value, width)),
    )


def wins(rate: float | None) -> str:
    """A win rate for people; empty where nothing can be won."""
    return "" if rate is None else f"{rate:.1%} won"


def percent(interval: Interval | None) -> str:
    """A retention with its interval for people."""
    if interval is None:
        return "undefined"
    return f"{interval.value:.1%} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
