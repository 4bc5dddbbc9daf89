"""What messages buy: rows of the results page, and retention against bits per second."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kdmarl_core.bundle import FORMATS, UNDISTURBED, Disturbance
from kdmarl_core.experiments import scores
from kdmarl_core.experiments.cells import Cell
from kdmarl_core.experiments.plan import Messages
from kdmarl_core.metrics import Interval, percent
from kdmarl_core.team import Team

BOUND = "bound without messages"
HEARING = "bound that hears what others sense, at once"
HEADER = ("variant", "bits per robot and step", "bits/s", "score", "seeds", "retention %")


class Case(NamedTuple):
    """Students of one variant, and what happens to their messages."""

    variant: str
    disturbance: str  # empty: none

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.variant}, {self.disturbance}" if self.disturbance else self.variant

    @property
    def slug(self) -> str:
        """For files."""
        return self.name.replace(", ", "-").replace(" ", "_").replace("%", "percent")


class Played(NamedTuple):
    """A case's students by training seed, and the bits of the robot that tells most."""

    case: Case
    bits_per_step: int
    bits_per_second: float
    students: tuple[Cell, ...]


class Known(NamedTuple):
    """What a team's students are compared with, where it has been computed."""

    teacher: Cell | None = None
    random: Cell | None = None
    bound: Cell | None = None  # of silent robots
    hearing: Cell | None = None  # of robots that hear all that their peers sense, at once

    def retention(self, players: Sequence[Cell]) -> Interval | None:
        """What students or a bound keep of the teacher's score."""
        return scores.retention(players, self.teacher, self.random)


def cases(plan: Messages, team: str, variant: str) -> dict[Case, Disturbance]:
    """What is played with the students of a variant."""
    found = {Case(variant, ""): UNDISTURBED}
    if variant in plan.disturbed.get(team, ()):
        for name, how in plan.disturbances.items():
            found[Case(variant, name)] = Disturbance(how.loss, how.delay_steps)
    return found


def bits_per_step(team: Team) -> int:
    """Bits of one step of the robot that tells most."""
    told = [robot.messages for robot in team.robots if robot.messages]
    return max((spec.size * FORMATS[spec.format].bits for spec in told), default=0)


def page_rows(found: Sequence[Played], known: Known) -> list[list[str]]:
    """One line per case, and one per bound."""
    lines = [
        [
            played.case.name,
            str(played.bits_per_step),
            f"{played.bits_per_second:g}",
            *_result(played.students, known),
        ]
        for played in found
    ]
    for name, bound in ((BOUND, known.bound), (HEARING, known.hearing)):
        if bound is not None:
            lines.append([name, "", "", *_result((bound,), known)])
    return lines


def _result(players: Sequence[Cell], known: Known) -> list[str]:
    kept = known.retention(players)
    return [scores.score(players), str(len(players) or ""), percent(kept) if kept else ""]


def summary(
    team: str, found: Sequence[Played], variants: Sequence[str], known: Known
) -> list[str]:
    """One line: what a team keeps in each of these variants, and the bound without messages."""
    students = {
        played.case.variant: played.students for played in found if not played.case.disturbance
    }
    bound = (known.bound,) if known.bound else ()
    players = [*(students.get(name, ()) for name in variants), bound]
    kept = [known.retention(cells) for cells in players]
    return [team, *(f"{100 * share.value:.1f}" if share else "" for share in kept)]


def figures(team: str, found: Sequence[Played], known: Known) -> list[dict[str, Any]]:
    """The cases for programs, where students have been distilled."""
    return [
        {
            "team": team,
            "variant": played.case.name,
            "bits_per_step": played.bits_per_step,
            "bits_per_second": played.bits_per_second,
            "scores": [float(cell.scores.mean()) for cell in played.students],
            "retention": kept and kept._asdict(),
        }
        for played in found
        for kept in [known.retention(played.students)]
        if played.students
    ]


def draw(title: str, found: Sequence[Played], known: Known, path: Path) -> None:
    """Retention against bits per second, with the bound without messages, as PNG."""
    from matplotlib.figure import Figure

    from kdmarl_core.pictures import save_png

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    there: Counter[float] = Counter()  # points of one rate, whose names go to both sides in turn
    for played in found:
        kept = known.retention(played.students)
        if kept is None or played.case.disturbance:
            continue
        value, low, high = (100 * part for part in kept)
        axes.errorbar(
            played.bits_per_second,
            value,
            yerr=[[value - low], [high - value]],
            fmt="o",
            capsize=3,
            color="#3366cc",
        )
        on_left = there[played.bits_per_second] % 2 == 1
        there[played.bits_per_second] += 1
        axes.annotate(
            played.case.variant,
            (played.bits_per_second, value),
            xytext=(-6 if on_left else 6, -3),
            textcoords="offset points",
            ha="right" if on_left else "left",
            fontsize=8,
        )
    most = max((played.bits_per_second for played in found), default=0.0)
    end = 1.15 * most + 1
    share = known.retention((known.bound,)) if known.bound else None
    if share is not None:
        height = 100 * share.value
        axes.axhline(height, color="#aa3377", linestyle="--", linewidth=1)
        # On the right, away from what silence keeps.
        axes.annotate(f"{BOUND} ", (end, height), fontsize=8, ha="right", va="bottom")
    axes.set(title=title, xlabel="bits per second and robot", ylabel="retention, %")
    axes.set_xlim(-0.03 * most - 1, end)
    axes.grid(visible=True, color="#eeeeee")
    save_png(figure, path)
