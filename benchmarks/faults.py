"""How long a robot acts on after a fault: time to the safe action, over DDS, on this machine.

One policy node in real time is driven by this process. In every trial it acts until a fault is
provoked; the time ends when its safe action arrives here. The table can be written into
docs/reliability.md. `--soak` and `--hostile` instead run one node for long and look at its
memory.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from common import leave_other_robots_alone, write_table
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.client import Client
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_msgs.msg import Bool
from std_srvs.srv import SetBool

from kdmarl_core.bundle import Manifest, load_policy
from kdmarl_core.cli.common import add_json, positive, print_json, print_table, run
from kdmarl_core.errors import UserError
from kdmarl_ros import qos, topics
from kdmarl_ros.deployment import Process, plan_swarm
from kdmarl_ros.msg import AgentAction, FeatureBlock

RATE_HZ = 20.0
TIMEOUT_S = 0.3
COMMAND_GOAL_S = 0.1 + 1 / RATE_HZ  # services, latched topics and signals may wait for 0.1 s
EVERY_S = 0.01  # between two steps of the sensors
ACTING_STEPS = 10  # answered before a fault is provoked
PATIENCE_S = 30.0
FROZEN_AFTER = 20  # equal messages
MEMORY_EVERY = 1000  # steps
PAGE = Path("docs/reliability.md")


class Driver(Node):
    """Sends a robot's blocks, hears its actions."""

    def __init__(self, robot: str, manifest: Manifest) -> None:
        super().__init__("faults", start_parameter_services=False)
        self.robot, self.manifest = robot, manifest
        self.blocks = {
            block.name: self.create_publisher(
                FeatureBlock,
                topics.of_robot(robot, topics.sensor(block.name)),
                qos.sensor("reliable"),
            )
            for block in manifest.blocks
        }
        self.step = 0
        self.sent_s = 0.0
        self.safe_s = 0.0
        self.chosen = 0
        self.newest = -1
        self.executor_ = SingleThreadedExecutor()
        self.executor_.add_node(self)
        name = topics.of_robot(robot, topics.ACTION)
        self.create_subscription(AgentAction, name, self._on_action, qos.ACTION)
        self.rng = random.Random(0)

    def _on_action(self, message: AgentAction) -> None:
        self.newest = message.step
        if message.status == AgentAction.STATUS_SAFE:
            self.safe_s = self.safe_s or time.monotonic()
        else:
            self.chosen += 1

    def spin(self, seconds: float) -> None:
        """Hear what comes for a while."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.executor_.spin_once(timeout_sec=left)

    def until(self, condition: Callable[[], bool], meanwhile: Callable[[], None]) -> None:
        """Do something every few milliseconds until a condition holds."""
        give_up = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > give_up:
                raise UserError(f"{self.robot}: no answer in {PATIENCE_S:g} s; see its log above")
            meanwhile()
            self.spin(EVERY_S)

    def message(self, size: int) -> FeatureBlock:
        """A good message of the present step."""
        values = array("f", (self.rng.gauss(0, 1) for _ in range(size)))
        message = FeatureBlock(episode=1, step=self.step, data=values)
        now = time.time()
        message.header.stamp = Time(sec=int(now), nanosec=int(now % 1 * 1e9))
        return message

    def send(
        self, change: Callable[[str, FeatureBlock], bool] = lambda name, message: True
    ) -> None:
        """The next step, each message as a fault leaves it; none where that says False."""
        self.step += 1
        for block in self.manifest.blocks:
            message = self.message(block.size)
            if change(block.name, message):
                self.blocks[block.name].publish(message)

    def ask(self) -> None:
        """The next step, repeated until it is answered."""
        give_up = time.monotonic() + PATIENCE_S
        self.send()
        while self.newest != self.step:
            if time.monotonic() > give_up:
                raise UserError(f"{self.robot}: no answer in {PATIENCE_S:g} s; see its log above")
            before = self.newest
            self.executor_.spin_once(timeout_sec=0.1)
            if self.newest == before:
                self.step -= 1
                self.send()

    def act(self) -> None:
        """Until the robot acts on what it is sent."""
        self.chosen = 0
        self.until(lambda: self.chosen >= ACTING_STEPS, self.send)
        self.safe_s = 0.0


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong, and how soon the robot must be safe."""

    name: str
    rows: str  # of the fault table
    provoke: Callable[[Driver, subprocess.Popen[bytes]], None]
    goal_s: float = TIMEOUT_S + 1 / RATE_HZ
    restarts: bool = False  # whether the node must be started again after it


def main() -> int:
    """Parse and run; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--team", default="simple_spread", help="default simple_spread")
    parser.add_argument("--bundles", default="", metavar="DIR", help="default runs/bundles/<team>")
    parser.add_argument("--trials", type=positive, default=30, help="per fault (default 30)")
    parser.add_argument("--signals", type=positive, default=100, help="default 100")
    parser.add_argument("--soak", type=positive, metavar="STEPS", help="instead: so many steps")
    parser.add_argument("--hostile", type=positive, metavar="MESSAGES", help="instead: so many")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE}")
    add_json(parser)
    return run(measure, parser.parse_args())


def measure(arguments: argparse.Namespace) -> None:
    """Run all trials, or one long run, and print the figures."""
    leave_other_robots_alone()
    deployment = plan_swarm(
        arguments.team,
        bundles=arguments.bundles,
        episodes=1,
        seed=0,
        results=Path("unused"),
    )
    robot, process = deployment.team.robots[0], deployment.robots[0]
    manifest = load_policy(Path(str(process.parameters["bundle"]))).manifest
    rclpy.init()
    driver = Driver(robot.name, manifest)
    if arguments.soak or arguments.hostile:
        rows = _long_run(driver, process, arguments.soak, arguments.hostile)
        _print("Memory over a long run", ["figure", "value"], rows, as_json=arguments.json)
        return
    rows = []
    for fault in FAULTS:
        trials = arguments.signals if fault.restarts else arguments.trials
        rows.append(_row(fault, _trials(fault, driver, process, trials)))
        print(f"{fault.name} done", file=sys.stderr)
    header = ["fault", "rows", "trials", "p50, ms", "p99, ms", "max, ms", "goal, ms", ""]
    _print("Time to the safe action", header, rows, as_json=arguments.json)
    if arguments.write:
        write_table(PAGE, header, rows)


def _trials(fault: Fault, driver: Driver, process: Process, trials: int) -> list[float]:
    """Seconds to the safe action of every trial."""
    seconds = []
    child = _start(process)
    for _ in range(trials):
        driver.act()
        driver.spin(driver.rng.uniform(0, 1 / RATE_HZ))
        driver.send()
        driver.sent_s = time.monotonic()
        driver.spin(EVERY_S)  # it has come before anything replaces it
        fault.provoke(driver, child)
        if not driver.safe_s:
            raise UserError(f"{fault.name}: no safe action came")
        seconds.append(driver.safe_s - driver.sent_s)
        if fault.restarts:
            if child.wait(PATIENCE_S) != 0:
                raise UserError(f"{fault.name}: the node ended with code {child.returncode}")
            child = _start(process)
    child.send_signal(signal.SIGTERM)
    child.wait(PATIENCE_S)
    return seconds


def _start(process: Process, mode: str = "real_time") -> subprocess.Popen[bytes]:
    """The node in real time; what is said last on its command line counts."""
    parameters = {
        "mode": mode,
        "rate_hz": RATE_HZ,
        "timeout_s": TIMEOUT_S if mode == "real_time" else 5.0,
        "stamps": "header" if mode == "real_time" else "receive",
        "max_identical.velocity": FROZEN_AFTER if mode == "real_time" else 0,
    }
    command = process.command()
    for key, value in parameters.items():
        command += ["-p", f"{key}:={value}"]
    command += ["--log-level", "fatal"]
    return subprocess.Popen(command, start_new_session=True)


# Faults: each goes on until the robot is safe.


def _sending(change: Callable[[str, FeatureBlock], bool]) -> Callable[[Driver, object], None]:
    def provoke(driver: Driver, child: object) -> None:
        driver.until(lambda: driver.safe_s > 0, lambda: driver.send(change))

    return provoke


def _silence(driver: Driver, child: object) -> None:
    driver.until(lambda: driver.safe_s > 0, lambda: None)


def _no_landmarks(name: str, message: FeatureBlock) -> bool:
    return name != "landmarks"


def _not_finite(name: str, message: FeatureBlock) -> bool:
    message.data[0] = float("nan")
    return True


def _too_long(name: str, message: FeatureBlock) -> bool:
    message.data = array("f", [0.0] * 1000)
    return True


def _frozen(name: str, message: FeatureBlock) -> bool:
    if name == "velocity":
        message.data = array("f", [0.5] * len(message.data))
    return True


def _late(name: str, message: FeatureBlock) -> bool:
    message.header.stamp.sec -= 2
    return True


def _future(name: str, message: FeatureBlock) -> bool:
    message.header.stamp.sec += 10
    return True


def _old_step(name: str, message: FeatureBlock) -> bool:
    message.step = 1
    return True


def _flood_without_landmarks(driver: Driver, child: object) -> None:
    def flood() -> None:
        driver.send(_no_landmarks)
        for _ in range(50):
            driver.blocks["velocity"].publish(driver.message(1))

    driver.until(lambda: driver.safe_s > 0, flood)


def _stop_by_topic(driver: Driver, child: object) -> None:
    publisher = driver.create_publisher(
        Bool, topics.of_robot(driver.robot, topics.EMERGENCY_STOP), qos.LATCHED
    )
    driver.until(lambda: publisher.get_subscription_count() > 1, driver.send)
    driver.sent_s = time.monotonic()
    publisher.publish(Bool(data=True))
    driver.until(lambda: driver.safe_s > 0, driver.send)
    publisher.publish(Bool(data=False))
    driver.spin(0.2)
    driver.destroy_publisher(publisher)


def _stop_by_service(driver: Driver, child: object) -> None:
    name = topics.of_robot(driver.robot, topics.EMERGENCY_STOP)
    client: Client[Any, Any] = driver.create_client(SetBool, name)
    driver.until(client.service_is_ready, driver.send)
    driver.sent_s = time.monotonic()
    client.call_async(SetBool.Request(data=True))
    driver.until(lambda: driver.safe_s > 0, driver.send)
    released = client.call_async(SetBool.Request(data=False))
    driver.until(released.done, driver.send)
    driver.destroy_client(client)


def _deactivation(driver: Driver, child: object) -> None:
    name = f"/{topics.of_robot(driver.robot, topics.POLICY_NODE)}/change_state"
    client: Client[Any, Any] = driver.create_client(ChangeState, name)
    driver.until(client.service_is_ready, driver.send)
    driver.sent_s = time.monotonic()
    for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE):
        request = ChangeState.Request(transition=Transition(id=transition))
        changed = client.call_async(request)
        driver.until(changed.done, driver.send)
    driver.destroy_client(client)


def _termination(driver: Driver, child: subprocess.Popen[bytes]) -> None:
    child.send_signal(signal.SIGTERM)
    driver.until(lambda: driver.safe_s > 0, driver.send)


FAULTS = (
    Fault("all sensors fall silent", "1, 20", _silence),
    Fault("one sensor falls silent", "1", _sending(_no_landmarks)),
    Fault("NaN in every message", "4", _sending(_not_finite)),
    Fault("wrong length of every message", "5", _sending(_too_long)),
    Fault("messages two seconds late", "11", _sending(_late)),
    Fault("stamps ten seconds ahead", "10", _sending(_future)),
    Fault("old steps again and again", "9", _sending(_old_step)),
    Fault("one sensor silent, another floods", "28", _flood_without_landmarks),
    Fault(
        f"a sensor freezes ({FROZEN_AFTER} equal messages)",
        "3",
        _sending(_frozen),
        goal_s=FROZEN_AFTER * 2 * EVERY_S + TIMEOUT_S + 1 / RATE_HZ,
    ),
    Fault("emergency stop, topic", "stop", _stop_by_topic, COMMAND_GOAL_S),
    Fault("emergency stop, service", "stop", _stop_by_service, COMMAND_GOAL_S),
    Fault("deactivation", "30", _deactivation, COMMAND_GOAL_S),
    Fault("SIGTERM in any phase", "22", _termination, COMMAND_GOAL_S, restarts=True),
)


def _long_run(
    driver: Driver, process: Process, soak: int | None, hostile: int | None
) -> list[list[str]]:
    """One node in lock-step, its memory after warming up and at the end."""
    child = _start(process, "lock_step")
    sizes_mb = []
    try:
        driver.act()
        for count in range(soak or hostile or 0):
            if hostile:
                _send_garbage(driver)
            if soak or count % 100 == 0:
                driver.ask()
            if count % MEMORY_EVERY == 0:
                driver.get_node_names()
                sizes_mb.append(_rss_mb(child.pid))
        alive = child.poll() is None
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(PATIENCE_S)
    return [
        ["steps" if soak else "hostile messages", f"{soak or hostile:,}"],
        ["node still there", "yes" if alive else "no"],
        ["RSS after 1,000, MB", f"{sizes_mb[1]:.1f}"],
        ["RSS at the end, MB", f"{sizes_mb[-1]:.1f}"],
        ["load of the machine", f"{os.getloadavg()[1]:.1f} on {os.cpu_count()} cores"],
    ]


def _send_garbage(driver: Driver) -> None:
    rng = driver.rng
    numbers = [0.0, -1e30, 3.4e38, float("nan"), float("inf")]
    message = FeatureBlock(
        episode=rng.choice([0, 1, 2**32 - 1]),
        step=rng.choice([0, 2**32 - 1, rng.randrange(2**32)]),
        data=[rng.choice(numbers) for _ in range(rng.choice([0, 1, 3, 99]))],
    )
    message.header.frame_id = rng.choice(["", "x" * 500])
    message.header.stamp.sec = rng.choice([0, -(2**31), 2**31 - 1])
    driver.blocks[rng.choice(list(driver.blocks))].publish(message)


def _rss_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB", text, re.M)
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def _row(fault: Fault, seconds: Sequence[float]) -> list[str]:
    p50, p99 = (float(np.percentile(seconds, q)) for q in (50, 99))
    figures = [f"{1e3 * value:.0f}" for value in (p50, p99, max(seconds), fault.goal_s)]
    met = "met" if p99 <= fault.goal_s else "missed"
    return [fault.name, fault.rows, str(len(seconds)), *figures, met]


def _print(title: str, header: list[str], rows: list[list[str]], *, as_json: bool) -> None:
    if as_json:
        print_json([dict(zip(header, row, strict=True)) for row in rows])
    else:
        print_table(title, header, rows)


if __name__ == "__main__":
    sys.exit(main())
