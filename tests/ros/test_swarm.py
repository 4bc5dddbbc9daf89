"""The swarm as a user runs it: real processes, real DDS."""

import json
import signal
import time
from pathlib import Path

import psutil
import pytest
from helpers import write_yaml

from kdmarl_core.bundle import load_policy
from kdmarl_core.evaluate import BundlePlayer, play
from kdmarl_core.team import load_team
from kdmarl_core.team_bundles import load_bundles
from kdmarl_ros import results

pytestmark = pytest.mark.ros


def flown_episodes(folder: Path, team: str = "simple_spread") -> list[results.EpisodeResult]:
    return results.read(folder / "runs" / "swarm" / team / "episodes.jsonl")


def processes_in(folder: Path) -> list[psutil.Process]:
    """Processes that were started from a test's folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


PLAIN = {"base": "simple_spread"}
# Robots that remember, and to which other features are hidden in every episode.
RECURRENT = {
    "base": "simple_spread",
    "defaults": {"random_features": [4, 6], "student": {"network": "gru", "width": 16}},
}
# Robots that tell each other something, in different ways; one only listens.
TELLING = {
    "base": "simple_spread_lh",
    "defaults": {"student": {"network": "gru", "width": 16}},
    "robots": {
        "robot_0": {"messages": {"size": 3, "to": "all", "format": "int4"}},
        "robot_1": {"messages": {"size": 2, "to": ["robot_2"], "delay_steps": 2}},
    },
}


@pytest.mark.parametrize(
    ("document", "options"),
    [(PLAIN, []), (RECURRENT, []), (TELLING, []), (TELLING, ["--hosted"])],
    ids=["plain", "recurrent", "telling", "telling in one process"],
)
def test_offline_and_over_ros_are_equal(
    domain, write_bundles, kdmarl, patient, tmp_path, document, options
):
    path = write_yaml(tmp_path / "trio.yaml", document)
    team = load_team(str(path))
    bundles = write_bundles(team)
    ended = kdmarl(
        "swarm", "--team", str(path), "--bundles", str(bundles), "--episodes", "4",
        "--seed", "7", "--json", *patient, *options,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    player = BundlePlayer(load_bundles(team, bundles), team)
    offline = list(play(team.task.make_reference(), player, episodes=4, seed=7))
    over_ros = flown_episodes(tmp_path, "trio")
    assert len(over_ros) == 4
    for ours, theirs in zip(over_ros, offline, strict=True):
        assert ours.seed == theirs.seed
        assert [list(joint) for joint in ours.actions] == theirs.actions
        assert ours.team_return == pytest.approx(theirs.team_return, abs=1e-6)
    assert len({action for e in offline for joint in e.actions for action in joint}) > 1
    figures = json.loads(ended.stdout)
    assert figures["episodes"] == 4
    assert figures["missed_deadlines"] == figures["safe_actions"] == 0
    assert figures["return"] == pytest.approx(sum(e.team_return for e in offline) / 4, abs=1e-6)
    assert figures["steps_per_second"] > 0
    assert 0 < figures["latency_p50_ms"] <= figures["latency_p99_ms"]


@pytest.mark.slow
def test_legal_actions_memory_and_random_sensors_are_equal_offline(
    domain, battle, kdmarl, patient, tmp_path
):
    ended = kdmarl(
        "swarm", "--team", str(battle.path), "--bundles", str(battle.bundles), "--episodes", "2",
        "--output", "flown", "--json", *patient,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    policies = [load_policy(battle.bundles / robot.name) for robot in battle.team.robots]
    assert all(policy.manifest.student.state_size for policy in policies)
    player = BundlePlayer(policies, battle.team)
    offline = list(play(battle.team.task.make_reference(), player, episodes=2, seed=0))
    over_ros = results.read(tmp_path / "flown" / "episodes.jsonl")
    for ours, theirs in zip(over_ros, offline, strict=True):
        assert [list(joint) for joint in ours.actions] == theirs.actions
        assert (ours.team_return, ours.outcome) == (theirs.team_return, theirs.outcome)
        assert ours.illegal_actions == ours.safe_actions == ours.missed_deadlines == 0
    assert len({action for e in offline for joint in e.actions for action in joint}) > 2


def test_real_time_with_noise_and_loss_by_the_command_line(domain, bundles, kdmarl, tmp_path):
    ended = kdmarl(
        "swarm", "--team", "simple_spread", "--bundles", str(bundles), "--episodes", "2",
        "--real-time", "--rate", "50", "--sensor-noise", "0.1", "--sensor-loss", "0.2",
        "--sensor-delay-steps", "1", "--action-delay-steps", "1", "--json",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    for episode in flown_episodes(tmp_path):
        assert episode.seconds > 0.9 * episode.steps / 50  # it keeps to its rate
        assert episode.steps == 25


def test_a_simulator_that_is_late_hears_its_robots_all_the_same(
    domain, write_bundles, kdmarl, monkeypatch, tmp_path
):
    """Each of its steps takes longer than a period: it never waits for the next one."""
    robot = {"sensors": ["observation"], "student": {"network": "mlp", "width": 4}}
    robots = {f"robot_{i}": {"agent": f"walker_{i}"} | robot for i in range(2)}
    document = {
        "task": "pettingzoo/foreign_envs:Tardy?seconds=0.03",
        "teacher": "nobody",
        "defaults": {"safe_action": "action_1"},
        "robots": robots,
    }
    tests = Path(__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", str(tests))
    path = write_yaml(tmp_path / "walkers.yaml", document)
    bundles = write_bundles(load_team(str(path)))
    ended = kdmarl(
        "swarm", "--team", str(path), "--bundles", str(bundles), "--episodes", "10",
        "--real-time", "--rate", "50", "--json",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    steps = sum(episode.steps for episode in flown_episodes(tmp_path, "walkers"))
    assert json.loads(ended.stdout)["missed_deadlines"] < 0.5 * 2 * steps


def test_interrupt_ends_cleanly_and_resume_goes_on(
    domain, bundles, kdmarl, start_kdmarl, tmp_path
):
    command = ["swarm", "--team", "simple_spread", "--bundles", str(bundles)]
    swarm = start_kdmarl(*command, "--episodes", "100000")
    give_up = time.monotonic() + 60
    while len(flown_episodes(tmp_path)) < 2:
        assert time.monotonic() < give_up
        time.sleep(0.05)
    swarm.send_signal(signal.SIGINT)
    stdout, stderr = swarm.communicate(timeout=30)
    assert swarm.returncode == 0, stderr
    assert "return" in stdout
    assert processes_in(bundles) == []
    before = flown_episodes(tmp_path)
    more = ["--episodes", str(len(before) + 1), "--json"]
    assert "--overwrite" in kdmarl(*command, *more).stderr
    other = kdmarl(*command, *more, "--resume", "--seed", "9")
    assert other.returncode == 2
    assert "was not played with this seed" in other.stderr
    ended = kdmarl(*command, *more, "--resume")
    assert ended.returncode == 0, ended.stderr
    after = flown_episodes(tmp_path)
    assert after[:-1] == before
    assert after[-1].index == len(before)


def test_a_killed_swarm_leaves_no_process_behind(domain, bundles, start_kdmarl, tmp_path):
    swarm = start_kdmarl(
        "swarm", "--team", "simple_spread", "--bundles", str(bundles), "--episodes", "100000"
    )
    give_up = time.monotonic() + 60
    while not flown_episodes(tmp_path):
        assert time.monotonic() < give_up
        time.sleep(0.05)
    swarm.kill()
    swarm.wait()
    _, alive = psutil.wait_procs(processes_in(bundles), timeout=15)
    assert alive == []


def test_a_robot_that_dies_is_named(domain, bundles, start_kdmarl, tmp_path):
    swarm = start_kdmarl(
        "swarm", "--team", "simple_spread", "--bundles", str(bundles), "--episodes", "100000"
    )
    give_up = time.monotonic() + 60
    while not flown_episodes(tmp_path):
        assert time.monotonic() < give_up
        time.sleep(0.05)
    [victim] = processes_in(bundles / "robot_1")
    victim.kill()
    _, stderr = swarm.communicate(timeout=30)
    assert swarm.returncode == 2
    assert "robot_1" in stderr
    assert "policy_node" in stderr
    assert len(stderr.strip().splitlines()) == 1
    assert processes_in(bundles) == []


def test_bridge_names_the_robots_that_do_not_come(domain, start_node, tmp_path):
    bridge = start_node(
        "bridge_node", "-p", "team:=simple_spread", "-p", f"results:={tmp_path / 'r.jsonl'}",
        "-p", "join_timeout_s:=0.5",
    )  # fmt: skip
    assert bridge.wait(timeout=30) == 2
    assert "robot_0 and robot_1 and robot_2" in bridge.log.read_text()


def test_launch_files_start_the_same_swarm(domain, bundles, tmp_path):
    launch = pytest.importorskip("launch", reason="launch is not installed")
    pytest.importorskip("launch_ros", reason="launch_ros is not installed")
    from launch.launch_description_sources import PythonLaunchDescriptionSource

    from kdmarl_core.files import share_folder

    path = share_folder() / "launch" / "swarm.launch.py"
    episodes = tmp_path / "episodes.jsonl"
    arguments = {
        "team": "simple_spread",
        "bundles": str(bundles),
        "episodes": "2",
        "results": str(episodes),
    }
    service = launch.LaunchService()
    service.include_launch_description(
        launch.LaunchDescription(
            [
                launch.actions.IncludeLaunchDescription(
                    PythonLaunchDescriptionSource(str(path)),
                    launch_arguments=arguments.items(),
                )
            ]
        )
    )
    assert service.run() == 0
    assert len(results.read(episodes)) == 2
