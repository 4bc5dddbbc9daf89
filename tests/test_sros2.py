"""SROS2 keystores: each robot is given its own topics, by documents that others verify, too."""

import datetime
import shutil
import subprocess
import xml.etree.ElementTree as ET

import pytest
from helpers import TEAM_FILE, changed, make_manifest, renamed, write_yaml

from kdmarl_core.team import load_team
from kdmarl_ros import sros2
from kdmarl_ros.sensor_map import SensorMap
from kdmarl_ros.sensor_map.file import CommandEntry, MapFile, SourceEntry
from kdmarl_ros.sros2 import (
    Rights,
    check_keystore,
    documents,
    make_keystore,
    ros_domain,
    team_rights,
    unsecured,
)
from kdmarl_ros.sros2 import keystore as keystore_files

DOMAIN = 7
DOCUMENTS = (keystore_files.GOVERNANCE, keystore_files.PERMISSIONS)
openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")

# Children in the order in which the schemas of DDS-Security 1.1 want them.
SEQUENCES = {
    "domain_rule": [
        "domains",
        "allow_unauthenticated_participants",
        "enable_join_access_control",
        "discovery_protection_kind",
        "liveliness_protection_kind",
        "rtps_protection_kind",
        "topic_access_rules",
    ],
    "topic_rule": [
        "topic_expression",
        "enable_discovery_protection",
        "enable_liveliness_protection",
        "enable_read_access_control",
        "enable_write_access_control",
        "metadata_protection_kind",
        "data_protection_kind",
    ],
    "grant": ["subject_name", "validity", "allow_rule", "default"],
    "validity": ["not_before", "not_after"],
    "allow_rule": ["domains", "publish", "subscribe"],
    "publish": ["topics"],
    "subscribe": ["topics"],
    "domains": ["id"],
}


@pytest.fixture
def team(tmp_path):
    document = changed(TEAM_FILE, "robots.robot_1.sensors", ["velocity"])
    return load_team(str(write_yaml(tmp_path / "trio.yaml", document)))


@pytest.fixture
def keystore(team, tmp_path):
    folder = tmp_path / "keystore"
    make_keystore(folder, team_rights(team), DOMAIN, days=30)
    return folder


def run_openssl(*arguments):
    return subprocess.run(
        ["openssl", *map(str, arguments)], capture_output=True, text=True, check=False
    )


# Rights


def test_a_robot_has_its_own_topics_only(team):
    rights = team_rights(team)["robot_1"]
    assert {name for name in rights.subscribe if name.startswith("rt/")} == {
        "rt/robot_1/sensors/velocity",
        "rt/robot_1/emergency_stop",
        "rt/robot_1/override",
        "rt/swarm/emergency_stop",
        "rt/clock",
    }
    assert {name for name in rights.publish if name.startswith("rt/")} == {
        "rt/robot_1/action",
        "rt/robot_1/model",
        "rt/robot_1/stopped",
        "rt/robot_1/policy/transition_event",
        "rt/diagnostics",
        "rt/rosout",
        "rt/parameter_events",
    }
    services = [name for name in rights.publish if name.startswith("rr/")]
    own = ("rr/robot_1/policy/", "rr/robot_1/emergency_stop")
    assert all(name.startswith(own) for name in services)
    assert not [name for name in (*rights.publish, *rights.subscribe) if "*" in name]


def test_a_robot_with_a_sensor_map_has_the_topics_of_the_map(team):
    velocity = SourceEntry("odom", "nav_msgs/msg/Odometry", ("pose.pose.position.x",) * 2)
    command = CommandEntry(
        "/base/cmd_vel", "geometry_msgs/msg/Twist", ("linear.x",), {"stay": (0.0,)}, 1.0, 1.0,
    )  # fmt: skip
    manifest = make_manifest([("velocity", 2)], actions=("stay",), safe_action="stay")
    sensor_map = SensorMap(MapFile({"velocity": velocity}, command), manifest, "/robot_1", 1.0, "")
    simulated = team_rights(team)
    rights = team_rights(team, {"robot_1": sensor_map})
    assert rights["robot_1"].publish - simulated["robot_1"].publish == {"rt/base/cmd_vel"}
    assert rights["robot_1"].subscribe - simulated["robot_1"].subscribe == {"rt/robot_1/odom"}
    assert not any("/sensors/" in name for name in rights["robot_1"].subscribe)
    del simulated["robot_1"], rights["robot_1"]
    assert rights == simulated


def test_only_the_bridge_writes_sensors_and_only_robots_act(team):
    rights = team_rights(team)
    for enclave, granted in rights.items():
        sensors = {name for name in granted.publish if "/sensors/" in name}
        assert bool(sensors) == (enclave == sros2.BRIDGE)
        acts = {name for name in granted.publish if name.endswith("/action")}
        assert acts == ({f"rt/{enclave}/action"} if enclave.startswith("robot_") else set())
    written = {n for n in rights[sros2.BRIDGE].publish if "/sensors/" in n}
    read = {n for r in team.robots for n in rights[r.name].subscribe if "/sensors/" in n}
    assert written == read
    assert len(written) == 4 + 1 + 4


def test_a_robot_cannot_take_another_process_for_itself(tmp_path, refusal):
    document = renamed(TEAM_FILE, "robots.robot_0", "bridge")
    team = load_team(str(write_yaml(tmp_path / "trio.yaml", document)))
    assert "'bridge'" in refusal(team_rights, team)


# Documents


def test_documents_follow_the_schemas(team):
    now = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    rights = team_rights(team)["robot_0"]
    permissions = documents.permissions_xml("robot_0", rights, DOMAIN, (now, now))
    for document in (documents.governance_xml(DOMAIN), permissions):
        root = ET.fromstring(document)
        assert root.tag == "dds"
        for element in root.iter():
            if element.tag in SEQUENCES:
                assert [child.tag for child in element] == SEQUENCES[element.tag]
            if element.tag.endswith("protection_kind"):
                assert element.text in {"ENCRYPT", "SIGN"}
            if element.tag.startswith(("enable_", "allow_un")):
                assert (
                    element.text
                    == str(element.tag != "allow_unauthenticated_participants").lower()
                )
            if element.tag == "domains":
                assert element.findtext("id") == str(DOMAIN)
    grant = ET.fromstring(permissions).find("permissions/grant")
    assert grant.get("name") == "/robot_0"
    assert grant.findtext("subject_name") == "CN=/robot_0"
    assert grant.findtext("default") == "DENY"
    assert grant.findtext("validity/not_before") == "2026-01-02T03:04:05"


def test_the_layout_is_what_rcl_looks_for(keystore, team):
    for robot in team.robots:
        place = keystore / "enclaves" / robot.name
        assert {*keystore_files.ENCLAVE_FILES, "permissions.xml"} == {
            p.name for p in place.iterdir()
        }
        assert (place / keystore_files.KEY).stat().st_mode & 0o777 == 0o600
    private = keystore / "private" / "ca.key.pem"
    assert private.stat().st_mode & 0o777 == 0o600
    assert private.read_bytes() not in [p.read_bytes() for p in keystore.glob("enclaves/*/*")]


@openssl
def test_openssl_verifies_certificates_and_signatures(keystore, tmp_path):
    ca = keystore / "public" / "ca.cert.pem"
    for place in (keystore / "enclaves").iterdir():
        done = run_openssl("verify", "-CAfile", ca, place / keystore_files.CERTIFICATE)
        assert done.returncode == 0, done.stderr
        for name in DOCUMENTS:
            out = tmp_path / "out.xml"
            done = run_openssl(
                "smime", "-verify", "-text", "-in", place / name, "-CAfile",
                place / keystore_files.PERMISSIONS_CA, "-out", out,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            ET.parse(out)


@openssl
def test_an_altered_document_is_not_verified(keystore):
    place = keystore / "enclaves" / "robot_1"
    content = (place / keystore_files.PERMISSIONS).read_bytes()
    (place / keystore_files.PERMISSIONS).write_bytes(content.replace(b"/velocity", b"/position"))
    done = run_openssl(
        "smime", "-verify", "-text", "-in", place / keystore_files.PERMISSIONS, "-CAfile",
        place / keystore_files.PERMISSIONS_CA,
    )  # fmt: skip
    assert done.returncode != 0


# Checks


def test_a_keystore_of_the_team_is_accepted(keystore, team):
    check_keystore(keystore, team_rights(team), DOMAIN)


def test_a_middleware_that_is_tried_in_vain_is_one_line(keystore, refusal, monkeypatch):
    monkeypatch.setattr("kdmarl_ros.sros2.middleware.PROBE_TIMEOUT_S", 0.01)
    message = refusal(unsecured, keystore, "robot_1", "policy", "robot_1")
    assert message.startswith("enclave robot_1: ")
    assert "after 0.01 s" in message


def test_a_renewed_keystore_keeps_its_authority(keystore, team):
    ca = (keystore / "public" / "ca.cert.pem").read_bytes()
    key = (keystore / "enclaves" / "robot_0" / keystore_files.KEY).read_bytes()
    make_keystore(keystore, team_rights(team), DOMAIN, days=60)
    assert (keystore / "public" / "ca.cert.pem").read_bytes() == ca
    assert (keystore / "enclaves" / "robot_0" / keystore_files.KEY).read_bytes() != key
    check_keystore(keystore, team_rights(team), DOMAIN)


def lose_governance(keystore):
    (keystore / "enclaves" / "robot_0" / keystore_files.GOVERNANCE).unlink()


def lose_enclave(keystore):
    shutil.rmtree(keystore / "enclaves" / "robot_0")


def open_key(keystore):
    (keystore / "enclaves" / "robot_0" / keystore_files.KEY).chmod(0o644)


def swap_keys(keystore):
    here, there = (
        keystore / "enclaves" / name / keystore_files.KEY for name in ("robot_0", "robot_1")
    )
    here.write_bytes(there.read_bytes())


def swap_enclaves(keystore):
    here, there = (keystore / "enclaves" / name for name in ("robot_0", "robot_1"))
    shutil.rmtree(here)
    shutil.copytree(there, here)


def swap_permissions(keystore):
    here, there = (
        keystore / "enclaves" / name / keystore_files.PERMISSIONS
        for name in ("robot_0", "robot_1")
    )
    here.write_bytes(there.read_bytes())


def another_authority(keystore):
    other = keystore.parent / "other"
    make_keystore(other, {"robot_0": Rights(frozenset(), frozenset())}, DOMAIN, days=30)
    content = (other / "public" / "ca.cert.pem").read_bytes()
    (keystore / "enclaves" / "robot_0" / keystore_files.IDENTITY_CA).write_bytes(content)


def garble_certificate(keystore):
    (keystore / "enclaves" / "robot_0" / keystore_files.CERTIFICATE).write_text("nonsense")


def garble_permissions(keystore):
    (keystore / "enclaves" / "robot_0" / keystore_files.PERMISSIONS).write_text("nonsense")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lose_governance, "no governance.p7s"),
        (lose_enclave, "no identity_ca.cert.pem"),
        (open_key, "chmod 600"),
        (swap_keys, "is not the key of"),
        (swap_enclaves, "'CN=/robot_1' is not 'CN=/robot_0'"),
        (swap_permissions, "rt/robot_1/action"),
        (another_authority, "cert.pem: "),
        (garble_certificate, "cert.pem: "),
        (garble_permissions, "permissions.p7s: cannot be read"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_spoiled_keystores_are_refused(keystore, team, spoil, said, refusal):
    spoil(keystore)
    message = refusal(check_keystore, keystore, team_rights(team), DOMAIN)
    assert str(keystore / "enclaves" / "robot_0") in message
    assert said in message


def test_expired_certificates_are_refused(team, tmp_path, refusal):
    make_keystore(tmp_path / "old", team_rights(team), DOMAIN, days=-1)
    message = refusal(check_keystore, tmp_path / "old", team_rights(team), DOMAIN)
    assert "not now" in message
    assert "kdmarl keystore" in message


def test_rights_of_another_team_are_refused(keystore, tmp_path, refusal):
    """The team file was changed after the keystore was made."""
    team = load_team(str(write_yaml(tmp_path / "now.yaml", TEAM_FILE)))
    message = refusal(check_keystore, keystore, team_rights(team), DOMAIN)
    assert "lacks" in message
    assert "rt/robot_1/sensors/landmarks" in message


def test_another_domain_is_refused(keystore, team, refusal):
    message = refusal(check_keystore, keystore, team_rights(team), 8)
    assert "for domain 7, but ROS_DOMAIN_ID is 8" in message


@pytest.mark.parametrize("text", ["233", "-1", "robots", "1.5"])
def test_what_is_no_domain_is_refused(text, refusal):
    assert f"'{text}'" in refusal(ros_domain, {"ROS_DOMAIN_ID": text})


def test_domains():
    assert [ros_domain({"ROS_DOMAIN_ID": text}) for text in ("", "0", "232")] == [0, 0, 232]
    assert ros_domain({}) == 0


def test_a_folder_of_others_is_left_alone(team, tmp_path, refusal):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "diary.txt").write_text("precious")
    assert "not empty" in refusal(make_keystore, tmp_path / "home", team_rights(team), DOMAIN, 30)
    assert [p.name for p in (tmp_path / "home").iterdir()] == ["diary.txt"]


def test_the_command(tmp_path, kdmarl, monkeypatch, team):
    monkeypatch.setenv("ROS_DOMAIN_ID", str(DOMAIN))
    done = kdmarl("keystore", "--team", team.path, "--output", tmp_path / "ks", "--days", "9")
    assert done.code == 0, done.err
    assert done.out.count("in domain 7") == 6
    check_keystore(tmp_path / "ks", team_rights(team), DOMAIN)
