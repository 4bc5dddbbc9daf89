"""Keystores: made, renewed, and looked at before anything starts with one."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kdmarl_core.bundle.signing import write_new
from kdmarl_core.errors import UserError, did_you_mean
from kdmarl_core.files import atomic_folder
from kdmarl_ros.sros2.documents import governance_xml, permissions_xml, read_permissions
from kdmarl_ros.sros2.rights import Rights

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

CERTIFICATE, KEY = "cert.pem", "key.pem"
IDENTITY_CA, PERMISSIONS_CA = "identity_ca.cert.pem", "permissions_ca.cert.pem"
GOVERNANCE, PERMISSIONS = "governance.p7s", "permissions.p7s"
# What rcl and the middleware look for in an enclave's folder.
ENCLAVE_FILES = (IDENTITY_CA, CERTIFICATE, KEY, PERMISSIONS_CA, GOVERNANCE, PERMISSIONS)
CA_DAYS = 3650


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
                f"{place / CERTIFICATE}: valid from {one.not_valid_before_utc:%F %T} to "
                f"{one.not_valid_after_utc:%F %T} UTC, not now; {again}"
            )
    found, found_domain = read_permissions(place / PERMISSIONS)
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
