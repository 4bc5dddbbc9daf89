"""`kdmarl replay`: a recording through bundles, offline; the first action that differs is told."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdmarl_core.cli.common import add_json, print_json, print_table

if TYPE_CHECKING:
    from kdmarl_core.bundle import Manifest
    from kdmarl_ros.replay import Replay


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "replay", help="feed a recording to bundles and find the first action that differs"
    )
    parser.add_argument("recording", metavar="FILE", help="recording.mcap of 'kdmarl swarm'")
    parser.add_argument(
        "--bundle",
        required=True,
        metavar="DIR",
        help="one robot's bundle, or a folder of bundles",
    )
    add_json(parser)
    parser.set_defaults(command=replay_command)


def replay_command(arguments: argparse.Namespace) -> None:
    """Print what was compared; a difference ends the command as an error."""
    from kdmarl_core.bundle import load_policy
    from kdmarl_core.cli.security import bundle_folders
    from kdmarl_core.errors import UserError
    from kdmarl_ros.cli.swarm import warn
    from kdmarl_ros.recording import read_recording
    from kdmarl_ros.replay import replay

    recording = read_recording(Path(arguments.recording))
    if recording.cut_off:
        warn(f"{arguments.recording}: the end is missing or damaged; the rest is compared")
    policies = [load_policy(folder) for folder in bundle_folders([arguments.bundle])]
    found = [replay(recording, policy, arguments.recording) for policy in policies]
    if arguments.json:
        print_json(
            [
                item._asdict() | {"difference": item.difference and item.difference._asdict()}
                for item in found
            ]
        )
    else:
        rows = [[i.robot, *map(str, (i.compared, i.safe, i.unknown)), _verdict(i)] for i in found]
        header = ["robot", "compared", "safe", "inputs missing", "first difference"]
        print_table(arguments.recording, header, rows)
    for item, policy in zip(found, policies, strict=True):
        if item.difference:
            manifest = recording.manifests.get(item.robot, "")
            raise UserError(
                f"{arguments.recording}: {item.robot}: {_verdict(item)}; "
                f"{_model(manifest, policy.manifest)}"
            )
        if not item.compared:
            raise UserError(
                f"{arguments.recording}: {item.robot}: nothing could be compared; record a run "
                "in lock-step from its beginning"
            )


def _verdict(item: Replay) -> str:
    if item.difference is None:
        return "none"
    episode, step, expected, found = item.difference
    return (
        f"episode {episode}, step {step}: the bundle chooses {expected}, the recording has {found}"
    )


def _model(recorded: str, manifest: Manifest) -> str:
    """Whether it is the bundle that was recorded."""
    own = manifest.model.sha256
    if own in recorded:
        return f"model {own[:12]} is the recorded one: the node or the recording was altered"
    return f"model {own[:12]} is not the recorded one; give the bundle that was flown"
