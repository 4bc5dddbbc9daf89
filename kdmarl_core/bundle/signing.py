"""Signed bundles: who vouches for a manifest, and thereby for the model whose hash it holds.

A signature (ed25519) covers every value of the manifest in one canonical form, so that what was
verified is what is used, however the file is laid out. It lies beside the manifest, in
`signature.json`. Keys are PEM files: NAME.key, which never leaves the workstation, and NAME.pub,
which robots keep in a folder of trusted keys.

The library that computes signatures takes some 9 MB, which a robot's process does not keep for one
check: a short-lived process makes it, of bytes that it is handed.
"""

from __future__ import annotations

import base64
import dataclasses
import importlib.util
import json
import os
import re
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from kdmarl_core.bundle.manifest import MANIFEST, Manifest, read_bundle
from kdmarl_core.bundle.sha256 import sha256_hex
from kdmarl_core.errors import UserError
from kdmarl_core.schema import from_mapping, read_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURE = "signature.json"
ALGORITHM = "ed25519"
UNSIGNED = "unsigned"
PRIVATE_SUFFIX, PUBLIC_SUFFIX = ".key", ".pub"
ID_LETTERS = 16  # of a key's SHA-256, in messages and signatures

# A signature made for anything else must not pass for one of a manifest.
_PURPOSE = b"kdmarl bundle manifest\n"

KEY_BYTES, SIGNATURE_BYTES = 32, 64
VERIFIER_TIMEOUT_S = 30.0
_VALID, _INVALID = b"valid", b"invalid"
# Public key, signature and what was signed come in one behind the other.
_VERIFIER = f"""
import sys
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
data = sys.stdin.buffer.read()
key, rest = data[:{KEY_BYTES}], data[{KEY_BYTES}:]
signature, content = rest[:{SIGNATURE_BYTES}], rest[{SIGNATURE_BYTES}:]
try:
    Ed25519PublicKey.from_public_bytes(key).verify(signature, content)
    print("{_VALID.decode()}")
except InvalidSignature:
    print("{_INVALID.decode()}")
"""

# A public key's file is this much DER and the key itself, in base64 between two lines.
_DER_PREFIX = bytes.fromhex("302a300506032b6570032100")
_PUBLIC_PEM = re.compile(
    rb"\s*-----BEGIN PUBLIC KEY-----\s([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----\s*"
)

Security = Literal["off", "check", "enforce"]
SECURITY: tuple[Security, ...] = ("off", "check", "enforce")


class Trust(NamedTuple):
    """What is asked of a bundle beyond its hash, which is always checked."""

    # off: signatures are not looked at. check: one that is there must not be wrong. enforce:
    # there must be one, of a trusted key, and the bundle must be this very robot's.
    security: Security = "off"
    keys: Path | None = None  # folder of the trusted keys


NO_TRUST = Trust()  # hashes only


@dataclass(frozen=True)
class SignatureFile:
    """`signature.json`."""

    algorithm: str
    key: str  # id of the key that signed
    signature: str  # base64

    def __post_init__(self) -> None:
        if self.algorithm != ALGORITHM:
            raise UserError(f"algorithm: '{self.algorithm}' is not {ALGORITHM}; sign again")

    @property
    def value(self) -> bytes:
        """The signature itself; empty where it is not base64, which no key has signed."""
        try:
            return base64.b64decode(self.signature, validate=True)
        except ValueError:
            return b""


class TrustedKey(NamedTuple):
    """A public key of the folder of trusted keys."""

    name: str
    public: bytes  # 32 of them


class Vouched(NamedTuple):
    """A bundle that was let in."""

    manifest: Manifest
    model: bytes  # the very bytes that the manifest's hash was computed of
    state: str  # for people: signed, by which key, or not
    trusted: bool  # whether a trusted key has signed it


# Keys


def make_keys(stem: Path) -> tuple[Path, Path, str]:
    """Write a new pair of keys; returns the private file, the public file and the key's id.

    Raises:
        UserError: `stem` ends without a name; or one of the files exists already, or cannot be
            written; or `cryptography` is not installed.
    """
    _require_library(stem)
    if stem.name in ("", ".."):
        raise UserError(
            f"'{stem}': is no name for a pair of keys; give one, such as {stem / 'fleet'}"
        )
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private, public = (
        stem.with_name(stem.name + suffix) for suffix in (PRIVATE_SUFFIX, PUBLIC_SUFFIX)
    )
    if public.exists():
        raise UserError(f"{public}: exists already and is never replaced; give another name")
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    open_part = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    write_new(private, secret, 0o600)
    write_new(public, open_part, 0o644)
    return private, public, key_id(key.public_key().public_bytes_raw())


def write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that does not exist yet, never readable by others than `mode` says.

    Raises:
        UserError: it exists already, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise UserError(
            f"{path}: exists already and is never replaced; give another name"
        ) from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); give another place"
        ) from None
    with os.fdopen(handle, "wb") as file:
        os.fchmod(file.fileno(), mode)  # whatever the umask is
        file.write(content)


def key_id(public: bytes) -> str:
    """The short name of a public key: the start of its SHA-256."""
    return sha256_hex(public)[:ID_LETTERS]


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """A private key.

    Raises:
        UserError: there is none, it is of another kind, others than its owner can read it, or
            `cryptography` is not installed.
    """
    _require_library(path)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = _read(path)
    if path.suffix == PUBLIC_SUFFIX:
        private = path.with_suffix(PRIVATE_SUFFIX)
        raise UserError(f"{path}: a public key signs nothing; give the private one, {private}")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise UserError(f"{path}: mode {mode:04o} lets others read it; chmod 600 {path}")
    try:
        key = load_pem_private_key(content, None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{path}: not an {ALGORITHM} private key; make one with 'kdmarl keygen'")
    return key


def read_trusted_keys(folder: Path | None) -> dict[str, TrustedKey]:
    """The trusted keys by their id.

    Raises:
        UserError: the folder is missing, anyone may write to it or to a key, or a file is no key.
    """
    if folder is None:
        return {}
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of the trusted keys")
    files = sorted(folder.glob(f"*{PUBLIC_SUFFIX}"))
    for path in (folder, *files):
        if path.stat().st_mode & stat.S_IWOTH:
            raise UserError(f"{path}: anyone may change whom to trust; chmod o-w {path}")
    keys = {}
    for path in files:
        key = _read_public_key(path)
        keys[key_id(key)] = TrustedKey(path.stem, key)
    return keys


def _read_public_key(path: Path) -> bytes:
    found = _PUBLIC_PEM.fullmatch(_read(path))
    try:
        der = base64.b64decode(b"".join(found[1].split()), validate=True) if found else b""
    except ValueError:
        der = b""
    if len(der) != len(_DER_PREFIX) + KEY_BYTES or not der.startswith(_DER_PREFIX):
        raise UserError(f"{path}: not an {ALGORITHM} public key; copy the {PUBLIC_SUFFIX} again")
    return der.removeprefix(_DER_PREFIX)


def _require_library(path: Path) -> None:
    if importlib.util.find_spec("cryptography") is None:
        raise UserError(
            f"{path}: keys need the Python package cryptography; install kdmarl[security]"
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None


# Bundles


def canonical(manifest: Manifest) -> bytes:
    """What is signed: every value of a manifest, in the one way to write it."""
    text = json.dumps(
        dataclasses.asdict(manifest), sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return _PURPOSE + text.encode("ascii")


def sign_bundle(folder: Path, key: Ed25519PrivateKey) -> Manifest:
    """Vouch for a bundle that is whole; an earlier signature is replaced.

    Raises:
        UserError: as `read_bundle` does, or the folder cannot be written.
    """
    from kdmarl_core.files import atomic_write  # no part of a robot's process

    manifest, _ = read_bundle(folder)
    signature = SignatureFile(
        ALGORITHM,
        key_id(key.public_key().public_bytes_raw()),
        base64.b64encode(key.sign(canonical(manifest))).decode("ascii"),
    )
    text = json.dumps(dataclasses.asdict(signature), indent=2) + "\n"
    atomic_write(folder / SIGNATURE, text.encode())
    return manifest


def admit(folder: Path, trust: Trust, robot: str | None = None) -> Vouched:
    """Read a bundle and let it in, or refuse it.

    Args:
        folder: the bundle.
        trust: what is asked of it.
        robot: the robot that is to have it, where that is known.

    Raises:
        UserError: as `read_bundle` does, or it is not vouched for as it must be.
    """
    manifest, model = read_bundle(folder)
    if trust.security == "off":
        return Vouched(manifest, model, "signature not looked at", trusted=False)
    enforce = trust.security == "enforce"
    if enforce and trust.keys is None:
        raise UserError(f"{folder}: security is enforced: give the folder of the trusted keys")
    path = folder / SIGNATURE
    if not path.exists():
        if enforce:
            raise UserError(f"{path}: no such file: the bundle is unsigned; sign it")
        return Vouched(manifest, model, UNSIGNED, trusted=False)
    signed = from_mapping(SignatureFile, read_json(path), str(path))
    trusted = read_trusted_keys(trust.keys)
    key = trusted.get(signed.key)
    if key is None:
        if enforce:
            known = ", ".join(f"{i} ({k.name})" for i, k in trusted.items()) or "none"
            raise UserError(
                f"{path}: signed by key {signed.key[:ID_LETTERS]}, which is not trusted; "
                f"{trust.keys} holds {known}"
            )
        return Vouched(manifest, model, f"signed by unknown key {signed.key}", trusted=False)
    _verify(key, signed, manifest, path)
    if enforce and robot is not None and manifest.robot != robot:
        raise UserError(
            f"{folder / MANIFEST}: robot: '{manifest.robot}' is not '{robot}'; give each robot "
            "its own bundle"
        )
    return Vouched(manifest, model, f"signed by {key.name} (key {signed.key})", trusted=True)


def _verify(key: TrustedKey, signed: SignatureFile, manifest: Manifest, path: Path) -> None:
    content = canonical(manifest)
    if len(signed.value) == SIGNATURE_BYTES:
        # -I: nothing of the working folder or the environment takes the library's place.
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", _VERIFIER],
                input=key.public + signed.value + content,
                capture_output=True,
                timeout=VERIFIER_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise UserError(
                f"{path}: the signature could not be checked ({error}); try again"
            ) from None
        verdict = done.stdout.strip()
        if done.returncode == 0 and verdict == _VALID:
            return
        if verdict != _INVALID:
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"]
            raise UserError(
                f"{path}: the signature could not be checked ({said[-1]}); "
                "is kdmarl[security] installed?"
            )
    found = sha256_hex(content)[:12]
    raise UserError(
        f"{path}: not key {signed.key}'s ({key.name}) signature of this manifest (canonical "
        f"SHA-256 {found}...); the manifest was altered or signed anew, copy the bundle again"
    )
