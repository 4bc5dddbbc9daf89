"""Security as processes see it: who starts, who refuses, and what a node may do."""

import os
import shutil
import subprocess
import sys
import time

import pytest
import rclpy
from ros_driver import until_said

from kdmarl_core.bundle import MODEL
from kdmarl_core.bundle.signing import make_keys, read_private_key, sign_bundle
from kdmarl_core.team import load_team
from kdmarl_ros import sros2, topics
from kdmarl_ros.security import ENFORCED, KEYSTORE

pytestmark = pytest.mark.ros

ROBOT = "robot_0"


@pytest.fixture
def signed(bundles, tmp_path):
    """A signed copy of the team's bundles, and the folder of the key that signed them."""
    folder = tmp_path / "signed"
    shutil.copytree(bundles, folder)
    private, _, _ = make_keys(tmp_path / "keys" / "fleet")
    for place in folder.iterdir():
        sign_bundle(place, read_private_key(private))
    return folder


@pytest.fixture
def node(domain, start_node, signed, tmp_path):
    def start(*arguments, bundle=None):
        return start_node(
            "policy_node", "-r", f"__ns:=/{ROBOT}", "-p", f"bundle:={bundle or signed / ROBOT}",
            "-p", f"trusted_keys:={tmp_path / 'keys'}", *arguments,
        )  # fmt: skip

    return start


@pytest.fixture
def keystore(domain, tmp_path):
    folder = tmp_path / "keystore"
    sros2.make_keystore(folder, sros2.team_rights(load_team("simple_spread")), domain, days=1)
    return folder


OPEN = ("-p", "allow_unsecured_middleware:=true")


def said(child):
    """What a process said before it ended with the code of a user's mistake."""
    child.wait(timeout=60)
    log = child.log.read_text()
    assert child.returncode == 2, log
    return log


# Signatures


@pytest.mark.parametrize("security", ["check", "enforce"])
def test_a_signed_bundle_flies(node, security):
    assert "signed by fleet" in until_said(
        node("-p", f"security:={security}", *OPEN), "configured"
    )


def test_an_unsigned_bundle_flies_only_if_that_is_allowed(node, bundles):
    unsigned = bundles / ROBOT
    assert "unsigned" in until_said(node("-p", "security:=check", bundle=unsigned), "configured")
    assert "unsigned" in said(node("-p", "security:=enforce", *OPEN, bundle=unsigned))


def test_tampered_bundles_are_refused(node, signed):
    path = signed / ROBOT / MODEL
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "SHA-256" in said(node("-p", "security:=check"))


def test_the_neighbours_bundle_is_refused(node, signed):
    message = said(node("-p", "security:=enforce", *OPEN, bundle=signed / "robot_1"))
    assert "'robot_1'" in message
    assert "'robot_0'" in message


# Topics


@pytest.mark.parametrize("executable", ["policy_node", "bridge_node"])
def test_nobody_enforces_on_open_topics(domain, start_node, signed, tmp_path, executable):
    own = {
        "policy_node": [f"bundle:={signed / ROBOT}", f"trusted_keys:={tmp_path / 'keys'}"],
        "bridge_node": ["team:=simple_spread", f"results:={tmp_path / 'results'}"],
    }[executable]
    arguments = [word for value in (*own, "security:=enforce") for word in ("-p", value)]
    message = said(start_node(executable, *arguments))
    assert "ROS_SECURITY_ENABLE" in message
    assert "allow_unsecured_middleware" in message


def used_by(node, probe):
    """The DDS topics of a running node's publishers, subscriptions and services."""
    name, space = node
    topics_of = {
        "publish": probe.get_publisher_names_and_types_by_node(name, space),
        "subscribe": probe.get_subscriber_names_and_types_by_node(name, space),
    }
    found = {kind: {f"rt{topic}" for topic, _ in names} for kind, names in topics_of.items()}
    services = [name for name, _ in probe.get_service_names_and_types_by_node(name, space)]
    found["publish"] |= {f"rr{service}Reply" for service in services}
    found["subscribe"] |= {f"rq{service}Request" for service in services}
    return {kind: names | {"ros_discovery_info"} for kind, names in found.items()}


@pytest.mark.parametrize("name", ["simple_spread", "simple_spread_lh_messages"])
def test_rights_are_exactly_what_the_nodes_use(domain, start_node, write_bundles, tmp_path, name):
    """What a node makes must be allowed, or it fails where topics are secured; and no more is."""
    team = load_team(name)
    bundles = write_bundles(team)
    start_node(
        "policy_node", "-r", f"__ns:=/{ROBOT}", "-p", f"bundle:={bundles / ROBOT}",
        "-p", "use_sim_time:=true",
    )  # fmt: skip
    start_node("bridge_node", "-p", f"team:={name}", "-p", f"results:={tmp_path / 'r'}")
    start_node(
        "recorder_node", "-p", f"team:={name}", "-p", f"bundles:={bundles}",
        "-p", f"recording:={tmp_path / 'r.mcap'}",
    )  # fmt: skip
    # The recorder listens to sensors once there are robots to record.
    for robot in team.robots[1:]:
        start_node(
            "policy_node", "-r", f"__ns:=/{robot.name}", "-p", f"bundle:={bundles / robot.name}"
        )
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    probe = rclpy.create_node("probe", context=context)
    nodes = {
        ROBOT: (topics.POLICY_NODE, f"/{ROBOT}"),
        sros2.BRIDGE: (topics.BRIDGE_NODE, "/"),
        sros2.RECORDER: (topics.RECORDER_NODE, "/"),
    }
    rights = sros2.team_rights(team)
    expected = {e: {k: set(v) for k, v in rights[e]._asdict().items()} for e in nodes}
    found = {}
    try:
        give_up = time.monotonic() + 60
        while found != expected and time.monotonic() < give_up:
            time.sleep(0.2)
            there = set(probe.get_node_names_and_namespaces())
            if there >= set(nodes.values()):
                found = {enclave: used_by(node, probe) for enclave, node in nodes.items()}
        assert found == expected
    finally:
        probe.destroy_node()
        rclpy.shutdown(context=context)


# The keystore


def try_enclave(keystore, enclave):
    """What rcl and the middleware say to a node in that enclave."""
    code = (
        "import rclpy\n"
        f"rclpy.init(args=['--ros-args', '--enclave', '/{enclave}'])\n"
        f"rclpy.create_node('policy', namespace='{enclave}')\n"
        "print('there')"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | ENFORCED | {KEYSTORE: str(keystore)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_rcl_finds_the_enclaves_and_refuses_others(keystore):
    done = try_enclave(keystore, ROBOT)
    assert f"Found security directory: {keystore / 'enclaves' / ROBOT}" in done.stderr
    assert done.returncode == 0 or "security libraries" in done.stderr
    done = try_enclave(keystore, "robot_9")
    assert done.returncode != 0
    assert "robot_9' does not exist" in done.stderr


def secured():
    """Whether this machine's middleware was built with DDS-Security."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as temporary:
        team = load_team("simple_spread")
        sros2.make_keystore(Path(temporary) / "ks", sros2.team_rights(team), 0, days=1)
        return sros2.unsecured(Path(temporary) / "ks", sros2.BRIDGE, "bridge", "") is None


def test_a_swarm_enforces_or_says_that_it_cannot(kdmarl, signed, keystore, tmp_path):
    command = [
        *["swarm", "--team", "simple_spread", "--bundles", str(signed), "--episodes", "1"],
        *["--security", "enforce", "--trusted-keys", str(tmp_path / "keys")],
        *["--keystore", str(keystore), "--overwrite"],
    ]
    done = kdmarl(*command)
    if secured():
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "cannot keep robots to their own topics" in done.stderr
    done = kdmarl(*command, "--allow-unsecured-middleware")
    assert done.returncode == 0, done.stderr
    assert "topics are NOT secured" in done.stderr


def test_a_swarm_refuses_before_anything_starts(kdmarl, bundles, keystore, tmp_path):
    (tmp_path / "keys").mkdir()
    command = ["swarm", "--team", "simple_spread", "--bundles", str(bundles)]
    done = kdmarl(*command, "--security", "enforce", "--trusted-keys", str(tmp_path / "keys"))
    assert done.returncode == 2
    assert "unsigned" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_process_whose_topics_cannot_be_secured_says_so(node, keystore, monkeypatch):
    for name, value in (ENFORCED | {KEYSTORE: str(keystore)}).items():
        monkeypatch.setenv(name, value)
    lines = said(node("-p", "security:=enforce", "--enclave", "/robot_9")).strip().splitlines()
    assert lines[-1].startswith("kdmarl: topics cannot be secured: ")
