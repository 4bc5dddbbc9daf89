"""The bundles of a team's robots: that all are there, and made for these robots together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from kdmarl_core.bundle import (
    MANIFEST,
    NO_TRUST,
    BundlePolicy,
    Manifest,
    MessageEntry,
    PeerEntry,
    Trust,
    load_policy,
)
from kdmarl_core.errors import UserError, did_you_mean
from kdmarl_core.team import Robot, Team
from kdmarl_core.team_file import MessageSpec


def load_bundles(
    team: Team, folder: Path, trust: Mapping[str, Trust] = MappingProxyType({})
) -> list[BundlePolicy]:
    """The policies of a team's robots, in their order, each checked against the team.

    Args:
        team: whose robots.
        folder: with one bundle per robot.
        trust: what is asked of a robot's bundle beyond its hash; nothing of those not named.

    Raises:
        UserError: a bundle is missing, damaged, not vouched for as it must be, or was made for
            another robot, task or sensors.
    """
    refuse_missing_bundles(team, folder)
    policies = [
        _load_bundle(robot, team, folder / robot.bundle, trust.get(robot.name, NO_TRUST))
        for robot in team.robots
    ]
    _refuse_mixed_trainings([policy.manifest for policy in policies], folder)
    return policies


def refuse_missing_bundles(team: Team, folder: Path) -> None:
    """Raise a `UserError` if a robot of a team has no bundle in a folder."""
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; run 'kdmarl distil --team {team.students.name}' first"
        )
    present = [path.parent.name for path in folder.glob(f"*/{MANIFEST}")]
    for robot in team.students.robots:
        if robot.name not in present:
            raise UserError(
                f"{folder}: no bundle for robot '{robot.name}'; "
                f"{did_you_mean(robot.name, present)} Otherwise distil {team.students.name} again"
            )


def _load_bundle(robot: Robot, team: Team, folder: Path, trust: Trust) -> BundlePolicy:
    policy = load_policy(folder, trust, robot.bundle)
    manifest, student = policy.manifest, (robot.flies or robot).student
    pairs = {
        "task": (manifest.task, team.students.task.spec.name),
        "agent": (manifest.agent, (robot.flies or robot).agent.name),
        "blocks": (
            [(block.name, block.size) for block in manifest.blocks],
            [(block.name, block.size) for block in robot.blocks],
        ),
        "actions": (manifest.actions, robot.agent.actions),
        "safe_action": (manifest.safe_action, robot.safe_action),
        "student": (
            f"{manifest.student.network} of {manifest.student.width}",
            f"{student.network} of {student.width}",
        ),
        "message": (_told(manifest.message), _told(robot.messages)),
        **_heard(manifest.peers, robot.peers),
    }
    for key, (found, expected) in pairs.items():
        if found != expected:
            raise UserError(
                f"{folder / MANIFEST}: {key}: {found} is not the team's {expected} for "
                f"{robot.name}; distil the team again"
            )
    return policy


def _refuse_mixed_trainings(manifests: Sequence[Manifest], folder: Path) -> None:
    """Raise a `UserError` if robots that tell each other anything were not distilled together."""
    talking = [manifest for manifest in manifests if manifest.message or manifest.peers]
    for manifest in talking:
        if manifest.training != talking[0].training:
            raise UserError(
                f"{folder / manifest.robot / MANIFEST}: training: {manifest.training} is not the "
                f"{talking[0].training} of {talking[0].robot}: what they tell each other means "
                "something else; copy all bundles of one 'kdmarl distil'"
            )


def _told(message: MessageEntry | MessageSpec | None) -> str:
    """What a robot tells others, in words."""
    if message is None:
        return "silence"
    return f"{message.size} values as {message.format} to {' and '.join(message.to)}"


def _heard(
    found: Sequence[PeerEntry], expected: Sequence[PeerEntry]
) -> dict[str, tuple[object, object]]:
    """Pairs as above: which peers there are, then what is expected of each."""
    names = [[peer.robot for peer in peers] for peers in (found, expected)]
    if names[0] != names[1]:
        return {"peers": (names[0], names[1])}
    return {
        f"peers: {own.robot}": (_of_peer(own), _of_peer(other))
        for own, other in zip(found, expected, strict=True)
    }


def _of_peer(peer: PeerEntry) -> str:
    return (
        f"{peer.size} values as {peer.format}, {peer.delay_steps} steps late, held for "
        f"{peer.hold_steps}"
    )
