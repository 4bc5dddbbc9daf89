"""Recorded sensor messages through a bundle: does it choose what was chosen then?

Each robot's messages go through the very `PolicyRuntime` that its node uses, so that repetitions,
restarts and the resets of recurrent students are treated alike. A decision belongs to the step
that was seen: recordings are of runs in lock-step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rclpy.serialization import deserialize_message

from kdmarl_core.bundle import BundlePolicy, Disturbance
from kdmarl_core.errors import UserError
from kdmarl_ros import topics
from kdmarl_ros.inputs import NEVER, Stamp
from kdmarl_ros.msg import AgentAction, FeatureBlock, PeerMessage
from kdmarl_ros.policy_runtime import Heard, PolicyRuntime, RuntimeSettings
from kdmarl_ros.recording import Recorded, Recording

_TYPES = {
    "kdmarl_ros/msg/FeatureBlock": FeatureBlock,
    "kdmarl_ros/msg/AgentAction": AgentAction,
    "kdmarl_ros/msg/PeerMessage": PeerMessage,
}


class Difference(NamedTuple):
    """The first action that the bundle would not have chosen."""

    episode: int
    step: int
    expected: str  # the bundle's
    found: str  # the recorded one


class Replay(NamedTuple):
    """One robot's recorded actions against a bundle's."""

    robot: str
    compared: int
    safe: int  # recorded safe actions: not the policy's
    unknown: int  # actions whose inputs were not all recorded
    difference: Difference | None


def replay(recording: Recording, policy: BundlePolicy, where: str) -> Replay:
    """Compare the actions of the bundle's robot with what it decides on the recorded inputs.

    Raises:
        UserError: the recording has no messages of that robot, or they cannot be decoded.
    """
    manifest = policy.manifest
    waiting: list[Heard] = []  # of peers, until they are listened to

    def hear() -> list[Heard]:
        heard = waiting.copy()
        waiting.clear()
        return heard

    settings = _settings(recording.parameters.get(manifest.robot, {}))
    runtime = PolicyRuntime(policy, settings, hear)
    recurrent = manifest.student.state_size > 0
    names = topics.inputs(
        (block.name for block in manifest.blocks), masked=manifest.legal_actions_vary
    )
    inputs = {
        f"/{topics.of_robot(manifest.robot, topics.sensor(name))}": index
        for index, name in enumerate(names)
    }
    peers = {
        f"/{topics.of_robot(peer.robot, topics.MESSAGE)}": index
        for index, peer in enumerate(manifest.peers)
    }
    answers = f"/{topics.of_robot(manifest.robot, topics.ACTION)}"
    actions = [_decoded(item, where) for item in recording.messages if item.topic == answers]
    decided: dict[Stamp, set[int]] = defaultdict(set)
    skipped = _skipped(actions) if recurrent else set()
    last, whole = NEVER, False
    for recorded in recording.messages:
        if recorded.topic in peers:
            told = _decoded(recorded, where)
            waiting.append(
                Heard(
                    peers[recorded.topic],
                    told.episode,
                    told.step,
                    told.bits,
                    bytes(told.data),
                    training=told.training,
                )
            )
        index = inputs.get(recorded.topic)
        if index is None:
            continue
        message = _decoded(recorded, where)
        if not runtime.receive(index, message.episode, message.step, message.data, 0.0):
            continue
        stamp = runtime.complete()
        if stamp is None:
            continue
        decision = runtime.decide(stamp)
        if stamp != last:
            # What a recurrent student remembers is known only as long as no step is missing.
            follows = whole and stamp == (last[0], last[1] + 1)
            whole = (stamp[1] == 0 or follows or not recurrent) and stamp not in skipped
            last = stamp
        if whole and not decision.safe:
            decided[stamp].add(decision.action)
    if not actions:
        raise UserError(
            f"{where}: no actions of robot '{manifest.robot}'; give a recording of its run"
        )
    return _compared(manifest.robot, manifest.actions, actions, decided)


def _settings(parameters: Mapping[str, Any]) -> RuntimeSettings:
    """What a node does to its inputs, by its parameters. The replay knows no silence."""
    limits, identical = "limits.", "max_identical."
    return RuntimeSettings(
        limits={
            name.removeprefix(limits): (value[0], value[1])
            for name, value in parameters.items()
            if name.startswith(limits)
        },
        max_identical={
            name.removeprefix(identical): value
            for name, value in parameters.items()
            if name.startswith(identical)
        },
        messages=Disturbance(
            parameters.get("message_loss", 0.0), parameters.get("message_delay_steps", 0)
        ),
    )


def _skipped(actions: Sequence[AgentAction]) -> set[Stamp]:
    """Steps that only the safe action answered: the policy may not have seen them."""
    safe = {(a.episode, a.step) for a in actions if a.status == AgentAction.STATUS_SAFE}
    return safe - {(a.episode, a.step) for a in actions if a.status != AgentAction.STATUS_SAFE}


def _compared(
    robot: str,
    names: tuple[str, ...],
    actions: list[AgentAction],
    decided: dict[Stamp, set[int]],
) -> Replay:
    compared = safe = unknown = 0
    difference = None
    for action in actions:
        expected = decided.get((action.episode, action.step))
        if action.status != AgentAction.STATUS_POLICY:
            safe += 1
        elif expected is None:
            unknown += 1
        else:
            compared += 1
            if difference is None and action.action not in expected:
                known = 0 <= action.action < len(names)
                difference = Difference(
                    action.episode,
                    action.step,
                    " or ".join(names[index] for index in sorted(expected)),
                    names[action.action] if known else f"number {action.action}",
                )
    return Replay(robot, compared, safe, unknown, difference)


def _decoded(recorded: Recorded, where: str) -> Any:
    kind = _TYPES.get(recorded.type_name)
    if kind is None:
        raise UserError(
            f"{where}: {recorded.topic} is of type '{recorded.type_name}', not one of "
            f"{' and '.join(_TYPES)}; give a recording of 'kdmarl swarm'"
        )
    try:
        return deserialize_message(recorded.data, kind)
    except Exception as error:  # the type support's own exceptions share no public base class
        raise UserError(
            f"{where}: a message of {recorded.topic} cannot be decoded ({error}); record again"
        ) from None
