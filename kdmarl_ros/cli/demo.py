"""`kdmarl demo`: the whole path, from the shipped teacher to a team that flies over ROS 2."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdmarl_core.cli.common import add_seed, positive, print_table

if TYPE_CHECKING:
    import numpy as np

    from kdmarl_core.distil.run import DistilledTeam
    from kdmarl_ros.results import EpisodeResult

DASH = "-"


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("demo", help="distil the shipped teacher afresh and fly the team")
    parser.add_argument("--team", default="simple_spread", help="default simple_spread")
    parser.add_argument("--episodes", type=positive, default=50, help="to fly (default 50)")
    parser.add_argument("--output", default="runs/demo", metavar="DIR", help="default runs/demo")
    add_seed(parser)
    parser.set_defaults(command=demo_command)


def demo_command(arguments: argparse.Namespace) -> None:
    """Distil, fly, print one table, draw one episode."""
    from kdmarl_core.cli.distil import run_distil
    from kdmarl_ros.cli.swarm import fly_team

    folder = Path(arguments.output)
    done = run_distil(
        arguments.team,
        teacher=None,
        recipe=None,
        output=str(folder / "bundles"),
        overwrite=True,
        resume=False,
        buffer=None,
        episodes=1000,
        threads=2,
        seed=arguments.seed,
    )
    flown, figures = fly_team(
        arguments.team,
        bundles=str(folder / "bundles"),
        robots="",
        episodes=arguments.episodes,
        seed=arguments.seed,
        folder=folder / "swarm",
        resume=False,
        overwrite=True,
    )
    _print(done, flown, figures)
    for path in _draw(done, flown, folder):
        print(path)


def _print(done: DistilledTeam, flown: list[EpisodeResult], figures: dict[str, Any]) -> None:
    import numpy as np

    from kdmarl_core.metrics import normalised_retention, percent

    returns = done.played.returns
    over_ros = np.array([episode.team_return for episode in flown])
    cost = done.teacher.cost()
    teacher_cost = [f"{figure:,}" for figure in (cost.parameters, cost.flops, cost.bytes)]
    students = [item.draft.student for item in done.exported]
    student_cost = [
        _range([student.parameters for student in students]),
        _range([student.flops_per_decision for student in students]),
        _range([len(item.model) for item in done.exported]),
    ]
    kept = done.played.measured
    retention = percent(done.played.retention)
    # The same seeds were played offline, so that the comparison is paired.
    first = {name: values[: len(over_ros)] for name, values in returns.items()}
    flown_kept = normalised_retention(over_ros, first["teacher"], first["random"])
    flown_retention = percent(flown_kept)
    latency = f"{figures['latency_p50_ms']:.2f}/{figures['latency_p99_ms']:.2f}"
    rows = [
        ["teacher", _mean(returns["teacher"]), "100%", *teacher_cost, DASH],
        ["students", _mean(returns["student"]), retention, *student_cost, DASH],
        ["over ROS", _mean(over_ros), flown_retention, *student_cost, latency],
        ["random", _mean(returns["random"]), "0%", DASH, DASH, DASH, DASH],
    ]
    header = ["player", "return", "kept [95 %]", "weights", "FLOPs", "bytes", "p50/99 ms"]
    print_table(f"{done.team.task.spec.name}; costs per robot and decision", header, rows)
    print(
        f"returns of {kept.episodes} greedy episodes offline and {len(flown)} over ROS 2, with "
        f"standard errors; {figures['steps_per_second']:.0f} steps/s in lock-step, "
        f"{figures['missed_deadlines']} missed deadlines"
    )


def _draw(done: DistilledTeam, flown: list[EpisodeResult], folder: Path) -> list[Path]:
    from kdmarl_core.evaluate import replay
    from kdmarl_core.pictures import animate, draw_still

    episode = flown[0]
    scenes = replay(done.team.task.make_reference(), episode.seed, episode.actions)
    title = f"{done.team.name} over ROS 2: return {episode.team_return:.2f}"
    still, animation = folder / "episode.png", folder / "episode.gif"
    draw_still(scenes, title, still)
    animate(scenes, title, animation)
    return [still, animation]


def _mean(values: np.ndarray[Any, Any]) -> str:
    from kdmarl_core.metrics import standard_error

    return f"{values.mean():.2f} ± {standard_error(values):.2f}"


def _range(values: list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
