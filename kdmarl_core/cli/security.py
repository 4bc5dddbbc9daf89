"""`kdmarl keygen | sign | verify`: who vouches for a bundle, and whether anybody does."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kdmarl_core.cli.common import add_json, print_json, print_table


def add_command(commands: Any) -> None:
    """Add the commands to the parser."""
    parser = commands.add_parser("keygen", help="make a pair of keys that sign bundles")
    parser.add_argument("name", metavar="NAME", help="writes NAME.key, to be kept, and NAME.pub")
    parser.set_defaults(command=keygen_command)

    parser = commands.add_parser("sign", help="vouch for bundles")
    _add_bundles(parser)
    parser.add_argument("--key", required=True, metavar="FILE", help="NAME.key of 'kdmarl keygen'")
    parser.set_defaults(command=sign_command)

    parser = commands.add_parser("verify", help="refuse bundles that nobody vouches for")
    _add_bundles(parser)
    parser.add_argument(
        "--trusted-keys", required=True, metavar="DIR", help="folder that holds NAME.pub"
    )
    add_json(parser)
    parser.set_defaults(command=verify_command)


def _add_bundles(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundles", nargs="+", metavar="DIR", help="a bundle, or a folder of bundles"
    )


def keygen_command(arguments: argparse.Namespace) -> None:
    """Write both keys and say which is which."""
    from kdmarl_core.bundle.signing import make_keys

    private, public, key = make_keys(Path(arguments.name))
    print(f"{private}: private key {key}; keep it, it can be read by you only")
    print(f"{public}: public key {key}; put it into the robots' folder of trusted keys")


def sign_command(arguments: argparse.Namespace) -> None:
    """Sign all bundles; nothing is signed if one of them is damaged."""
    from kdmarl_core.bundle import load_policy
    from kdmarl_core.bundle.signing import key_id, read_private_key, sign_bundle

    key = read_private_key(Path(arguments.key))
    signer = key_id(key.public_key().public_bytes_raw())
    folders = bundle_folders(arguments.bundles)
    for folder in folders:
        load_policy(folder)
    for folder in folders:
        manifest = sign_bundle(folder, key)
        model = manifest.model.sha256[:12]
        print(f"{folder}: {manifest.robot}, model {model}: signed by {signer}")


def verify_command(arguments: argparse.Namespace) -> None:
    """Print who vouches for each bundle; the first that nobody trusted does ends it."""
    from kdmarl_core.bundle import Trust, load_policy

    trust = Trust("enforce", Path(arguments.trusted_keys))
    found = [(folder, load_policy(folder, trust)) for folder in bundle_folders(arguments.bundles)]
    if arguments.json:
        print_json(
            [
                {
                    "bundle": str(folder),
                    "robot": policy.manifest.robot,
                    "model": policy.manifest.model.sha256,
                    "state": policy.vouched,
                }
                for folder, policy in found
            ]
        )
        return
    rows = [
        [policy.manifest.robot, policy.manifest.model.sha256[:12], policy.vouched]
        for _, policy in found
    ]
    print_table("bundles", ["robot", "model", "state"], rows)


def bundle_folders(given: list[str]) -> list[Path]:
    """Bundles themselves, and those in the folders given."""
    from kdmarl_core.bundle import MANIFEST
    from kdmarl_core.errors import UserError

    folders: list[Path] = []
    for folder in map(Path, given):
        inside = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
        if (folder / MANIFEST).exists():
            inside = [folder]
        if not inside:
            raise UserError(f"{folder}: no bundle here or one level below; check the path")
        folders += inside
    return folders
