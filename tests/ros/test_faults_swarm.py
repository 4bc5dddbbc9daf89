"""Faults of a whole swarm: robots and bridges that die, disks that fill, people who pause it.

Rows 8, 19, 20, 21, 31 and 32 of the fault table.
"""

import math
import random
import resource
from collections import defaultdict

import psutil
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from helpers import write_yaml
from rcl_interfaces.srv import ListParameters
from ros_driver import LONG_S, driving, observations
from std_srvs.srv import SetBool, Trigger

from kdmarl_core.bundle import load_policy
from kdmarl_core.evaluate import BundlePlayer, play
from kdmarl_core.team import load_team
from kdmarl_core.team_bundles import load_bundles
from kdmarl_ros import qos, results, topics
from kdmarl_ros.msg import AgentAction, StepResult

pytestmark = pytest.mark.ros

ROBOTS = ["robot_0", "robot_1", "robot_2"]
EPISODES = 200  # during which robots and bridge are killed
SOAK_STEPS = 2000  # benchmarks/faults.py makes 100,000
GROWTH_MB = 5


class Watcher:
    """Hears the whole swarm."""

    def __init__(self, driver):
        self.driver = driver
        self.steps, self.actions, self.bridge = [], [], []
        self._values = defaultdict(list)
        node = driver.node
        node.create_subscription(StepResult, topics.STEP, self.steps.append, qos.STEP_RESULT)
        node.create_subscription(AgentAction, "robot_1/action", self.actions.append, qos.ACTION)
        node.create_subscription(
            DiagnosticArray, topics.DIAGNOSTICS, self._on_diagnostics, qos.DIAGNOSTICS
        )

    def _on_diagnostics(self, message):
        for status in message.status:
            if status.name == "swarm: bridge":
                self.bridge.append(status.message)
            for value in status.values:
                self._values[status.name, value.key].append(value.value)

    def values_of(self, name, key):
        """What diagnostics of that name say under a key, from now on: a list that grows."""
        self._values[name, key].clear()
        return self._values[name, key]

    def until(self, condition, timeout_s=LONG_S):
        self.driver.until(condition, timeout_s)

    def until_acting(self, status):
        self.until(lambda: self.actions and self.actions[-1].status == status)

    def more_steps(self, count):
        before = len(self.steps)
        self.until(lambda: len(self.steps) >= before + count)


@pytest.fixture
def watcher(domain, policies):
    with driving(domain, policies[0].manifest) as driver:
        yield Watcher(driver)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "episodes.jsonl"


@pytest.fixture
def robot(start_node, bundles):
    def start(name, *more):
        return start_node(
            "policy_node", "-r", f"__ns:=/{name}", "-p", f"bundle:={bundles / name}",
            "-p", "sensor_reliability:=reliable", "-p", "timeout_s:=0.5", *more,
        )  # fmt: skip

    return start


@pytest.fixture
def bridge(start_node, path):
    def start(*more):
        return start_node(
            "bridge_node", "-p", "team:=simple_spread", "-p", f"results:={path}", *more
        )

    return start


def offline(policies, episodes, seed=0):
    team = load_team("simple_spread")
    return list(play(team.task.make_reference(), BundlePlayer(policies, team), episodes, seed))


def test_in_real_time_nobody_waits_for_a_robot_that_was_killed(watcher, robot, bridge, path):
    children = {name: robot(name) for name in ROBOTS}
    bridge("-p", "mode:=real_time", "-p", "rate_hz:=25.0", "-p", "episodes:=1000",
           "-p", "step_deadline_s:=0.5")  # fmt: skip
    watcher.more_steps(10)
    watcher.until(lambda: watcher.actions)  # of another robot: that one has been found
    children["robot_0"].kill()
    watcher.until(lambda: any("robot_0 is not there" in text for text in watcher.bridge))
    # The others are answered at the rate of the bridge, which goes on.
    heard = len(watcher.actions)
    watcher.more_steps(50)
    assert len(watcher.actions) >= heard + 25
    robot("robot_0")
    watcher.bridge.clear()
    watcher.until(lambda: "playing" in watcher.bridge[-1:])
    watcher.until(lambda: len(results.read(path)) > 3)
    flown = results.read(path)
    assert sum(episode.missed_deadlines for episode in flown) > 0
    now = len(flown)
    watcher.until(lambda: any(not e.missed_deadlines for e in results.read(path)[now:]))


@pytest.mark.slow
def test_a_swarm_that_is_killed_again_and_again_loses_no_finished_episode(
    watcher, start_node, write_bundles, path, tmp_path
):
    document = {
        "task": "pettingzoo/mpe2.simple_spread_v3?max_cycles=5",  # episodes of five steps
        "teacher": "nobody",
        "defaults": {
            "sensors": ["observation"],
            "safe_action": "action_0",
            "student": {"network": "mlp", "width": 8},
        },
        "robots": {name: {"agent": f"agent_{i}"} for i, name in enumerate(ROBOTS)},
    }
    file = write_yaml(tmp_path / "short.yaml", document)
    team = load_team(str(file))
    bundles = write_bundles(team)

    def start(name, episodes=1_000_000):
        if name == "bridge":
            return start_node(
                "bridge_node", "-p", f"team:={file}", "-p", f"results:={path}",
                "-p", f"episodes:={episodes}", "-p", "step_deadline_s:=0.5",
            )  # fmt: skip
        return start_node(
            "policy_node", "-r", f"__ns:=/{name}", "-p", f"bundle:={bundles / name}",
            "-p", "sensor_reliability:=reliable", "-p", "timeout_s:=0.5",
        )  # fmt: skip

    rng = random.Random(0)
    children = {name: start(name) for name in (*ROBOTS, "bridge")}
    seen = []
    for victim in (*ROBOTS, "bridge"):
        watcher.more_steps(rng.randrange(5, 60))
        children[victim].kill()
        children[victim].wait()
        finished = results.read(path)
        assert finished[: len(seen)] == seen
        seen = finished
        children[victim] = start(victim)
    watcher.more_steps(1)
    children["bridge"].kill()
    children["bridge"].wait()
    # Whatever the machine's speed, some are still to be played.
    episodes = max(EPISODES, len(results.read(path)) + 10)
    assert start("bridge", episodes).wait(timeout=60) == 0
    finished = results.read(path)
    assert finished[: len(seen)] == seen
    assert [episode.index for episode in finished] == list(range(episodes))
    # What was flown without a miss is what is flown offline.
    player = BundlePlayer(load_bundles(team, bundles), team)
    clean = 0
    for ours, theirs in zip(
        finished, play(team.task.make_reference(), player, episodes, seed=0), strict=True
    ):
        assert ours.seed == theirs.seed
        if ours.missed_deadlines == ours.safe_actions == 0:
            clean += 1
            assert [list(joint) for joint in ours.actions] == theirs.actions
    assert clean >= 10


def test_results_of_other_models_or_teams_are_not_mixed(robot, bridge, domain, path, tmp_path):
    for name in ROBOTS:
        robot(name)
    assert bridge("-p", "episodes:=1").wait(timeout=60) == 0
    text = path.read_text()
    [first] = results.read(path)
    path.write_text(text.replace(first.models[1], "f" * 64))
    refused = bridge("-p", "episodes:=2")
    assert refused.wait(timeout=60) == 2
    assert "robot_1 flew the model ffffffffffff" in refused.log.read_text()
    path.write_text(text.replace('"team":"simple_spread"', '"team":"other"'))
    refused = bridge("-p", "episodes:=2")
    assert refused.wait(timeout=60) == 2
    assert "played by team 'other'" in refused.log.read_text()
    path.write_text(text)
    assert bridge("-p", "episodes:=2").wait(timeout=60) == 0
    assert len(results.read(path)) == 2


def test_a_full_disk_stops_neither_robots_nor_results(watcher, robot, bridge, path, policies):
    for name in ROBOTS:
        robot(name)
    child = bridge("-p", "episodes:=400")
    watcher.until(lambda: len(results.read(path)) > 2)
    process = psutil.Process(child.pid)
    # No file of the bridge may grow any more: what is written ends in an error, as on a full disk.
    process.rlimit(psutil.RLIMIT_FSIZE, (path.stat().st_size + 100, resource.RLIM_INFINITY))
    watcher.until(lambda: any("episodes are not saved" in text for text in watcher.bridge))
    before = len(results.read(path))
    watcher.more_steps(25 * 4)
    assert len(results.read(path)) == before
    process.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    watcher.until(lambda: len(results.read(path)) > before + 4)
    kept = results.read(path)
    assert [episode.index for episode in kept] == list(range(len(kept)))
    for ours, theirs in zip(kept, offline(policies, len(kept)), strict=True):
        assert ours.team_return == pytest.approx(theirs.team_return, abs=1e-6)


def test_a_person_can_pause_and_step_the_simulation(watcher, robot, bridge, path, policies):
    for name in ROBOTS:
        robot(name)
    bridge("-p", "episodes:=400")
    watcher.more_steps(5)
    call = watcher.driver.call_at
    paused = call(SetBool, "/bridge/pause", SetBool.Request(data=True))
    assert paused.message.startswith("paused at episode")
    watcher.driver.spin(1.0)
    watcher.steps.clear()
    watcher.until(lambda: "paused" in watcher.bridge[-1:])
    assert watcher.steps == []
    for expected in (1, 2, 3):
        assert call(Trigger, "/bridge/step", Trigger.Request()).success
        watcher.until(lambda n=expected: len(watcher.steps) == n)
        watcher.driver.spin(0.2)
        assert len(watcher.steps) == expected
    call(SetBool, "/bridge/pause", SetBool.Request(data=False))
    assert not call(Trigger, "/bridge/step", Trigger.Request()).success
    watcher.more_steps(60)
    # The pause is not to be seen in what was flown.
    flown = results.read(path)
    for ours, theirs in zip(flown, offline(policies, len(flown)), strict=True):
        assert [list(joint) for joint in ours.actions] == theirs.actions


def test_a_step_of_a_paused_simulation_in_real_time_lasts_its_period(watcher, robot, bridge, path):
    """Robots that stood still have time to see it and to answer."""
    for name in ROBOTS:
        robot(name, "-p", "mode:=real_time", "-p", "rate_hz:=50.0")
    bridge("-p", "mode:=real_time", "-p", "rate_hz:=5.0", "-p", "episodes:=400",
           "-p", "step_deadline_s:=0.5")  # fmt: skip
    watcher.more_steps(2)
    call = watcher.driver.call_at
    assert call(SetBool, "/bridge/pause", SetBool.Request(data=True)).success
    for _ in range(3):
        watcher.driver.spin(0.8)  # longer than any robot trusts what it sensed
        count = len(watcher.steps)
        assert call(Trigger, "/bridge/step", Trigger.Request()).success
        watcher.until(lambda n=count: len(watcher.steps) > n)
    call(SetBool, "/bridge/pause", SetBool.Request(data=False))
    watcher.until(lambda: results.read(path))
    [episode] = results.read(path)[:1]
    assert (episode.missed_deadlines, episode.safe_actions) == (0, 0)


def test_the_swarms_stop_outlives_the_bridge(watcher, robot, bridge, path):
    for name in ROBOTS:
        robot(name)
    child = bridge("-p", "episodes:=4000")
    watcher.more_steps(5)
    answer = watcher.driver.call_at(SetBool, topics.SWARM_STOP, SetBool.Request(data=True))
    assert answer.success
    watcher.until_acting(AgentAction.STATUS_SAFE)
    child.kill()
    child.wait()
    bridge("-p", "episodes:=4000")
    watcher.actions.clear()
    watcher.more_steps(20)
    assert {action.status for action in watcher.actions} == {AgentAction.STATUS_SAFE}
    watcher.driver.call_at(
        SetBool, topics.SWARM_STOP, SetBool.Request(data=False), again_after_s=1.0
    )
    watcher.until_acting(AgentAction.STATUS_POLICY)


@pytest.mark.parametrize(
    "wrong", [{"action": 99}, {"status": 7}, {"compute_time_s": math.nan}], ids=str
)
def test_actions_that_do_not_exist_are_refused_and_counted(watcher, robot, bridge, path, wrong):
    for name in ROBOTS:
        robot(name)
    refused = watcher.values_of("swarm: bridge", "refused_actions")
    bridge("-p", "episodes:=4000")
    watcher.more_steps(5)
    stranger = watcher.driver.node.create_publisher(AgentAction, "/robot_1/action", qos.ACTION)
    watcher.driver.until(
        lambda: refused and int(refused[-1]) > 0,
        meanwhile=lambda: stranger.publish(
            AgentAction(episode=watcher.steps[-1].episode, **wrong)
        ),
    )
    watcher.more_steps(60)  # more than two episodes
    assert results.read(path)  # which holds none of it


def test_two_bridges_are_told_of_each_other(watcher, robot, bridge, tmp_path):
    for name in ROBOTS:
        robot(name)
    bridge("-p", "episodes:=4000")
    watcher.more_steps(5)
    bridge("-p", "episodes:=4000", "-p", f"results:={tmp_path / 'other.jsonl'}")
    watcher.until(lambda: any("another bridge plays, too" in text for text in watcher.bridge))


def test_a_run_is_not_gone_on_with_otherwise(robot, bridge, path):
    for name in ROBOTS:
        robot(name)
    assert bridge("-p", "episodes:=1").wait(timeout=60) == 0
    child = bridge("-p", "episodes:=2", "-p", "sensor_noise:=0.5")
    assert child.wait(timeout=60) == 2
    assert "was played in lock_step, not in lock_step, sensor_noise 0.5" in child.log.read_text()
    again = bridge("-p", "episodes:=1")
    assert again.wait(timeout=60) == 0
    assert "holds all 1 episodes already" in again.log.read_text()


def test_delays_are_those_of_the_simulation_too(robot, bridge, domain, path, policies):
    """In lock-step, delayed sensors and actions give what the same delays give offline."""
    for name in ROBOTS:
        robot(name)
    ended = bridge(
        "-p", "episodes:=2", "-p", "sensor_delay_steps:=2", "-p", "action_delay_steps:=1"
    )
    assert ended.wait(timeout=60) == 0
    team = load_team("simple_spread")
    env = team.task.make_reference()
    for flown in results.read(path):
        view = env.reset(flown.seed)
        seen, chosen, done = [], [[0, 0, 0]], False
        while not done:
            seen.append(view.observations)
            old = seen[max(len(seen) - 3, 0)]
            chosen.append([p.act(o[:14]) for p, o in zip(policies, old, strict=True)])
            assert list(flown.actions[len(seen) - 1]) == chosen[-2]
            view, _, done, _ = env.step(chosen[-2])


def test_loss_in_lock_step_is_refused(bridge, domain):
    child = bridge("-p", "sensor_loss:=0.1")
    assert child.wait(timeout=60) == 2
    assert "mode:=real_time" in child.log.read_text()


def test_noise_and_loss_are_survived_in_real_time(watcher, robot, bridge, path):
    for name in ROBOTS:
        robot(name, "-p", "mode:=real_time", "-p", "rate_hz:=25.0")
    bridge("-p", "mode:=real_time", "-p", "rate_hz:=25.0", "-p", "episodes:=3",
           "-p", "sensor_noise:=0.1", "-p", "sensor_loss:=0.2", "-p", "seed:=3")  # fmt: skip
    watcher.until(lambda: len(results.read(path)) == 3)
    for episode in results.read(path):
        assert len({action for joint in episode.actions for action in joint}) > 1


def test_memory_does_not_grow(domain, start_node, bundles):
    manifest = load_policy(bundles / "robot_0").manifest
    child = start_node(
        "policy_node", "-r", "__ns:=/robot_0", "-p", f"bundle:={bundles / 'robot_0'}",
        "-p", "timeout_s:=5.0", "-p", "sensor_reliability:=reliable",
    )  # fmt: skip
    process = psutil.Process(child.pid)
    with driving(domain, manifest) as sensors:
        sensors.until_listened_to()
        shown = observations(manifest, 100)
        sizes_mb = []
        for step in range(SOAK_STEPS):
            sensors.send(shown[step % 100], 1, step)
            sensors.until(lambda n=step: sensors.actions and sensors.actions[-1].step == n)
            sensors.actions.clear()
            if step % 200 == 0:
                # Somebody looks at it now and then.
                sensors.call(ListParameters, "list_parameters", ListParameters.Request())
                sizes_mb.append(process.memory_info().rss / 1e6)
        assert sizes_mb[-1] < sizes_mb[1] + GROWTH_MB
        assert sizes_mb[-1] < 100
