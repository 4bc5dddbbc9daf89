"""How much of a bare rclpy program's speed the loop keeps: lock-step rate and latency.

Two comparisons, interleaved in one run over several rounds:

- a swarm (bridge with simulator, and one policy node per robot) against bare rclpy nodes that echo
  the same messages over the same topics: lock-step steps per second;
- one policy node against one bare node, timed in turn by the same process: sensor to action. With
  `--against TEAM` the same of a second team, and the quotient of both: what messages cost; with
  `--real-time HZ` once more in real time, where a robot waits for its next period to act.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from threading import Event

import numpy as np
from common import (
    Figure,
    echo_command,
    figures_of,
    layout_of,
    leave_other_robots_alone,
    running,
    show,
)

from kdmarl_core.bundle import read_bundle
from kdmarl_core.cli.common import add_json, add_seed, positive, run
from kdmarl_ros import results
from kdmarl_ros.cli.swarm import warn
from kdmarl_ros.deployment import Deployment, plan_swarm
from kdmarl_ros.swarm import fly

WARM_UP_EPISODES = 4
FLOOR_STEPS = 2500
TIMEOUT_S = 120.0
RATE_GOAL = 0.7
P50_GOAL = 1.2
P99_GOAL = 1.5

Round = dict[str, float]  # name of a figure -> its value in this round


def main() -> int:
    """Parse and run; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--team", default="simple_spread", help="default simple_spread")
    parser.add_argument("--bundles", default="", metavar="DIR", help="default runs/bundles/<team>")
    parser.add_argument(
        "--against", metavar="TEAM", help="whose latency this team's is divided by"
    )
    parser.add_argument(
        "--real-time", type=positive, metavar="HZ", help="with --against, at that rate as well"
    )
    parser.add_argument("--rounds", type=positive, default=7, help="default 7")
    parser.add_argument("--episodes", type=positive, default=100, help="per round (default 100)")
    parser.add_argument("--trips", type=positive, default=1000, help="per round (default 1000)")
    add_seed(parser)
    add_json(parser)
    return run(measure, parser.parse_args())


def measure(arguments: argparse.Namespace) -> None:
    """Run all rounds and print the figures."""
    leave_other_robots_alone()
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(arguments.rounds):
            deployment = plan_swarm(
                arguments.team,
                bundles=arguments.bundles,
                episodes=WARM_UP_EPISODES + arguments.episodes,
                seed=arguments.seed,
                results=Path(folder) / f"{index}.jsonl",
            )
            figures = _measure_round(deployment, arguments.trips, floor_first=index % 2 == 1)
            if arguments.against:
                others = _latencies_of(arguments, arguments.against, {})
                for name in ("latency p50 ratio", "latency p99 ratio"):
                    figures[f"{name} / {arguments.against}"] = figures[name] / others[name]
            if arguments.against and arguments.real_time:
                figures |= _in_real_time(arguments)
            rounds.append(figures)
            print(f"round {index + 1} of {arguments.rounds} done", file=sys.stderr)
    show("The loop against bare rclpy", _figures(rounds), as_json=arguments.json)


def _measure_round(deployment: Deployment, trips: int, *, floor_first: bool) -> Round:
    rates: list[tuple[str, Callable[[Deployment], float]]] = [
        ("swarm, steps/s", _swarm_rate),
        ("floor, steps/s", _floor_rate),
    ]
    figures = {}
    for name, rate in reversed(rates) if floor_first else rates:
        figures[name] = rate(deployment)
    figures["rate ratio"] = figures["swarm, steps/s"] / figures["floor, steps/s"]
    return figures | _latencies(deployment, trips)


def _in_real_time(arguments: argparse.Namespace) -> Round:
    """Latencies of both teams' policy nodes, which wait for their periods, and their quotients."""
    timing: dict[str, str | float] = {"mode": "real_time", "rate_hz": float(arguments.real_time)}
    teams = (arguments.team, arguments.against)
    found = [_latencies_of(arguments, team, timing) for team in teams]
    figures = {}
    for percent in (50, 99):
        these, others = (latencies[f"policy node p{percent}, ms"] for latencies in found)
        figures[f"real time p{percent}, ms"] = these
        figures[f"real time p{percent} / {arguments.against}"] = these / others
    return figures


def _latencies_of(
    arguments: argparse.Namespace, team: str, overrides: dict[str, str | float]
) -> Round:
    """Latencies of a team's policy node with these parameters."""
    with tempfile.TemporaryDirectory() as folder:
        planned = plan_swarm(
            team,
            bundles=arguments.bundles if team == arguments.team else "",
            episodes=1,
            seed=arguments.seed,
            results=Path(folder) / "unused.jsonl",
            overrides=overrides,
        )
        return _latencies(planned, arguments.trips)


def _swarm_rate(deployment: Deployment) -> float:
    logs = deployment.results.parent / "logs"
    finished = fly(deployment, logs, Event(), lambda _: None, warn)[WARM_UP_EPISODES:]
    missed = sum(episode.missed_deadlines for episode in finished)
    if missed:
        print(f"{missed} deadlines were missed", file=sys.stderr)
    rate: float = results.summary(finished)["steps_per_second"]
    return rate


def _floor_rate(deployment: Deployment) -> float:
    layout = layout_of(deployment.team.robots)
    robots = [echo_command("robot", {name: blocks}) for name, blocks in layout.items()]
    with running(robots):
        rate: float = figures_of(echo_command("driver", layout, str(FLOOR_STEPS)), TIMEOUT_S)
    return rate


def _latencies(deployment: Deployment, trips: int) -> Round:
    robot = deployment.team.robots[0]
    [(policy, blocks)] = layout_of([robot]).items()
    echo = f"{policy}_echo"
    manifest, _ = read_bundle(Path(str(deployment.robots[0].parameters["bundle"])))
    told = {peer.robot: (peer.size, peer.format, manifest.training) for peer in robot.peers}
    peers = {policy: told}
    nodes = [deployment.robots[0].command(), echo_command("robot", {echo: blocks})]
    with running(nodes):
        probe = echo_command(
            "probe", {policy: blocks, echo: blocks}, str(trips), "--peers", json.dumps(peers)
        )
        seconds = figures_of(probe, TIMEOUT_S)
    figures = {}
    for percent in (50, 99):
        policy_ms, echo_ms = (
            float(np.percentile(seconds[robot], percent)) * 1e3 for robot in (policy, echo)
        )
        figures[f"policy node p{percent}, ms"] = policy_ms
        figures[f"bare node p{percent}, ms"] = echo_ms
        figures[f"latency p{percent} ratio"] = policy_ms / echo_ms
    return figures


def _figures(rounds: list[Round]) -> list[Figure]:
    least = {"rate ratio": RATE_GOAL}
    most = {"latency p50 ratio": P50_GOAL, "latency p99 ratio": P99_GOAL}
    return [
        Figure(name, tuple(figures[name] for figures in rounds), least.get(name), most.get(name))
        for name in rounds[0]
    ]


if __name__ == "__main__":
    sys.exit(main())
