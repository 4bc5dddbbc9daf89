"""Running a deployment: the robots' processes and the bridge, watched until the last episode."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

from kdmarl_core.errors import UserError
from kdmarl_ros import results
from kdmarl_ros.deployment import Deployment, Process
from kdmarl_ros.results import EpisodeResult
from kdmarl_ros.spin import PARENT_VARIABLE

POLL_S = 0.1
INTERRUPT_GRACE_S = 5.0
TERMINATE_GRACE_S = 2.0


def fly(
    deployment: Deployment,
    logs: Path,
    stop: Event,
    report: Callable[[list[EpisodeResult]], None],
    warn: Callable[[str], None],
) -> list[EpisodeResult]:
    """Start all processes, wait for the last episode or `stop`, end all processes.

    Args:
        deployment: what to start.
        logs: folder that receives what each process prints.
        stop: set it to end early.
        report: called with the episodes that were finished since the last call.
        warn: called with what went wrong with a recording; the swarm flies on.

    Raises:
        UserError: a process ended before its time.
    """
    logs.mkdir(parents=True, exist_ok=True)
    reader = results.Reader(deployment.results)
    finished: list[EpisodeResult] = []

    def take() -> None:
        new = reader.new()
        if new:
            finished.extend(new)
            report(new)

    def warn_of_recorder() -> None:
        recorder = deployment.recorder
        if recorder and not warned and children[recorder.label].poll() not in (None, 0):
            warned.append(str(_ended(recorder, children[recorder.label], logs)))
            warn(warned[0])

    warned: list[str] = []
    with _running(deployment, logs) as children:
        bridge = children[deployment.bridge.label]
        while bridge.poll() is None and not stop.is_set():
            warn_of_recorder()
            _refuse_dead_robots(deployment, children, logs)
            take()
            stop.wait(POLL_S)
        if bridge.poll() not in (None, 0):
            raise _ended(deployment.bridge, bridge, logs)
    take()
    warn_of_recorder()
    return finished


@contextlib.contextmanager
def _running(deployment: Deployment, logs: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    children: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for process in deployment.processes:
            children[process.label] = _start(process, logs)
        yield children
    finally:
        _end(list(children.values()))


def _start(process: Process, logs: Path) -> subprocess.Popen[bytes]:
    with _log_file(process, logs).open("wb") as log:
        return subprocess.Popen(
            process.command(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the terminal's Ctrl-C is ours to pass on, once
            env={**os.environ, PARENT_VARIABLE: str(os.getpid()), **process.environment},
        )


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    """Interrupt all, then terminate, then kill what is left."""
    for number, grace_s in (
        (signal.SIGINT, INTERRUPT_GRACE_S),
        (signal.SIGTERM, TERMINATE_GRACE_S),
        (signal.SIGKILL, TERMINATE_GRACE_S),
    ):
        for child in children:
            if child.poll() is None:
                child.send_signal(number)
        give_up_s = time.monotonic() + grace_s
        while any(child.poll() is None for child in children) and time.monotonic() < give_up_s:
            time.sleep(0.01)


def _refuse_dead_robots(
    deployment: Deployment, children: dict[str, subprocess.Popen[bytes]], logs: Path
) -> None:
    for process in deployment.flying:
        if children[process.label].poll() is not None:
            raise _ended(process, children[process.label], logs)


def _ended(process: Process, child: subprocess.Popen[bytes], logs: Path) -> UserError:
    log = _log_file(process, logs)
    lines = log.read_text(errors="replace").strip().splitlines()
    said = lines[-1] if lines else "nothing"
    return UserError(
        f"{process.label}: {process.executable} ended with code {child.returncode}; it said: "
        f"{said.removeprefix('kdmarl: ')} (log: {log})"
    )


def _log_file(process: Process, logs: Path) -> Path:
    return logs / f"{process.label}.log"
