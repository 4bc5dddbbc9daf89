"""`kdmarl keystore`: certificates and permissions with which the middleware secures a team."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from kdmarl_core.cli.common import positive

DAYS = 365


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "keystore", help="make or renew the SROS2 keystore of a team, each robot on its own topics"
    )
    parser.add_argument("--team", required=True, help="a team that ships, or a YAML file")
    parser.add_argument(
        "--robots",
        metavar="DIR",
        help="folder of parameter files, if any of them names a sensor map",
    )
    parser.add_argument(
        "--bundles",
        default="",
        metavar="DIR",
        help="of robots with sensor maps; default runs/bundles/<team>",
    )
    parser.add_argument(
        "--output", metavar="DIR", help="default runs/keystores/<team>; renewed if it exists"
    )
    parser.add_argument(
        "--days", type=positive, default=DAYS, help=f"how long it holds (default {DAYS})"
    )
    parser.set_defaults(command=keystore_command)


def keystore_command(arguments: argparse.Namespace) -> None:
    """Write the keystore and say what goes where."""
    from kdmarl_core.team import load_team
    from kdmarl_ros.deployment import sensor_maps
    from kdmarl_ros.sros2 import make_keystore, ros_domain, team_rights

    team = load_team(arguments.team)
    folder = Path(arguments.output or f"runs/keystores/{team.name}")
    domain = ros_domain(os.environ)
    maps = sensor_maps(team, arguments.bundles, arguments.robots) if arguments.robots else {}
    rights = team_rights(team, maps)
    make_keystore(folder, rights, domain, arguments.days)
    for enclave, granted in rights.items():
        print(
            f"{folder / 'enclaves' / enclave}: may publish {len(granted.publish)} topics, "
            f"subscribe to {len(granted.subscribe)}, in domain {domain}"
        )
    print(f"{folder / 'private'}: the authority's key; keep it, no robot needs it")
