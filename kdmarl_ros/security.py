"""What security asks of a node's own process. No heavy import: robots use it."""

from __future__ import annotations

import os
from pathlib import Path

from kdmarl_core.bundle import SECURITY, Security, Trust
from kdmarl_core.errors import UserError

# What rcl reads of the environment when a process starts.
ENABLE, STRATEGY, KEYSTORE = (
    "ROS_SECURITY_ENABLE",
    "ROS_SECURITY_STRATEGY",
    "ROS_SECURITY_KEYSTORE",
)
ENFORCED = {ENABLE: "true", STRATEGY: "Enforce"}


def trust(security: str, trusted_keys: str) -> Trust:
    """What a node's parameters ask of its bundle."""
    level: Security = next(known for known in SECURITY if known == security)
    return Trust(level, Path(trusted_keys) if trusted_keys else None)


def refuse_open_middleware(security: str, allow_unsecured: bool, where: str) -> None:
    """Refuse to enforce security in a process whose topics are open to all.

    With these variables set, rcl and the middleware refuse by themselves to start a process whose
    keystore is missing or wrong, or whose middleware was built without DDS-Security.

    Raises:
        UserError: security is to be enforced, the environment does not ask for it, and the user
            has not said that this is meant.
    """
    if security != "enforce" or allow_unsecured:
        return
    for name, value in ENFORCED.items():
        if os.environ.get(name) != value:
            raise UserError(
                f"{where}: security is enforced, but {name} is "
                f"'{os.environ.get(name, '')}', not '{value}'; start the process with a keystore "
                "(see 'kdmarl keystore --help'), or set allow_unsecured_middleware"
            )
