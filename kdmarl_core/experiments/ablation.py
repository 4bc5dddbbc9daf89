"""The ablation's rows: each variant beside the one with every term on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from kdmarl_core.experiments import scores
from kdmarl_core.experiments.cells import Cell
from kdmarl_core.metrics import Interval, Returns, mean_difference, percent


class Distilled(NamedTuple):
    """One variant's students, by training seed."""

    name: str
    students: tuple[Cell, ...]


def change_of_retention(
    variant: Distilled, full: Distilled, teacher: Cell, random: Cell
) -> Interval | None:
    """How much retention a variant gains on the one with every term on, as a share."""
    if not (variant.students and full.students):
        return None
    span = float(teacher.scores.mean() - random.scores.mean())
    if span == 0:
        return None
    gained = mean_difference(_scores(variant), _scores(full))
    return Interval(*(value / span for value in gained))


def page_rows(
    variants: Sequence[Distilled], teacher: Cell | None, random: Cell | None
) -> list[list[str]]:
    """One line per variant; the first has every term on."""
    lines = []
    for variant in variants:
        if not variant.students or teacher is None or random is None:
            lines.append([variant.name, "", "", "", ""])
            continue
        change = change_of_retention(variant, variants[0], teacher, random)
        lines.append(
            [
                variant.name,
                scores.score(variant.students),
                str(len(variant.students)),
                percent(scores.retention(variant.students, teacher, random)),
                "" if variant is variants[0] or change is None else _points(change),
            ]
        )
    return lines


def figures(
    team: str, variants: Sequence[Distilled], teacher: Cell | None, random: Cell | None
) -> list[dict[str, Any]]:
    """The same for programs, where students have been distilled."""
    found = []
    for variant in variants:
        if not variant.students:
            continue
        kept, change = scores.retention(variant.students, teacher, random), None
        if teacher and random and variant is not variants[0]:
            change = change_of_retention(variant, variants[0], teacher, random)
        found.append(
            {
                "team": team,
                "variant": variant.name,
                "scores": [float(cell.scores.mean()) for cell in variant.students],
                "retention": kept and kept._asdict(),
                "change": change and change._asdict(),
            }
        )
    return found


def _scores(variant: Distilled) -> list[Returns]:
    return [cell.scores for cell in variant.students]


def _points(change: Interval) -> str:
    value, low, high = (100 * part for part in change)
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
