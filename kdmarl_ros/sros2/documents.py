"""The documents of DDS-Security in which rights are written down."""

from __future__ import annotations

import datetime
import email
import xml.etree.ElementTree as ET
from pathlib import Path

from kdmarl_core.errors import UserError
from kdmarl_ros.sros2.rights import Rights

_SCHEMAS = "http://www.omg.org/spec/DDS-SECURITY/20170901/omg_shared_ca_"
_TIME = "%Y-%m-%dT%H:%M:%S"


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


def read_permissions(path: Path) -> tuple[Rights, str]:
    """What a signed document of permissions grants, and the domain in which it does.

    Raises:
        UserError: it cannot be read.
    """
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
