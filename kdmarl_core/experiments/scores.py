"""What cells of students say together: a mean score, and retention."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdmarl_core.experiments.cells import Cell
from kdmarl_core.metrics import Interval, normalised_retention


def retention(students: Sequence[Cell], best: Cell | None, random: Cell | None) -> Interval | None:
    """Students' normalised share of the best's score with its interval, if all cells are there."""
    if not students or best is None or random is None:
        return None
    return normalised_retention([cell.scores for cell in students], best.scores, random.scores)


def mean_score(students: Sequence[Cell]) -> float | None:
    """The mean over training seeds; None without any."""
    return float(np.mean([cell.scores.mean() for cell in students])) if students else None


def score(students: Sequence[Cell]) -> str:
    """The mean score for people; empty without any."""
    mean = mean_score(students)
    if mean is None:
        return ""
    return f"{100 * mean:.1f} % won" if students[0].won else f"{mean:.2f}"
