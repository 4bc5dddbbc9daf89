"""Cells become rows, and rows a page: `docs/results.md`.

Every figure of the page comes from a cell; a cell that is missing is an empty place, not a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdmarl_core.errors import UserError
from kdmarl_core.experiments import scores
from kdmarl_core.experiments.cells import Cell
from kdmarl_core.experiments.plan import Row
from kdmarl_core.files import atomic_write
from kdmarl_core.metrics import Interval, mean_difference, normalised_retention
from kdmarl_core.schema import read_text

HEADER = (
    "setting",
    "teacher",
    "random",
    "student",
    "seeds",
    "bound",
    "retention %",
    "of bound %",
    "raw ratio %",
    "source's ratio %",
    "FLOPs/episode",
)


@dataclass(frozen=True)
class RowCells:
    """What is known of a row; students by training seed."""

    row: Row
    teacher: Cell | None
    random: Cell | None
    students: tuple[Cell, ...]
    bound: Cell | None


def retention(cells: RowCells) -> Interval | None:
    """Normalised retention of the students with its interval, if all that it needs is there."""
    return scores.retention(cells.students, cells.teacher, cells.random)


def of_bound(cells: RowCells) -> Interval | None:
    """The students' share of what the bound of their restriction reaches."""
    return scores.retention(cells.students, cells.bound, cells.random)


def bound_retention(cells: RowCells) -> Interval | None:
    """Normalised retention of the bound itself."""
    if not (cells.bound and cells.teacher and cells.random):
        return None
    return normalised_retention(cells.bound.scores, cells.teacher.scores, cells.random.scores)


def raw_ratio(student: float, teacher: float) -> float | None:
    """The ratio that the source prints: of scores, or of losses where both are negative."""
    if student >= 0 < teacher:
        return student / teacher
    return teacher / student if student < 0 > teacher else None


def page_rows(cells: RowCells) -> list[str]:
    """One row's cells as text, in the order of `HEADER`."""
    source = cells.row.rows.source
    reported = source.student(cells.row.setting)
    student = scores.mean_score(cells.students)
    teacher = scores.mean_score([cells.teacher] if cells.teacher else [])
    ratio = None if student is None or teacher is None else raw_ratio(student, teacher)
    source_ratio = None if reported is None else raw_ratio(reported, source.teacher)
    return [
        cells.row.title,
        _score(cells.teacher),
        _score(cells.random),
        scores.score(cells.students),
        str(len(cells.students) or ""),
        _bound(cells),
        _percent(retention(cells)),
        _percent(of_bound(cells)),
        "" if ratio is None else f"{100 * ratio:.1f}",
        "" if source_ratio is None else f"{100 * source_ratio:.1f}",
        _flops(cells),
    ]


def summary(found: Sequence[RowCells], settings: Sequence[str]) -> list[list[str]]:
    """One line per task: what students keep in each setting, and how many fewer FLOPs they take.

    In percent, with the bound of the restriction in brackets. An asterisk says that the students
    are those of an assistant, where these are better: with as many training seeds, and by more
    than chance.
    """
    best: dict[str, dict[str, RowCells]] = {}
    for cells in found:
        row, setting = best.setdefault(cells.row.task, {}), cells.row.setting
        if retention(cells):
            row[setting] = _better(row[setting], cells) if setting in row else cells
    lines = []
    for task, row in best.items():
        texts = [_at_a_glance(row[setting]) if setting in row else "" for setting in settings]
        fewer = [share for cells in row.values() if (share := _fewer_flops(cells)) is not None]
        spread = f"{min(fewer):.1f} to {max(fewer):.1f} times" if fewer else ""
        lines.append([task, *texts, spread])
    return lines


def markdown(title: str, table: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """A table with its heading."""
    return f"## {title}\n\n{markdown_table(table, header)}"


def markdown_table(table: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """A table."""
    return "\n".join([_line(header), _line(["---"] * len(header)), *map(_line, table), ""])


def put_between(page: Path, name: str, text: str) -> None:
    """Replace what stands between a page's lines `<!-- name -->` and `<!-- end of name -->`.

    Raises:
        UserError: the page is missing or has no such lines.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, found, rest = read_text(page).partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise UserError(f"{page}: has no lines '{begin.strip()}' and '{end.strip()}'; add them")
    atomic_write(page, f"{before}{begin}{text}{end}{after}".encode())


def _score(cell: Cell | None) -> str:
    return scores.score([cell] if cell else [])


def _bound(cells: RowCells) -> str:
    share = bound_retention(cells)
    return "" if share is None else f"{_score(cells.bound)} ({100 * share.value:.1f} %)"


def _percent(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"{100 * interval.value:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _flops(cells: RowCells) -> str:
    if not cells.students:
        return ""
    own, fewer = _mean_flops(cells), _fewer_flops(cells)
    return f"{own:,.0f}" + ("" if fewer is None else f" ({fewer:.1f}x fewer)")


def _mean_flops(cells: RowCells) -> float:
    return float(np.mean([cell.flops_per_episode for cell in cells.students]))


def _fewer_flops(cells: RowCells) -> float | None:
    """How many times as many the teacher takes."""
    return cells.teacher.flops_per_episode / _mean_flops(cells) if cells.teacher else None


def _better(one: RowCells, other: RowCells) -> RowCells:
    own, assisted = sorted((one, other), key=lambda cells: cells.row.assisted)
    gained = mean_difference(
        [cell.scores for cell in assisted.students], [cell.scores for cell in own.students]
    )
    return assisted if gained.low > 0 and len(assisted.students) >= len(own.students) else own


def _at_a_glance(cells: RowCells) -> str:
    kept, bound = retention(cells), bound_retention(cells)
    assert kept is not None
    by_assistant = "*" if cells.row.assisted else ""
    of_bound = f" ({100 * bound.value:.1f})" if bound else ""
    return f"{100 * kept.value:.1f}{by_assistant}{of_bound}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
