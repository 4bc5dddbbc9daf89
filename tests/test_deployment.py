"""The one description from which command line and launch files start a swarm."""

import os
from pathlib import Path

import pytest
from helpers import TEAM_FILE, make_manifest, make_model, name_of_case, renamed, write_yaml

from kdmarl_core.bundle import write_bundle
from kdmarl_core.bundle.signing import make_keys, read_private_key, sign_bundle
from kdmarl_core.files import share_folder
from kdmarl_ros import launch_arguments
from kdmarl_ros.deployment import (
    FASTDDS_PROFILES,
    Process,
    SecurityPlan,
    new_recording,
    plan_robot,
    plan_swarm,
    sensor_maps,
)
from kdmarl_ros.parameter_files import robot_parameters
from kdmarl_ros.sros2 import make_keystore, ros_domain, team_rights

NAMES = ["alpha", "robot_1", "robot_2"]
BLOCKS = [("velocity", 2), ("position", 2), ("landmarks", 6), ("others", 4)]
SHARED = "/**/policy"
EXAMPLE = {"topic": "odom", "type": "nav_msgs/msg/Odometry"}
MAP = {
    "blocks": {name: EXAMPLE | {"fields": ["pose.covariance[0]"] * size} for name, size in BLOCKS},
    "command": {
        "topic": "cmd_vel",
        "type": "geometry_msgs/msg/Twist",
        "fields": ["linear.x"],
        "actions": {name: [0.0] for name in ("stay", "left", "right", "down", "up")},
        "velocity": 1.0,
        "acceleration": 1.0,
    },
}


def launched(**changes):
    """The launch arguments of a swarm, as texts."""
    return {
        name: default
        for name, default, _ in (*launch_arguments.ROBOT, *launch_arguments.SIMULATION)
    } | changes


def write_parameters(path, node=SHARED, **values):
    """Writes a ROS parameter file for one node."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_yaml(path, {node: {"ros__parameters": values}})


@pytest.fixture
def deployment(tmp_path, monkeypatch):
    """A planned swarm, in which all paths were given relative to the folder it is planned in."""
    monkeypatch.chdir(tmp_path)
    write_yaml(tmp_path / "trio.yaml", renamed(TEAM_FILE, "robots.robot_0", "alpha"))
    for index, name in enumerate(NAMES):
        folder = tmp_path / "bundles" / name
        folder.mkdir(parents=True)
        manifest = make_manifest(BLOCKS, robot=name, agent=f"agent_{index}")
        write_bundle(folder, manifest, make_model(manifest))
    write_parameters(tmp_path / "robots" / "all.yaml", robot_type="crawler", timeout_s=0.5)
    write_parameters(tmp_path / "robots" / "types" / "crawler.yaml", rate_hz=5.0)
    return plan()


def plan(**changes):
    """Plans the swarm of `deployment` once more."""
    given = {
        "bundles": "bundles", "robots": "robots", "episodes": 7, "seed": 3,
        "results": Path("episodes.jsonl"),
    }  # fmt: skip
    return plan_swarm("trio.yaml", **given | changes)


def test_every_robot_gets_its_own_bundle_and_parameters(deployment, tmp_path):
    assert [robot.namespace for robot in deployment.robots] == NAMES
    for robot in deployment.robots:
        assert (robot.executable, robot.name) == ("policy_node", "policy")
        bundle = tmp_path / "bundles" / robot.namespace
        assert robot.parameters == {
            "robot_type": "crawler",
            "timeout_s": 0.5,
            "rate_hz": 5.0,
            "bundle": str(bundle),
        }
        arguments = robot.command()
        assert f"__ns:=/{robot.namespace}" in arguments
        # Quoted: a path may hold what YAML gives meaning.
        assert f'bundle:="{bundle}"' in arguments
        assert "timeout_s:=0.5" in arguments


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


# Parameter files


def test_a_robots_own_file_wins_over_its_types_and_that_over_all(tmp_path):
    write_parameters(
        tmp_path / "all.yaml", robot_type="base", timeout_s=0.1, rate_hz=1.0, autostart=False
    )
    write_parameters(tmp_path / "types" / "base.yaml", timeout_s=0.2, mode="real_time")
    write_parameters(tmp_path / "types" / "arm.yaml", timeout_s=0.3, rate_hz=3.0)
    write_parameters(tmp_path / "one.yaml", "/one/policy", timeout_s=0.4)
    write_parameters(tmp_path / "two.yaml", "/two/policy", robot_type="arm")
    shared = {"autostart": False}
    assert robot_parameters("none", tmp_path) == shared | {
        "robot_type": "base", "timeout_s": 0.2, "rate_hz": 1.0, "mode": "real_time",
    }  # fmt: skip
    assert robot_parameters("one", tmp_path) == shared | {
        "robot_type": "base", "timeout_s": 0.4, "rate_hz": 1.0, "mode": "real_time",
    }  # fmt: skip
    assert robot_parameters("two", tmp_path) == shared | {
        "robot_type": "arm", "timeout_s": 0.3, "rate_hz": 3.0,
    }  # fmt: skip


def test_thirty_robots_need_no_thirty_files():
    folder = share_folder() / "config" / "robots"
    given = [robot_parameters(f"robot_{i}", folder) for i in range(30)]
    assert all(parameters == given[0] for parameters in given)
    assert given[0]["mode"] == "lock_step"
    assert given[0]["sensor_reliability"] == "reliable"


def test_relative_paths_begin_at_their_file(tmp_path):
    write_parameters(tmp_path / "all.yaml", robot_type="base")
    write_parameters(tmp_path / "types" / "base.yaml", sensor_map="../maps/base.yaml")
    write_parameters(tmp_path / "one.yaml", "/one/policy", sensor_map="maps/one.yaml")
    found = [Path(robot_parameters(name, tmp_path)["sensor_map"]) for name in ("none", "one")]
    assert [path.resolve() for path in found] == [
        tmp_path / "maps" / "base.yaml",
        tmp_path / "maps" / "one.yaml",
    ]
    assert all(path.is_absolute() for path in found)


def test_every_parameter_that_is_a_path_may_be_relative(tmp_path):
    names = ("bundle", "sensor_map", "state_directory", "trusted_keys")
    write_parameters(tmp_path / "all.yaml", robot_type="base", **dict.fromkeys(names, "here"))
    write_parameters(tmp_path / "types" / "base.yaml")
    found = robot_parameters("one", tmp_path)
    assert [found[name] for name in names] == [str(tmp_path / "here")] * len(names)


def test_use_sim_time_and_overrides_win(deployment):
    robot = plan(
        overrides=launch_arguments.overrides(
            launched(real_time="true", rate="20", use_sim_time="True")
        )
    ).robots[0]
    assert robot.parameters["use_sim_time"] is True
    assert robot.parameters["rate_hz"] == 20.0
    assert launch_arguments.overrides(launched()) == {"use_sim_time": False}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"timeot_s": 1.0}, ["unknown parameter 'timeot_s'", "timeout_s"]),
        ({"timeout_s": 1}, ["timeout_s", "with a point", "1"]),
        ({"timeout_s": "soon"}, ["timeout_s", "'soon'"]),
        ({"timeout_s": -0.5}, ["timeout_s: -0.5", "between 0.0 and 60.0"]),
        ({"timeout_s": float("nan")}, ["timeout_s: nan", "between"]),
        ({"timeout_s": [1.0]}, ["timeout_s", "[1.0]"]),
        ({"timeout_s": {"velocity": 1.0}}, ["unknown parameter 'timeout_s.velocity'"]),
        ({"limits": {"velocity": 1.0}}, ["limits.velocity", "a list of numbers", "1.0"]),
        ({"limits": {"velocity": [0, 1]}}, ["limits.velocity", "with a point"]),
        ({"max_identical.velocity": -1}, ["max_identical.velocity: -1 is not between"]),
        ({"mode": "lockstep"}, ["mode", "'lockstep'", "did you mean lock_step"]),
        ({"mode": True}, ["mode", "a text", "True"]),
        ({"autostart": "yes"}, ["autostart", "true or false"]),
        ({"use_sim_time": 1}, ["use_sim_time", "true or false"]),
    ],
    ids=name_of_case,
)
def test_every_file_is_checked_before_anything_starts(tmp_path, refusal, values, words):
    files = {
        tmp_path / "all.yaml": SHARED,
        tmp_path / "types" / "base.yaml": SHARED,
        tmp_path / "one.yaml": "/one/policy",
    }
    for spoilt, node in files.items():
        for path, name in files.items():
            write_parameters(path, name)
        write_parameters(tmp_path / "one.yaml", "/one/policy", robot_type="base")
        document = values if spoilt.stem != "one" else {"robot_type": "base"} | values
        write_parameters(spoilt, node, **document)
        message = refusal(robot_parameters, "one", tmp_path)
        assert message.startswith(f"{spoilt}: {node}: ")
        for word in words:
            assert word in message


def test_files_that_are_missing_or_misnamed(tmp_path, refusal):
    def message():
        return refusal(robot_parameters, "one", tmp_path)

    assert message() == f"{tmp_path / 'all.yaml'}: no such file; check the path"
    write_parameters(tmp_path / "all.yaml")
    assert message() == f"{tmp_path / 'one.yaml'}: no such file; check the path"
    write_parameters(tmp_path / "all.yaml", robot_type="bsae")
    assert message() == f"{tmp_path / 'types' / 'bsae.yaml'}: no such file; check the path"
    write_parameters(tmp_path / "all.yaml", "/**/polcy")
    assert "'/**/polcy' is not '/**/policy'" in message()
    write_parameters(tmp_path / "all.yaml", robot_type="base")
    write_parameters(tmp_path / "types" / "base.yaml", robot_type="arm")
    assert "robot_type: 'arm' is not 'base'" in message()


def test_parameters_of_blocks_that_no_robot_has(deployment, tmp_path, refusal):
    path = tmp_path / "robots" / "robot_1.yaml"
    write_parameters(path, "/robot_1/policy", **{"limits.velocty": [-1.0, 1.0]})
    message = refusal(plan)
    assert message.startswith("robot_1: limits.velocty: ")
    assert "did you mean velocity" in message


def test_a_file_of_no_robot_is_refused_while_a_robot_has_none(deployment, tmp_path, refusal):
    robots = tmp_path / "robots"
    write_parameters(robots / "robbot_1.yaml", "/robbot_1/policy", timeout_s=0.1)
    message = refusal(plan)
    assert message.startswith("robots/robbot_1.yaml: ")
    assert "'robbot_1'; did you mean robot_1" in message
    for name in NAMES:  # a fleet may be larger than the team: nobody's file is missing
        write_parameters(robots / f"{name}.yaml", f"/{name}/policy")
    assert len(plan().robots) == 3


def test_one_robot_is_planned_as_in_the_swarm(deployment):
    one = plan_robot("robot_1", bundle="bundles/robot_1", robots="robots")
    assert one == deployment.robots[1]


@pytest.mark.parametrize("security", ["off", "enforce"])
def test_the_bundle_of_another_robot_only_where_it_is_meant(
    deployment, tmp_path, refusal, security
):
    """As the node does, which would otherwise end again and again."""
    private, _, _ = make_keys(tmp_path / "keys" / "fleet")
    for name in NAMES:
        sign_bundle(tmp_path / "bundles" / name, read_private_key(private))
    asked = SecurityPlan(security, "keys", allow_unsecured_middleware=True)
    given = {"bundle": "bundles/robot_1", "robots": "robots", "security": asked}
    message = refusal(plan_robot, "robot_2", **given)
    assert "robot_1" in message
    assert "robot_2" in message
    path = tmp_path / "robots" / "robot_7.yaml"
    write_parameters(path, "/robot_7/policy", robot="robot_1", robot_type="crawler")
    assert plan_robot("robot_7", **given).parameters["robot"] == "robot_1"
    path.unlink()
    write_parameters(tmp_path / "robots" / "all.yaml", robot_type="crawler", robot="robot_1")
    message = refusal(plan)
    assert f"{tmp_path / 'bundles' / 'alpha'}: the bundle of 'alpha'" in message
    assert "this is 'robot_1'" in message


def test_sensor_maps_are_checked_against_the_bundle(deployment, tmp_path, refusal):
    types = tmp_path / "robots" / "types"
    write_parameters(types / "crawler.yaml", sensor_map="map.yaml")
    given = {"bundle": "bundles/alpha", "robots": "robots"}
    message = refusal(plan_robot, "alpha", **given)
    assert message.startswith("alpha: sensor_map: mode is lock_step")
    assert "real_time" in message
    write_parameters(types / "crawler.yaml", sensor_map="map.yaml", mode="real_time")
    line = refusal(plan_robot, "alpha", **given)
    assert line == f"{types / 'map.yaml'}: no such file; check the path"
    write_yaml(types / "map.yaml", MAP)
    one = plan_robot("alpha", **given)
    assert one.parameters["sensor_map"] == str(types / "map.yaml")
    write_yaml(types / "map.yaml", renamed(MAP, "blocks.others", "other"))
    assert "unknown block 'other'" in refusal(plan_robot, "alpha", **given)


SECURITY = {
    "security": "", "trusted_keys": "", "keystore": "", "allow_unsecured_middleware": "false"
}  # fmt: skip


def test_security_is_told_to_all_nodes_over_their_files(deployment, tmp_path, refusal):
    types = tmp_path / "robots" / "types"
    write_parameters(types / "crawler.yaml", security="enforce", trusted_keys="../keys")
    message = refusal(plan)  # the files alone make it refuse
    assert message.startswith("bundles/alpha/")
    assert "unsigned" in message
    assert "unsigned" in refusal(plan_robot, "robot_1", bundle="bundles/robot_1", robots="robots")
    planned = plan(security=launch_arguments.security_plan(SECURITY | {"security": "off"}))
    for robot in planned.robots:
        assert robot.parameters["security"] == "off"
        assert robot.parameters["trusted_keys"] == str(types / ".." / "keys")
    assert planned.bridge.parameters["security"] == "off"
    assert plan_robot(
        "robot_1", bundle="bundles/robot_1", robots="robots",
        security=launch_arguments.security_plan(SECURITY | {"security": "off"}),
    ) == planned.robots[1]  # fmt: skip


def test_enforced_security_needs_a_keystore_or_leave(deployment, tmp_path, refusal, monkeypatch):
    private, _, _ = make_keys(tmp_path / "keys" / "fleet")
    key = read_private_key(private)
    for name in NAMES:
        sign_bundle(tmp_path / "bundles" / name, key)
    enforce = SECURITY | {"security": "enforce", "trusted_keys": "keys"}
    assert "no keystore" in refusal(plan, security=launch_arguments.security_plan(enforce))
    leave = launch_arguments.security_plan(enforce | {"allow_unsecured_middleware": "True"})
    planned = plan(security=leave)
    assert "NOT secured" in planned.warning
    for process in planned.processes:
        assert process.parameters["allow_unsecured_middleware"] is True
        assert process.enclave_arguments == []
    rights = team_rights(planned.team)
    make_keystore(tmp_path / "keystore", rights, ros_domain(os.environ), days=1)
    write_parameters(
        tmp_path / "robots" / "types" / "crawler.yaml", mode="real_time", sensor_map="map.yaml"
    )
    write_yaml(tmp_path / "robots" / "types" / "map.yaml", MAP)
    given = {"bundle": "bundles/robot_1", "robots": "robots"}
    keystore = leave._replace(keystore="keystore")
    message = refusal(plan_robot, "robot_1", **given, security=keystore)
    assert "rt/robot_1/cmd_vel" in message  # which that keystore does not give
    maps = sensor_maps(planned.team, "bundles", "robots")
    assert set(maps) == set(NAMES)
    make_keystore(
        tmp_path / "keystore", team_rights(planned.team, maps), ros_domain(os.environ), days=1
    )
    monkeypatch.setattr("kdmarl_ros.sros2.unsecured", lambda *probe: "no")
    plan_robot("robot_1", **given, security=keystore)
    write_parameters(tmp_path / "robots" / "types" / "crawler.yaml")
    make_keystore(tmp_path / "keystore", rights, ros_domain(os.environ), days=1)
    one = plan_robot("robot_1", **given, security=keystore)
    assert one == plan(security=keystore).robots[1]


def test_real_time_and_its_rate_are_the_robots_and_the_bridges(deployment):
    planned = plan(overrides={"mode": "real_time", "rate_hz": 20.0})
    for process in planned.processes:
        assert process.parameters["mode"] == "real_time"
        assert process.parameters["rate_hz"] == 20.0
    assert "mode" not in plan().bridge.parameters
    assert "rate_hz" not in plan().bridge.parameters


def test_what_the_robots_files_say_of_time_is_the_bridges_too(deployment, tmp_path, refusal):
    shared, own = tmp_path / "robots" / "all.yaml", tmp_path / "robots" / "robot_1.yaml"
    write_parameters(shared, robot_type="crawler", mode="real_time")  # the type has 5 Hz
    for planned in (plan(), plan(hosted=True)):
        assert planned.bridge.parameters["mode"] == "real_time"
        assert planned.bridge.parameters["rate_hz"] == 5.0
    assert plan(overrides={"rate_hz": 20.0}).bridge.parameters["rate_hz"] == 20.0
    write_parameters(own, "/robot_1/policy", rate_hz=7.0)
    message = refusal(plan)
    assert message.startswith(f"{Path('robots') / own.name}: rate_hz: 7.0 of robot_1 is not 5.0")
    assert plan(overrides={"rate_hz": 20.0}).bridge.parameters["rate_hz"] == 20.0
    write_parameters(own, "/robot_1/policy", mode="lock_step")
    message = refusal(plan)
    assert message.startswith(f"{Path('robots') / own.name}: mode: lock_step of robot_1 is not ")


def test_robots_on_real_sensors_have_no_bridge(deployment, tmp_path, refusal):
    path = Path("robots") / "types" / "crawler.yaml"
    write_parameters(path, mode="real_time", sensor_map="map.yaml")
    assert refusal(plan).startswith(f"{path}: sensor_map: alpha would listen to real sensors")


def test_a_recorded_run_is_told_to_all_that_send(deployment, tmp_path, monkeypatch):
    monkeypatch.delenv(FASTDDS_PROFILES, raising=False)
    for hosted in (False, True):
        planned = plan(recording=tmp_path / "recording.mcap", hosted=hosted)
        for process in (*planned.robots, planned.bridge):
            assert process.parameters["recorded"] is True
        for process in planned.processes:
            assert "<heartbeat_period>" in Path(process.environment[FASTDDS_PROFILES]).read_text()
    given = {"bundle": "bundles/robot_1", "robots": "robots"}
    one = plan_robot(
        "robot_1", **given, overrides=launch_arguments.overrides(launched(record="true"))
    )
    assert one.parameters["recorded"] is True
    assert FASTDDS_PROFILES in one.environment
    for process in (*deployment.processes, plan_robot("robot_1", **given)):
        assert "recorded" not in process.parameters
        assert FASTDDS_PROFILES not in process.environment
    monkeypatch.setenv(FASTDDS_PROFILES, "my.xml")
    for process in plan(recording=tmp_path / "recording.mcap").processes:
        assert FASTDDS_PROFILES not in process.environment  # the user's own stays


def test_recordings_of_earlier_episodes_stay(tmp_path):
    results = tmp_path / "episodes.jsonl"
    for name in ("recording.mcap", "recording_2.mcap", "recording_3.mcap"):
        assert new_recording(results) == tmp_path / name
        (tmp_path / name).touch()


def test_disturbances_are_the_bridges_alone(deployment):
    loss = launch_arguments.simulation(launched(sensor_loss="0.1", sensor_delay_steps="2"))
    planned = plan(overrides={"mode": "real_time"}, simulation=loss)
    assert planned.bridge.parameters["sensor_loss"] == 0.1
    assert planned.bridge.parameters["sensor_delay_steps"] == 2
    assert all("sensor_loss" not in robot.parameters for robot in planned.robots)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"overrides": {"rate_hz": 20.0}}, ["rate_hz", "lock-step", "--real-time"]),
        ({"simulation": {"sensor_loss": 0.1}}, ["sensor_loss", "lock-step", "--real-time"]),
        ({"simulation": {"sensor_loss": 1.5}}, ["sensor_loss", "1.5", "between 0.0 and 1.0"]),
        ({"simulation": {"sensor_delay_steps": -1}}, ["sensor_delay_steps", "-1"]),
        ({"episodes": 0}, ["episodes", "0"]),
        ({"task": "smax/3m"}, ["trio.yaml", "mpe/simple_spread is not smax/3m"]),
    ],
    ids=name_of_case,
)
def test_a_simulation_that_cannot_be_is_refused_before_it_starts(
    deployment, refusal, given, words
):
    message = refusal(plan, **given)
    for word in words:
        assert word in message


def test_limits_of_blocks_reach_the_robots(deployment, tmp_path):
    write_parameters(
        tmp_path / "robots" / "types" / "crawler.yaml", limits={"velocity": [-1.0, 1.0]}
    )
    assert plan().robots[0].parameters["limits.velocity"] == [-1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("security", "enforced", ["security", "'enforced'", "did you mean enforce"]),
        ("allow_unsecured_middleware", "maybe", ["allow_unsecured_middleware", "'maybe'"]),
    ],
)
def test_bad_security_of_a_launch(refusal, name, value, words):
    message = refusal(launch_arguments.security_plan, SECURITY | {name: value})
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("name", "value", "read", "words"),
    [
        ("rate", "fast", launch_arguments.overrides, ["rate", "'fast'", "not a number"]),
        ("use_sim_time", "perhaps", launch_arguments.overrides, ["use_sim_time", "true or false"]),
        ("real_time", "1", launch_arguments.overrides, ["real_time", "true or false"]),
        ("log_level", "loud", launch_arguments.log_level, ["log_level", "'loud'", "debug"]),
        (
            "sensor_noise",
            "much",
            launch_arguments.simulation,
            ["sensor_noise", "'much'", "not a number"],
        ),
        (
            "sensor_delay_steps",
            "0.5",
            launch_arguments.simulation,
            ["'0.5'", "not a whole number"],
        ),
    ],
)
def test_bad_launch_arguments(refusal, name, value, read, words):
    message = refusal(read, launched(**{name: value}))
    for word in words:
        assert word in message
    assert "episodes: 'all' is not a whole number" in refusal(
        launch_arguments.number, "episodes", "all"
    )


def test_a_robot_with_a_bad_name_or_rate(deployment, refusal):
    assert "'robot 1'" in refusal(plan_robot, "robot 1", bundle="bundles/robot_1")
    message = refusal(plan, overrides=launch_arguments.overrides(launched(rate="-3")))
    assert "rate_hz: -3.0 is not between" in message


@pytest.mark.parametrize("name", ["swarm", "bridge", "recorder", "policy_host"])
def test_names_that_are_the_swarms_own(deployment, refusal, tmp_path, name):
    """Its topics, its record of stops or its log would be another's."""
    assert f"robot '{name}'" in refusal(plan_robot, name, bundle="bundles/robot_1")


def test_a_keystore_that_would_not_be_used(deployment, refusal):
    for level in ("", "off", "check"):
        message = refusal(plan, security=SecurityPlan(level=level, keystore="nowhere"))
        assert message.startswith("keystore: nowhere: ")
        assert "enforce" in message


def test_hosted_robots_are_told_what_they_are_told_alone(deployment):
    hosted = plan(hosted=True)
    assert hosted.robots == deployment.robots
    assert [process.label for process in hosted.processes] == ["policy_host", "bridge"]
    command = hosted.host.command()
    for robot in deployment.robots:
        own = robot.ros_arguments()
        at = command.index(own[2]) - 2
        assert command[at - 1 : at + len(own)] == ["--", *own]


@pytest.mark.parametrize(
    ("values", "words"),
    [({"sole_publisher": True}, ["robot_1", "sole_publisher", "True"])],
)
def test_what_holds_others_up_is_not_hosted(deployment, tmp_path, refusal, values, words):
    folder = tmp_path / "robots"
    write_parameters(folder / "all.yaml")
    for name in NAMES:
        own = values if name == "robot_1" else {}
        write_parameters(folder / f"{name}.yaml", f"/{name}/policy", **own)
    line = refusal(plan, hosted=True, robots="robots")
    for word in words:
        assert word in line
