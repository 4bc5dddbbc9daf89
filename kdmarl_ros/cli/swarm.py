"""`kdmarl swarm`: a team over ROS 2, one process per robot and the simulator."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from kdmarl_core.cli.common import (
    add_json,
    add_output,
    add_seed,
    positive,
    print_json,
    print_table,
    progress_bar,
)
from kdmarl_ros.simulation import SimulationSettings

if TYPE_CHECKING:
    from kdmarl_ros.deployment import SecurityPlan
    from kdmarl_ros.parameter_files import Value
    from kdmarl_ros.results import EpisodeResult


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "swarm", help="fly a team over ROS 2: one process per robot, and the simulator"
    )
    parser.add_argument("--team", required=True, help="a team that ships, or a YAML file")
    parser.add_argument("--bundles", default="", metavar="DIR", help="default runs/bundles/<team>")
    parser.add_argument("--robots", default="", metavar="DIR", help="folder of parameter files")
    parser.add_argument("--episodes", type=positive, default=100, help="to play (default 100)")
    add_simulation(parser)
    add_output(parser, "runs/swarm/<team>")
    parser.add_argument(
        "--record",
        action="store_true",
        help="record all messages into recording.mcap; with --resume into a further file",
    )
    parser.add_argument(
        "--hosted", action="store_true", help="all robots in one process, for a fleet"
    )
    add_security(parser)
    parser.add_argument("--resume", action="store_true", help="go on behind the last episode")
    add_seed(parser)
    add_json(parser)
    parser.set_defaults(command=swarm_command)


def add_simulation(parser: argparse.ArgumentParser) -> None:
    """When the simulation goes on, and what makes it more like robots."""
    parser.add_argument(
        "--real-time",
        action="store_true",
        help="step and decide at a rate, whoever has answered (default: once all have)",
    )
    parser.add_argument(
        "--rate", type=float, metavar="HZ", help="of real time (default: the task's)"
    )
    for item in dataclasses.fields(SimulationSettings):
        parser.add_argument(
            f"--{item.name.replace('_', '-')}",
            type=type(item.default),
            default=item.default,
            metavar="N",
            help=f"{item.metadata['description']} (default {item.default})",
        )


def add_security(parser: argparse.ArgumentParser) -> None:
    """What is asked of bundles and of the middleware."""
    parser.add_argument(
        "--security",
        choices=("off", "check", "enforce"),
        help="signatures and topics (default: what the parameter files say)",
    )
    parser.add_argument(
        "--trusted-keys", default="", metavar="DIR", help="folder of trusted public keys"
    )
    parser.add_argument(
        "--keystore", default="", metavar="DIR", help="of 'kdmarl keystore', to enforce security"
    )
    parser.add_argument(
        "--allow-unsecured-middleware",
        action="store_true",
        help="enforce signatures although this middleware leaves topics open",
    )


def swarm_command(arguments: argparse.Namespace) -> None:
    """Fly the team and print the figures; Ctrl-C ends it cleanly with what has been flown."""
    from kdmarl_ros.deployment import SecurityPlan, in_time

    folder = Path(arguments.output or f"runs/swarm/{Path(arguments.team).stem}")
    _, figures = fly_team(
        arguments.team,
        bundles=arguments.bundles,
        robots=arguments.robots,
        episodes=arguments.episodes,
        seed=arguments.seed,
        folder=folder,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
        security=SecurityPlan(
            arguments.security or "",
            arguments.trusted_keys,
            arguments.keystore,
            arguments.allow_unsecured_middleware,
        ),
        record=arguments.record,
        overrides=in_time(arguments.real_time, arguments.rate),
        simulation={
            item.name: getattr(arguments, item.name)
            for item in dataclasses.fields(SimulationSettings)
        },
        hosted=arguments.hosted,
    )
    if arguments.json:
        print_json(figures)
    else:
        print_summary(arguments.team, figures)


def fly_team(
    team: str,
    *,
    bundles: str,
    robots: str,
    episodes: int,
    seed: int,
    folder: Path,
    resume: bool,
    overwrite: bool,
    security: SecurityPlan | None = None,
    record: bool = False,
    overrides: Mapping[str, Value] = MappingProxyType({}),
    simulation: Mapping[str, Value] = MappingProxyType({}),
    hosted: bool = False,
) -> tuple[list[EpisodeResult], dict[str, Any]]:
    """Fly a team with a live line; returns its finished episodes and their figures.

    Raises:
        UserError: something cannot be used, a process ended early, or nothing was flown.
    """
    from kdmarl_core.errors import UserError
    from kdmarl_core.files import refuse_existing
    from kdmarl_core.interrupt import deferred_interrupt
    from kdmarl_ros.deployment import AS_CONFIGURED, RECORDING, new_recording, plan_swarm
    from kdmarl_ros.oversight import latch
    from kdmarl_ros.results import summary
    from kdmarl_ros.swarm import fly

    results = folder / "episodes.jsonl"
    recording = None
    if record:
        recording = new_recording(results) if resume else folder / RECORDING
    deployment = plan_swarm(
        team,
        bundles=bundles,
        robots=robots,
        episodes=episodes,
        seed=seed,
        results=results,
        overrides=overrides,
        simulation=simulation,
        security=security or AS_CONFIGURED,
        recording=recording,
        hosted=hosted,
    )
    if deployment.warning:
        warn(deployment.warning)
    for robot in deployment.robots:
        stops = latch(str(robot.parameters.get("state_directory", "")), robot.namespace)
        if stops.stopped:
            warn(
                f"{robot.namespace} is stopped {stops.reason}, and takes its safe action until "
                f"whoever stopped it releases it, or {stops.path} is removed"
            )
    refuse_existing(folder, results.name, overwrite=overwrite or resume)
    if not resume:
        results.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    results.touch()
    with progress_bar() as bar, deferred_interrupt() as stop:
        line = bar.add_task(
            f"fly {deployment.team.name}", total=episodes, figures="robots are starting"
        )

        def report(new: list[EpisodeResult]) -> None:
            figures = summary(new)
            shown = f"return {figures['return']:.2f}, {figures['steps_per_second']:.0f} steps/s"
            bar.update(line, advance=len(new), figures=shown)

        finished = fly(deployment, folder / "logs", stop, report, warn)
    files = {"results": str(results)} | ({"recording": str(recording)} if recording else {})
    if not finished:
        raise UserError(f"{results}: interrupted before the first episode ended; fly again")
    return finished, summary(finished) | files


def warn(text: str) -> None:
    """What the user must know although the flight goes on."""
    print(f"kdmarl: warning: {text}", file=sys.stderr)


def print_summary(team: str, figures: dict[str, Any]) -> None:
    """Figures of a flight for people."""
    rows = [
        ["episodes", f"{figures['episodes']}"],
        ["return", f"{figures['return']:.3f}"],
        ["steps per second", f"{figures['steps_per_second']:.0f}"],
        [
            "latency p50 / p99",
            f"{figures['latency_p50_ms']:.2f} / {figures['latency_p99_ms']:.2f} ms",
        ],
        [
            "compute p50 / p99",
            f"{figures['compute_p50_ms']:.3f} / {figures['compute_p99_ms']:.3f} ms",
        ],
        ["missed deadlines", f"{figures['missed_deadlines']}"],
        ["safe actions", f"{figures['safe_actions']}"],
    ]
    print_table(f"{team} over ROS 2", ["figure", "value"], rows)
