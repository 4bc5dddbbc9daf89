"""What one policy node costs its robot: memory, processor, and time from process start to acting.

Each run starts the process anew, observes it from outside and drives it for 1,000 steps as fast as
it answers, then for some seconds at 10 Hz. One more
run, not timed, lists what the process imports: neither torch nor jax may be among it.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import rclpy
from common import Figure, layout_of, leave_other_robots_alone, running, show
from echo import Probe, await_robots
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from rclpy.client import Client
from rclpy.executors import SingleThreadedExecutor

from kdmarl_core.cli.common import add_json, positive, run
from kdmarl_core.errors import UserError
from kdmarl_ros import topics
from kdmarl_ros.deployment import Process, plan_swarm

STEPS = 1000
RSS_GOAL_MB = 100.0
CPU_GOAL_PERCENT = 10.0
RATE_HZ, RATE_SECONDS = 10.0, 5.0
START_GOAL_S = 1.5
START_TIMEOUT_S = 30.0
POLL_S = 0.005
ANSWER_TIMEOUT_S = 0.2
TRAINING = ("torch", "jax", "jaxlib", "jaxmarl")

Run = dict[str, float]  # name of a figure -> its value in this run


def main() -> int:
    """Parse and run; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--team", default="simple_spread", help="default simple_spread")
    parser.add_argument("--bundles", default="", metavar="DIR", help="default runs/bundles/<team>")
    parser.add_argument("--runs", type=positive, default=7, help="processes to start (default 7)")
    add_json(parser)
    return run(measure, parser.parse_args())


def measure(arguments: argparse.Namespace) -> None:
    """Run all runs and print the figures."""
    leave_other_robots_alone()
    deployment = plan_swarm(
        arguments.team, bundles=arguments.bundles, episodes=1, seed=0, results=Path("unused")
    )
    robot, process = deployment.team.robots[0], deployment.robots[0]
    blocks = layout_of([robot])
    rclpy.init()
    found = _training_imports(process)
    runs = []
    for index in range(1 + arguments.runs):
        figures = _measure_run(process, blocks)
        if index:  # the first one fills the page cache
            runs.append(figures)
            print(f"run {index} of {arguments.runs} done", file=sys.stderr)
    rclpy.try_shutdown()
    summary = [
        Figure("RSS after 1,000 steps, MB", _column(runs, "rss"), most=RSS_GOAL_MB, by="max"),
        Figure("PSS after 1,000 steps, MB", _column(runs, "pss")),
        Figure("of a core at 10 Hz, %", _column(runs, "cpu"), most=CPU_GOAL_PERCENT, by="max"),
        Figure("start to active, s", _column(runs, "start"), most=START_GOAL_S, by="max"),
        Figure("libraries of torch or jax", _column(runs, "libraries"), most=0, by="max"),
        Figure("modules of torch or jax", (float(len(found)),), most=0, by="max"),
    ]
    show("One policy node", summary, as_json=arguments.json)


def _column(runs: Sequence[Run], name: str) -> tuple[float, ...]:
    return tuple(figures[name] for figures in runs)


def _measure_run(process: Process, layout: dict[str, dict[str, int]]) -> Run:
    probe = Probe(layout)
    executor = SingleThreadedExecutor()
    executor.add_node(probe)
    try:
        begun_s = time.monotonic()
        with running([process.command()]) as [child]:
            _await_active(probe, executor, process, child)
            start_s = time.monotonic() - begun_s
            await_robots(probe, executor)
            probe.measure(executor, STEPS)
            memory = _memory_mb(child.pid)
            cpu = _cpu_percent(probe, executor, child.pid)
            return {"start": start_s, **memory, "cpu": cpu, "libraries": _libraries(child.pid)}
    finally:
        executor.shutdown()
        probe.destroy_node()


def _await_active(
    probe: Probe,
    executor: SingleThreadedExecutor,
    process: Process,
    child: subprocess.Popen[bytes],
) -> None:
    """Ask for the node's state until it is active."""
    name = f"/{topics.of_robot(process.namespace, process.name)}/get_state"
    client: Client[GetState.Request, GetState.Response] = probe.create_client(GetState, name)
    give_up_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < give_up_s and child.poll() is None:
        if not client.service_is_ready():
            time.sleep(POLL_S)
            continue
        future = client.call_async(GetState.Request())
        executor.spin_until_future_complete(future, timeout_sec=ANSWER_TIMEOUT_S)
        answer = future.result() if future.done() else None
        if answer is not None and answer.current_state.id == State.PRIMARY_STATE_ACTIVE:
            probe.destroy_client(client)
            return
    raise UserError(f"{process.label}: not active after {START_TIMEOUT_S:g} s; see its log above")


def _memory_mb(pid: int) -> dict[str, float]:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = {key: float(kb) for key, kb in re.findall(r"^(Rss|Pss):\s+(\d+) kB", text, re.M)}
    return {"rss": found["Rss"] * 1024 / 1e6, "pss": found["Pss"] * 1024 / 1e6}


def _cpu_percent(probe: Probe, executor: SingleThreadedExecutor, pid: int) -> float:
    """Share of a core that the process takes while it decides at 10 Hz."""
    times = psutil.Process(pid).cpu_times
    before, begun_s = times(), time.monotonic()
    probe.drive(executor, RATE_HZ, RATE_SECONDS)
    after, seconds = times(), time.monotonic() - begun_s
    percent: float = 100 * (after.user + after.system - before.user - before.system) / seconds
    return percent


def _libraries(pid: int) -> int:
    """Number of mapped files that belong to a training library."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    mapped = {line.split(maxsplit=5)[5] for line in lines if line.count("/")}
    return sum(bool(re.search(r"/(lib)?(torch|jax)", path)) for path in mapped)


def _training_imports(process: Process) -> list[str]:
    """Training modules that the process imports on its way to acting."""
    environment = os.environ | {"PYTHONPROFILEIMPORTTIME": "1"}
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            process.command(), stdout=subprocess.DEVNULL, stderr=log, env=environment
        )
        time.sleep(START_GOAL_S * 4)
        child.send_signal(signal.SIGINT)
        child.wait(START_TIMEOUT_S)
        log.seek(0)
        imported = re.findall(r"^import time:.*\|\s*(\S+)$", log.read().decode(), re.M)
    if "onnxruntime" not in imported:
        raise UserError(f"{process.label}: its imports could not be listed")
    return [name for name in imported if name.split(".")[0] in TRAINING]


if __name__ == "__main__":
    sys.exit(main())
