"""The one description from which command line and launch files start a swarm."""

import pytest
from helpers import TEAM_FILE, make_manifest, make_model, renamed, write_yaml

from kdmarl_core.bundle import write_bundle
from kdmarl_ros.deployment import Process, plan_swarm

NAMES = ["alpha", "robot_1", "robot_2"]


@pytest.fixture
def deployment(tmp_path, monkeypatch):
    """A planned swarm, in which all paths were given relative to the folder it is planned in."""
    monkeypatch.chdir(tmp_path)
    write_yaml(tmp_path / "trio.yaml", renamed(TEAM_FILE, "robots.robot_0", "alpha"))
    blocks = [("velocity", 2), ("position", 2), ("landmarks", 6), ("others", 4)]
    for index, name in enumerate(NAMES):
        folder = tmp_path / "bundles" / name
        folder.mkdir(parents=True)
        manifest = make_manifest(blocks, robot=name, agent=f"agent_{index}")
        write_bundle(folder, manifest, make_model(manifest))
        (tmp_path / "robots").mkdir(exist_ok=True)
        document = {f"/{name}/policy": {"ros__parameters": {"mode": "lock_step"}}}
        write_yaml(tmp_path / "robots" / f"{name}.yaml", document)
    return plan_swarm(
        "trio.yaml",
        bundles="bundles",
        robots="robots",
        episodes=7,
        seed=3,
        results=tmp_path / "episodes.jsonl",
    )


def test_every_robot_gets_its_own_bundle_and_parameters(deployment, tmp_path):
    assert [robot.namespace for robot in deployment.robots] == NAMES
    for robot in deployment.robots:
        assert (robot.executable, robot.name) == ("policy_node", "policy")
        assert robot.parameters == {"bundle": str(tmp_path / "bundles" / robot.namespace)}
        assert robot.parameter_file == tmp_path / "robots" / f"{robot.namespace}.yaml"
        arguments = robot.command()
        assert f"__ns:=/{robot.namespace}" in arguments
        bundle = tmp_path / "bundles" / robot.namespace
        assert (
            f'bundle:="{bundle}"' in arguments
        )  # quoted: a path may hold what YAML gives meaning
        assert arguments[arguments.index("--params-file") + 1] == str(robot.parameter_file)


def test_the_bridge_gets_team_and_episodes(deployment, tmp_path):
    bridge = deployment.bridge
    assert (bridge.executable, bridge.namespace, bridge.label) == ("bridge_node", "", "bridge")
    assert bridge.parameters == {
        "team": str(tmp_path / "trio.yaml"),
        "results": str(tmp_path / "episodes.jsonl"),
        "episodes": 7,
        "seed": 3,
    }
    assert not any(argument.startswith("__ns") for argument in bridge.command())


def test_labels_tell_processes_apart(deployment):
    labels = [process.label for process in deployment.processes]
    assert labels == [*NAMES, "bridge"]


def test_nothing_is_written_by_planning(deployment, tmp_path):
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundles", "robots", "trio.yaml"]


def test_values_are_passed_as_yaml():
    process = Process(
        "policy_node", "policy", "", {"autostart": False, "rate_hz": 10.0, "seed": 3}
    )
    arguments = process.command()
    assert arguments[-6:] == ["-p", "autostart:=false", "-p", "rate_hz:=10.0", "-p", "seed:=3"]
