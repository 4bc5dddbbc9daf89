"""SROS2 for a team: a keystore in which each process may use its own topics and no others.

The layout is that of `ros2 security`, so that its tools work on it, too: a certificate authority
under `public/` and `private/`, and under `enclaves/` one folder per process, which is all that its
machine needs. Robots and the recorder are enclaves of their own, so is the bridge, which alone may
write sensor blocks, and an operator, who may read everything and call services.

Names are those of DDS: `rt/` topics, `rq/` requests and `rr/` replies of services.
"""

from __future__ import annotations

import datetime
import email
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from rclpy.expand_topic_name import expand_topic_name

from kdmarl_core.bundle.signing import write_new
from kdmarl_core.errors import UserError, did_you_mean
from kdmarl_core.files import atomic_folder
from kdmarl_core.team import Team
from kdmarl_ros import team_topics, topics
from kdmarl_ros.security import ENFORCED, KEYSTORE
from kdmarl_ros.sensor_map import SensorMap

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

BRIDGE, RECORDER, OPERATOR = "bridge", "recorder", "operator"
CERTIFICATE, KEY = "cert.pem", "key.pem"
IDENTITY_CA, PERMISSIONS_CA = "identity_ca.cert.pem", "permissions_ca.cert.pem"
GOVERNANCE, PERMISSIONS = "governance.p7s", "permissions.p7s"
# What rcl and the middleware look for in an enclave's folder.
ENCLAVE_FILES = (IDENTITY_CA, CERTIFICATE, KEY, PERMISSIONS_CA, GOVERNANCE, PERMISSIONS)

LARGEST_DOMAIN = 232
CA_DAYS = 3650
PROBE_TIMEOUT_S = 30.0
_SCHEMAS = "http://www.omg.org/spec/DDS-SECURITY/20170901/omg_shared_ca_"
_TIME = "%Y-%m-%dT%H:%M:%S"

PARAMETER_SERVICES = (
    "describe_parameters",
    "get_parameter_types",
    "get_parameters",
    "list_parameters",
    "set_parameters",
    "set_parameters_atomically",
)
LIFECYCLE_SERVICES = (
    "change_state",
    "get_available_states",
    "get_available_transitions",
    "get_state",
    "get_transition_graph",
)
NODE_SERVICES = tuple(f"~/{name}" for name in (*PARAMETER_SERVICES, "get_type_description"))
_OF_EVERY_NODE = ("rt/rosout", "rt/parameter_events")


class Rights(NamedTuple):
    """The DDS topics that a process may publish and subscribe to; all others are denied."""

    publish: frozenset[str]
    subscribe: frozenset[str]


# Who may do what


def team_rights(
    team: Team, maps: Mapping[str, SensorMap] = MappingProxyType({})
) -> dict[str, Rights]:
    """The rights of all processes of a team by the name of their enclave.

    Args:
        team: the team.
        maps: the sensor maps of those robots that have one.

    Raises:
        UserError: a robot has the name of another process.
    """
    others = {
        BRIDGE: bridge_rights(team),
        RECORDER: recorder_rights(team),
        OPERATOR: operator_rights(),
    }
    for robot in team.robots:
        if robot.name in others:
            raise UserError(
                f"{team.path}: robots: '{robot.name}' is the name of another process; rename it"
            )
    of_robots = {
        robot.name: robot_rights(
            robot.name,
            team_topics.inputs(robot, team),
            maps.get(robot.name),
            tells=robot.messages is not None,
            peers=[peer.robot for peer in robot.peers],
        )
        for robot in team.robots
    }
    return of_robots | others


def robot_rights(
    robot: str,
    inputs: Iterable[str],
    sensor_map: SensorMap | None,
    *,
    tells: bool = False,
    peers: Iterable[str] = (),
) -> Rights:
    """Its own sensors and what people tell it in; its own action and reports out.

    With a sensor map its sensors are what the map listens to, and its commands go out, too. If it
    `tells` others something, so do its messages, and those of its peers come in.
    """
    told = [topics.of_peer(f"/{robot}", peer, topics.MESSAGE) for peer in peers]
    heard = [topics.sensor(name) for name in inputs]
    commands: list[str] = []
    if sensor_map is not None:
        heard = [source.topic for source in sensor_map.sources]
        commands = [sensor_map.command.topic]
    return _rights(
        f"/{robot}",
        topics.POLICY_NODE,
        publish=[
            topics.ACTION,
            topics.MODEL,
            topics.STOPPED,
            topics.DIAGNOSTICS,
            *([topics.MESSAGE] if tells else []),
            "~/transition_event",
            *commands,
        ],
        subscribe=[
            *heard,
            *told,
            topics.EMERGENCY_STOP,
            topics.SWARM_STOP,
            topics.OVERRIDE,
            topics.CLOCK,
        ],
        serve=[
            *NODE_SERVICES,
            *(f"~/{name}" for name in LIFECYCLE_SERVICES),
            topics.EMERGENCY_STOP,
            topics.RELOAD,
        ],
    )


def bridge_rights(team: Team) -> Rights:
    """All sensors, the clock, the picture and its stop out; all actions and models in."""
    return _rights(
        "/",
        topics.BRIDGE_NODE,
        publish=[
            *(topic.name for topic in team_topics.sensor_topics(team)),
            topics.STEP,
            topics.MARKERS,
            topics.CLOCK,
            topics.DIAGNOSTICS,
            topics.SWARM_STOP,
        ],
        subscribe=[
            topics.of_robot(robot.name, name)
            for robot in team.robots
            for name in (topics.ACTION, topics.MODEL)
        ],
        serve=[*NODE_SERVICES, topics.SWARM_STOP, topics.PAUSE, topics.SINGLE_STEP],
    )


def recorder_rights(team: Team) -> Rights:
    """Everything that is recorded in, nothing out."""
    heard = [topic.name for topic in team_topics.recorded_topics(team)]
    return _rights("/", topics.RECORDER_NODE, publish=[], subscribe=heard, serve=[])


def operator_rights() -> Rights:
    """For people and their tools: all to see, all services to call, stops and manual actions."""
    told = (f"rt/*/{name}" for name in (topics.EMERGENCY_STOP, topics.OVERRIDE))
    return Rights(
        frozenset({"ros_discovery_info", "rq/*Request", *told, *_OF_EVERY_NODE}),
        frozenset({"ros_discovery_info", "rr/*Reply", "rt/*"}),
    )


def _rights(
    namespace: str,
    node: str,
    *,
    publish: Iterable[str],
    subscribe: Iterable[str],
    serve: Iterable[str],
) -> Rights:
    """What every node has (its log, its parameters' events), and its own, by names of ROS."""

    def dds(prefix: str, names: Iterable[str], suffix: str = "") -> set[str]:
        return {f"{prefix}{expand_topic_name(n, node, namespace)}{suffix}" for n in names}

    services = list(serve)
    return Rights(
        frozenset(
            {"ros_discovery_info", *_OF_EVERY_NODE}
            | dds("rt", publish)
            | dds("rr", services, "Reply")
        ),
        frozenset({"ros_discovery_info"} | dds("rt", subscribe) | dds("rq", services, "Request")),
    )


# Documents of DDS-Security


def governance_xml(domain: int) -> bytes:
    """Nobody joins unknown; everything is encrypted; permissions decide on every topic."""
    root = _document("governance")
    rule = ET.SubElement(ET.SubElement(root, "domain_access_rules"), "domain_rule")
    _domains(rule, domain)
    for name, value in (
        ("allow_unauthenticated_participants", "false"),
        ("enable_join_access_control", "true"),
        ("discovery_protection_kind", "ENCRYPT"),
        ("liveliness_protection_kind", "ENCRYPT"),
        ("rtps_protection_kind", "SIGN"),
    ):
        ET.SubElement(rule, name).text = value
    topic = ET.SubElement(ET.SubElement(rule, "topic_access_rules"), "topic_rule")
    for name, value in (
        ("topic_expression", "*"),
        ("enable_discovery_protection", "true"),
        ("enable_liveliness_protection", "true"),
        ("enable_read_access_control", "true"),
        ("enable_write_access_control", "true"),
        ("metadata_protection_kind", "ENCRYPT"),
        ("data_protection_kind", "ENCRYPT"),
    ):
        ET.SubElement(topic, name).text = value
    return _text(root)


def permissions_xml(
    enclave: str,
    rights: Rights,
    domain: int,
    validity: tuple[datetime.datetime, datetime.datetime],
) -> bytes:
    """What one enclave may do; what is not named is denied."""
    root = _document("permissions")
    grant = ET.SubElement(ET.SubElement(root, "permissions"), "grant", name=f"/{enclave}")
    ET.SubElement(grant, "subject_name").text = f"CN=/{enclave}"
    period = ET.SubElement(grant, "validity")
    for name, moment in zip(("not_before", "not_after"), validity, strict=True):
        ET.SubElement(period, name).text = moment.strftime(_TIME)
    rule = ET.SubElement(grant, "allow_rule")
    _domains(rule, domain)
    for kind, names in (("publish", rights.publish), ("subscribe", rights.subscribe)):
        listed = ET.SubElement(ET.SubElement(rule, kind), "topics")
        for name in sorted(names):
            ET.SubElement(listed, "topic").text = name
    ET.SubElement(grant, "default").text = "DENY"
    return _text(root)


def _document(kind: str) -> ET.Element:
    return ET.Element(
        "dds",
        {
            "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance",
            "xsi:noNamespaceSchemaLocation": f"{_SCHEMAS}{kind}.xsd",
        },
    )


def _domains(rule: ET.Element, domain: int) -> None:
    ET.SubElement(ET.SubElement(rule, "domains"), "id").text = str(domain)


def _text(root: ET.Element) -> bytes:
    ET.indent(root)
    content: bytes = ET.tostring(root, "utf-8", xml_declaration=True)
    return content


# Keystores


def make_keystore(folder: Path, rights: Mapping[str, Rights], domain: int, days: int) -> None:
    """Write a keystore, or renew the enclaves of one with its own certificate authority.

    Args:
        folder: the keystore.
        rights: by enclave.
        domain: ROS domain in which they hold.
        days: how long.

    Raises:
        UserError: the folder is something else, or cannot be written.
    """
    from cryptography.hazmat.primitives import serialization

    ca, ca_key = _authority(folder)
    ca_pem = ca.public_bytes(serialization.Encoding.PEM)
    governance = governance_xml(domain)
    signed_governance = _signed(governance, ca, ca_key)
    validity = _validity(days)
    for enclave, granted in rights.items():
        certificate, key = _certified(f"/{enclave}", validity, ca, ca_key)
        permissions = permissions_xml(enclave, granted, domain, validity)
        target = folder / "enclaves" / enclave
        with atomic_folder(target, PERMISSIONS, overwrite=True) as place:
            write_new(place / KEY, _key_pem(key), 0o600)
            for name, content in (
                (IDENTITY_CA, ca_pem),
                (PERMISSIONS_CA, ca_pem),
                (CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM)),
                (GOVERNANCE, signed_governance),
                (PERMISSIONS, _signed(permissions, ca, ca_key)),
                ("permissions.xml", permissions),
            ):
                write_new(place / name, content, 0o644)
            place.chmod(0o700)


def check_keystore(folder: Path, rights: Mapping[str, Rights], domain: int) -> None:
    """Refuse a keystore that does not give these enclaves these very rights now.

    The signatures themselves are the middleware's to verify.

    Raises:
        UserError: a file is missing, a certificate is not the authority's, has expired or is
            another enclave's, a private key can be read by others, or the rights are others.
    """
    for enclave, granted in rights.items():
        _check_enclave(folder / "enclaves" / enclave, enclave, granted, domain)


def _check_enclave(place: Path, enclave: str, rights: Rights, domain: int) -> None:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    again = "make the keystore again with 'kdmarl keystore'"
    missing = [name for name in ENCLAVE_FILES if not (place / name).is_file()]
    if missing:
        near = did_you_mean(enclave, [p.name for p in place.parent.glob("*/")])
        raise UserError(f"{place}: no {' and no '.join(missing)}; {near} Otherwise {again}")
    mode = (place / KEY).stat().st_mode & 0o777
    if mode & 0o077:
        raise UserError(
            f"{place / KEY}: mode {mode:04o} lets others read it; chmod 600 {place / KEY}"
        )
    try:
        authority = x509.load_pem_x509_certificate((place / IDENTITY_CA).read_bytes())
        certificate = x509.load_pem_x509_certificate((place / CERTIFICATE).read_bytes())
        certificate.verify_directly_issued_by(authority)
        key = load_pem_private_key((place / KEY).read_bytes(), None)
    except (ValueError, TypeError, InvalidSignature) as error:
        reason = str(error) or "not signed by the certificate authority"
        raise UserError(f"{place / CERTIFICATE}: {reason}; {again}") from None
    if key.public_key() != certificate.public_key():
        raise UserError(f"{place / KEY}: is not the key of {CERTIFICATE}; {again}")
    name = certificate.subject.rfc4514_string()
    if name != f"CN=/{enclave}":
        raise UserError(f"{place / CERTIFICATE}: '{name}' is not 'CN=/{enclave}'; {again}")
    now = datetime.datetime.now(datetime.UTC)
    for one in (certificate, authority):
        if not one.not_valid_before_utc <= now <= one.not_valid_after_utc:
            raise UserError(
                f"{place / CERTIFICATE}: valid from {one.not_valid_before_utc:{_TIME}} to "
                f"{one.not_valid_after_utc:{_TIME}} UTC, not now; {again}"
            )
    found, found_domain = _read_permissions(place / PERMISSIONS)
    if found_domain != str(domain):
        raise UserError(
            f"{place / PERMISSIONS}: for domain {found_domain}, but ROS_DOMAIN_ID is {domain}; "
            f"{again}"
        )
    for kind, has, needs in zip(Rights._fields, found, rights, strict=True):
        if has != needs:
            more, less = sorted(has - needs), sorted(needs - has)
            raise UserError(
                f"{place / PERMISSIONS}: {kind}: has {more or 'nothing'} that the team does not "
                f"give, lacks {less or 'nothing'}; {again}"
            )


def _read_permissions(path: Path) -> tuple[Rights, str]:
    parts = email.message_from_bytes(path.read_bytes()).walk()
    text = next((part.get_payload() for part in parts if not part.is_multipart()), "")
    try:
        root = ET.fromstring(str(text).strip())
    except ET.ParseError as error:
        raise UserError(f"{path}: cannot be read ({error}); make the keystore again") from None
    publish, subscribe = (
        frozenset(topic.text or "" for topic in root.iterfind(f".//{kind}/topics/topic"))
        for kind in Rights._fields
    )
    return Rights(publish, subscribe), root.findtext(".//domains/id", "")


def _authority(folder: Path) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
    """The keystore's certificate authority, made on first use."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    public, private = folder / "public" / "ca.cert.pem", folder / "private" / "ca.key.pem"
    if private.exists() and public.exists():
        key = serialization.load_pem_private_key(private.read_bytes(), None)
        if not isinstance(key, EllipticCurvePrivateKey):
            raise UserError(f"{private}: not an elliptic-curve key; make another keystore")
        return x509.load_pem_x509_certificate(public.read_bytes()), key
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: not empty, and no keystore with its private key; give another")
    certificate, key = _certified("kdmarl CA", _validity(CA_DAYS), None, None)
    (folder / "private").mkdir(parents=True, mode=0o700)
    write_new(private, _key_pem(key), 0o600)
    write_new(public, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return certificate, key


def _certified(
    name: str,
    validity: tuple[datetime.datetime, datetime.datetime],
    ca: x509.Certificate | None,
    ca_key: EllipticCurvePrivateKey | None,
) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
    """A new key and its certificate, signed by the authority, or by itself if there is none."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    is_ca = ca is None
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if ca is None else ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(validity[0])
        .not_valid_after(validity[1])
        .add_extension(x509.BasicConstraints(is_ca, 1 if is_ca else None), critical=True)
        .sign(ca_key or key, hashes.SHA256())
    )
    return certificate, key


def _validity(days: int) -> tuple[datetime.datetime, datetime.datetime]:
    """From yesterday, as clocks differ, for so many days from now, in UTC."""
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    return now - datetime.timedelta(days=1), now + datetime.timedelta(days=days)


def _signed(content: bytes, ca: x509.Certificate, key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

    options = [pkcs7.PKCS7Options.Text, pkcs7.PKCS7Options.DetachedSignature]
    builder = pkcs7.PKCS7SignatureBuilder().set_data(content)
    return builder.add_signer(ca, key, hashes.SHA256()).sign(Encoding.SMIME, options)


def _key_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


# The middleware


def ros_domain(environment: Mapping[str, str]) -> int:
    """The ROS domain of this shell.

    Raises:
        UserError: ROS_DOMAIN_ID is not a domain.
    """
    text = environment.get("ROS_DOMAIN_ID") or "0"
    if not text.isdecimal() or int(text) > LARGEST_DOMAIN:
        raise UserError(f"ROS_DOMAIN_ID: '{text}' is not between 0 and {LARGEST_DOMAIN}; set it")
    return int(text)


def environment(keystore: Path) -> dict[str, str]:
    """What secures a process, beside its `--enclave`."""
    return ENFORCED | {KEYSTORE: str(keystore.absolute())}


def unsecured(keystore: Path, enclave: str, node: str, namespace: str) -> str | None:
    """Why this middleware does not secure topics, found by trying; None if it does.

    A node must come up in its enclave, and must not in one whose permissions were damaged: a
    middleware that never looks at a keystore fails the second.
    """
    import shutil
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        damaged = Path(temporary) / "keystore" / "enclaves" / enclave
        shutil.copytree(keystore / "enclaves" / enclave, damaged)
        (damaged / PERMISSIONS).write_bytes(b"damaged")
        refused = _try_node(keystore, enclave, node, namespace)
        if refused is not None:
            return refused
        if _try_node(damaged.parents[1], enclave, node, namespace) is None:
            return "the middleware took part with a damaged keystore"
    return None


_PROBE = """
import json, sys, rclpy
enclave, node, namespace = sys.argv[1:]
try:
    rclpy.init(args=["--ros-args", "--enclave", enclave, "--log-level", "fatal"])
    rclpy.create_node(node, namespace=namespace)
    refused = None
except Exception as error:
    refused = str(error)
print(json.dumps(refused))
"""


def _try_node(keystore: Path, enclave: str, node: str, namespace: str) -> str | None:
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, f"/{enclave}", node, namespace],
        env=os.environ | environment(keystore),
        capture_output=True,
        text=True,
        timeout=PROBE_TIMEOUT_S,
        check=False,
    )
    try:
        refused: str | None = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return f"a node ended with code {done.returncode}"
    return None if refused is None else " ".join(refused.split()).split(", at /")[0]
