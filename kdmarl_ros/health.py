"""A policy node's state in words and figures, as /diagnostics shows it. No ROS here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kdmarl_core.bundle import Manifest

OK, WARN, ERROR = 0, 1, 2  # the levels of diagnostic_msgs/DiagnosticStatus
OVERRUNS_IN_A_ROW = 10  # late decisions that are more than a nuisance

# What cannot be acted on, and how it is called.
_ERRORS = {"stale": "stale", "frozen": "frozen"}
_WARNINGS = {"waiting": "waiting for", "recovering": "recovering"}


@dataclass(frozen=True)
class Snapshot:
    """What a node knows of itself at a moment."""

    state: str  # of the lifecycle
    acting: bool
    given: Mapping[str, str]  # what it was told: bundle, mode, rate, timeout
    failure: str = ""  # the exception that ended its work, one line
    manifest: Manifest | None = None
    signature: str = ""  # who vouches for the model
    stopped: str = ""  # by whom
    overridden: bool = False
    clock_paused: bool = False
    problems: Sequence[str] = ()  # with peers
    troubles: Mapping[str, Sequence[str]] = field(default_factory=dict)  # reason -> inputs
    silent_peers: Sequence[str] = ()  # robots that should tell this one something, and do not
    message_ages: Mapping[str, int] = field(default_factory=dict)  # in steps, by `from_<robot>`
    ages_s: Mapping[str, float] = field(default_factory=dict)  # by input
    counts: Mapping[str, int] = field(default_factory=dict)  # by "<what>/<reason>"
    missed_periods: int = 0
    late_in_a_row: int = 0
    compute_s: Sequence[float] = ()
    latency_s: Sequence[float] = ()


class Report(NamedTuple):
    """One diagnostic status."""

    level: int
    message: str
    values: dict[str, str]


class Health:
    """Turns snapshots into reports; remembers the last one, since counts say what is new."""

    def __init__(self) -> None:
        self._before: Counter[str] = Counter()
        self._missed_before = 0
        self._then_s = math.nan

    def report(self, now: Snapshot, now_s: float) -> Report:
        """The report of a moment, with the rates since the last one."""
        new = Counter(now.counts) - self._before
        missed = now.missed_periods - self._missed_before
        elapsed_s = now_s - self._then_s
        self._before, self._missed_before = Counter(now.counts), now.missed_periods
        self._then_s = now_s
        found = _conditions(now, new, missed)
        level = max((level for level, _ in found), default=OK)
        words = "; ".join(text for _, text in sorted(found, key=lambda item: -item[0]))
        decided = sum(count for key, count in new.items() if key.startswith("decided/"))
        rate_hz = decided / elapsed_s if elapsed_s > 0 else 0.0
        message = words or ("acting" if now.acting else now.state)
        return Report(level, message, _values(now, rate_hz))


def _conditions(now: Snapshot, new: Mapping[str, int], missed: int) -> list[tuple[int, str]]:
    """All that is worth saying, each with its level."""
    found = [(ERROR, f"failed: {now.failure}")] if now.failure else []
    if now.stopped:
        found.append((ERROR, f"stopped {now.stopped}"))
    if not now.acting:
        return found
    found += [(ERROR, problem) for problem in now.problems]
    # Without time nothing can be expected of the sensors.
    silence = WARN if now.clock_paused else ERROR
    if now.clock_paused:
        found.append((WARN, "the simulation's clock stands still"))
    for reason, names in now.troubles.items():
        level = silence if reason in _ERRORS else WARN
        word = _ERRORS.get(reason) or _WARNINGS[reason]
        ages = [
            f"{name} ({now.ages_s[name]:.1f} s)" if reason == "stale" else name for name in names
        ]
        found.append((level, f"{word} {', '.join(ages)}"))
    if now.silent_peers:
        found.append((WARN, f"no messages of {', '.join(now.silent_peers)}"))
    if new.get("decided/non_finite_output"):
        found.append((ERROR, "the network's output is not finite"))
    future = [key for key in new if key.startswith("dropped/") and key.endswith("/future")]
    if future:
        found.append((ERROR, "a clock is wrong: measurements come from the future"))
    if missed:
        level = ERROR if now.late_in_a_row >= OVERRUNS_IN_A_ROW else WARN
        found.append((level, f"too slow: {missed} periods missed"))
    if now.overridden:
        found.append((WARN, "a person chooses the actions"))
    drops = [key.removeprefix("dropped/") for key in new if key.startswith("dropped/")]
    if drops:
        found.append((WARN, f"dropping {', '.join(sorted(drops))}"))
    floods = [key.removeprefix("flooded/") for key in new if key.startswith("flooded/")]
    if floods:
        found.append((WARN, f"flooded by {', '.join(sorted(floods))}"))
    return found


def _values(now: Snapshot, rate_hz: float) -> dict[str, str]:
    values = {"state": now.state, **now.given, "measured_rate_hz": f"{rate_hz:.1f}"}
    if now.manifest is not None:
        values |= {
            "team": now.manifest.team,
            "robot": now.manifest.robot,
            "task": now.manifest.task,
            "model_sha256": now.manifest.model.sha256,
            "model_version": now.manifest.kdmarl_version,
            "signature": now.signature,
        }
    values |= {
        "stopped": now.stopped or "no",
        "missed_periods": str(now.missed_periods),
        **_percentiles("compute", now.compute_s),
        **_percentiles("latency", now.latency_s),
        **{f"age_s/{name}": f"{age:.3f}" for name, age in now.ages_s.items()},
        **{f"age_steps/{name}": str(age) for name, age in now.message_ages.items()},
        **{key: str(count) for key, count in now.counts.items()},
    }
    return values


def _percentiles(name: str, seconds: Sequence[float]) -> dict[str, str]:
    ordered_ms = [1e3 * value for value in sorted(seconds)] or [0.0]
    last = len(ordered_ms) - 1
    return {f"{name}_p{q}_ms": f"{ordered_ms[round(q / 100 * last)]:.3f}" for q in (50, 99)}
