"""Several robots in one process: each as if it were alone."""

import contextlib
import signal

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from helpers import write_yaml
from ros_driver import driving

from kdmarl_core.bundle import load_policy
from kdmarl_core.evaluate import BundlePlayer, play
from kdmarl_core.team import load_team
from kdmarl_core.team_bundles import load_bundles
from kdmarl_ros import results
from kdmarl_ros.msg import AgentAction

pytestmark = pytest.mark.ros

TIMEOUT_S = 0.5


def test_hosted_robots_act_as_offline(domain, write_bundles, kdmarl, patient, tmp_path):
    """Five with memory fly three students; those of one student are thought about together."""
    student = {"network": "gru", "width": 16}
    lender = write_yaml(
        tmp_path / "trio.yaml", {"base": "simple_spread", "defaults": {"student": student}}
    )
    document = {
        "base": "simple_spread_30",
        "task": "mpe/simple_spread_5",
        "robots": 5,
        "students": str(lender),
    }
    path = write_yaml(tmp_path / "five.yaml", document)
    bundles = write_bundles(load_team(str(lender)))
    ended = kdmarl(
        "swarm", "--team", str(path), "--bundles", str(bundles), "--episodes", "2", "--hosted",
        "--output", "flown", *patient,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    team = load_team(str(path))
    player = BundlePlayer(load_bundles(team, bundles), team)
    offline = list(play(team.task.make_reference(), player, episodes=2, seed=0))
    for ours, theirs in zip(
        results.read(tmp_path / "flown" / "episodes.jsonl"), offline, strict=True
    ):
        assert [list(joint) for joint in ours.actions] == theirs.actions
        assert ours.safe_actions == ours.missed_deadlines == 0
    assert len({action for e in offline for joint in e.actions for action in joint}) > 1


@contextlib.contextmanager
def hosted(domain, bundles, start_node, **more):
    """A host of three robots, the last of which has no bundle; and the sensors of each."""
    arguments = []
    for name, mode in (
        ("robot_0", "lock_step"),
        ("robot_1", "real_time"),
        ("robot_2", "lock_step"),
    ):
        bundle = bundles / (name if name != "robot_2" else "nowhere")
        given = {"bundle": bundle, "mode": mode, "timeout_s": TIMEOUT_S, "rate_hz": 20.0}
        arguments += ["--", "--ros-args", "-r", f"__ns:=/{name}"]
        for key, value in given.items():
            arguments += ["-p", f"{key}:={value}"]
    host = start_node("policy_host", *arguments)
    manifest = load_policy(bundles / "robot_0").manifest
    with contextlib.ExitStack() as stack:
        names = ("robot_0", "robot_1", "robot_2")
        yield (
            host,
            *(stack.enter_context(driving(domain, manifest, name)) for name in names),
        )


def statuses(sensors):
    return [action.status for action in sensors.actions]


def test_what_befalls_one_robot_befalls_it_alone(domain, bundles, start_node):
    with hosted(domain, bundles, start_node) as (host, first, second, grounded):

        def both_sense():
            first.send_new()
            second.send_new()
            first.executor.spin_once(timeout_sec=0)

        first.until_listened_to()
        first.until_acting()
        second.until_acting()

        # A stop is its robot's alone.
        first.stop(True)
        first.actions.clear()
        second.actions.clear()
        second.until(lambda: len(first.actions) > 3 < len(second.actions), meanwhile=both_sense)
        assert set(statuses(first)) == {AgentAction.STATUS_SAFE}
        assert second.chosen()
        first.stop(False)
        first.until_acting()

        # So is silence, in lock-step and in real time.
        for silent, other in ((first, second), (second, first)):
            other.until_acting()
            silent.until_acting()
            silent.actions.clear()

            def meanwhile(other=other, silent=silent):
                other.send_new()
                silent.executor.spin_once(timeout_sec=0)

            other.until(
                lambda silent=silent: AgentAction.STATUS_SAFE in statuses(silent),
                meanwhile=meanwhile,
            )
            other.actions.clear()
            other.stream_until(lambda other=other: len(other.chosen()) > 5)

        # What cannot start is named, by itself and by its process; the others fly.
        grounded.until_reported("failed", "nowhere", level=DiagnosticStatus.ERROR)
        assert "robot_2" in host.log.read_text() or "nowhere" in host.log.read_text()
        assert host.poll() is None

        # The end of the process leaves all of them safe.
        first.until_acting()
        second.until_acting()
        host.send_signal(signal.SIGTERM)
        first.until(lambda: statuses(first)[-1:] == [AgentAction.STATUS_SAFE])
        second.until(lambda: statuses(second)[-1:] == [AgentAction.STATUS_SAFE])
        assert host.wait(timeout=30) == 0


def test_a_host_without_a_single_robot_ends_with_one_line(domain, start_node, tmp_path):
    nobody = start_node("policy_host")
    one = ["--", "--ros-args", "-r", "__ns:=/robot_0", "-p", f"bundle:={tmp_path / 'nowhere'}"]
    grounded = start_node("policy_host", *one)
    assert (nobody.wait(timeout=60), grounded.wait(timeout=60)) == (2, 2)
    assert "no robots" in nobody.log.read_text().splitlines()[-1]
    assert "nowhere" in grounded.log.read_text().splitlines()[-1]
