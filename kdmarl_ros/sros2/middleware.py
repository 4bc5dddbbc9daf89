"""What this shell and its middleware make of a keystore."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from kdmarl_core.errors import UserError
from kdmarl_ros.security import ENFORCED, KEYSTORE
from kdmarl_ros.sros2.keystore import PERMISSIONS

LARGEST_DOMAIN = 232
PROBE_TIMEOUT_S = 30.0


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

    Raises:
        UserError: that took too long to tell.
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
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, f"/{enclave}", node, namespace],
            env=os.environ | environment(keystore),
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"enclave {enclave}: whether the middleware secures topics was not known after "
            f"{PROBE_TIMEOUT_S:g} s; try again when the machine is less busy"
        ) from None
    try:
        refused: str | None = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return f"a node ended with code {done.returncode}"
    return None if refused is None else " ".join(refused.split()).split(", at /")[0]
