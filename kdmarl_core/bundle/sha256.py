"""SHA-256 without OpenSSL, whose library would take 3.5 MB of a robot's process."""

from __future__ import annotations

try:  # CPython's own implementation
    from _sha2 import sha256  # type: ignore[import-not-found]  # Python 3.12
except ImportError:
    try:
        from _sha256 import sha256  # type: ignore[import-not-found]  # Python 3.11
    except ImportError:
        from hashlib import sha256


def sha256_hex(content: bytes) -> str:
    """SHA-256 of some bytes in hexadecimal digits."""
    digest: str = sha256(content).hexdigest()
    return digest
