"""The newest inputs become a decision: everything a policy node knows that is not ROS.

Time is steady time in seconds; what identifies an input is said in `inputs`.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdmarl_core.bundle import (
    ACTION_MASK,
    FORMATS,
    UNDISTURBED,
    BundlePolicy,
    Disturbance,
    Inbox,
    encode,
)
from kdmarl_ros.inputs import NEVER, Input, InputRules, Stamp
from kdmarl_ros.safety import Mask, StallBehaviour, check_mask, legal_action

# The stamp of what was decided on no step. No simulator awaits it: it answers nothing.
NO_STEP: Stamp = (2**32 - 1, 2**32 - 1)


class Status(IntEnum):
    """Who chose an action: the constants of `AgentAction`."""

    POLICY = 0
    SAFE = 1
    OVERRIDE = 2


class Decision(NamedTuple):
    """What to publish."""

    stamp: Stamp
    action: int
    status: Status
    reason: str  # why it is the safe action, else empty
    compute_s: float

    @property
    def safe(self) -> bool:
        """Whether it is the safe action, or what stands in for it."""
        return self.status == Status.SAFE


class Heard(NamedTuple):
    """A peer's message as it came."""

    peer: int  # number in the manifest
    episode: int
    step: int
    bits: int  # of each value
    data: bytes
    taken_s: float | None = None  # when it was taken from the middleware; None: now
    training: int | None = None  # of its sender's student; None: not said


class Told(NamedTuple):
    """What the student tells its peers."""

    stamp: Stamp
    bits: int  # of each value
    data: bytes


Values = npt.NDArray[np.float32]


def _nothing() -> Iterable[Heard]:
    return ()


@dataclass(frozen=True)
class RuntimeSettings:
    """How a robot treats its inputs, in lock-step unless `real_time`."""

    real_time: bool = False
    timeout_s: float = math.inf  # of every input
    recover_after: int = 1  # good messages of an input after a silence
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # by block
    max_identical: Mapping[str, int] = field(default_factory=dict)  # by block
    stall: StallBehaviour = field(default_factory=StallBehaviour)
    messages: Disturbance = UNDISTURBED  # of what peers send
    # Real sensors know no steps that robots could share: periods of this rate stand for them, and
    # a message counts as sent in the period in which it was taken, at the latest in the one before
    # the decision that hears it. 0: steps are shared.
    message_rate_hz: float = 0.0

    def rules(self, block: str) -> InputRules:
        """What is asked of one block."""
        return InputRules(
            timeout_s=self.timeout_s,
            recover_after=self.recover_after,
            repeats=not self.real_time,
            limits=self.limits.get(block),
            max_identical=self.max_identical.get(block, 0),
        )


class PolicyRuntime:
    """One robot's inputs, its policy, and what it decided last."""

    def __init__(
        self,
        policy: BundlePolicy,
        settings: RuntimeSettings = RuntimeSettings(),
        hear: Callable[[], Iterable[Heard]] = _nothing,
    ) -> None:
        """For a policy; `hear` gives what peers have sent since it was last asked."""
        manifest = policy.manifest
        self._policy = policy
        self._settings = settings
        self._observation = np.zeros(manifest.observation_size, np.float32)
        self._legal = np.zeros(len(manifest.actions), np.float32)
        self._inputs: list[Input] = []
        start = 0
        for block in manifest.blocks:
            values = self._observation[start : start + block.size]
            self._inputs.append(Input(block.name, values, settings.rules(block.name)))
            start += block.size
        self._mask_input: Input | None = None
        if manifest.legal_actions_vary:
            rules = settings.rules(ACTION_MASK)
            self._mask_input = Input(ACTION_MASK, self._legal, rules, check_mask)
            self._inputs.append(self._mask_input)
        self._decided = NEVER
        self._seen = b""  # what the policy's newest answer was given for
        self._answer: Decision | None = None  # the policy's newest, whatever was published since
        self._news = False  # whether anything has come since
        self._stalled_s: float | None = None  # since when inputs have failed
        self._interrupted = False  # whether they failed since the policy's newest answer
        self._hear = hear
        self._inbox = Inbox(manifest.robot, manifest.peers, settings.messages)
        self._listened_s = -math.inf
        self._heard_s = [-math.inf for _ in manifest.peers]  # or when first listened to
        self._told: Told | None = None
        self.drops: Counter[str] = Counter()
        self.decisions: Counter[str] = Counter()

    @property
    def policy(self) -> BundlePolicy:
        """The policy in use."""
        return self._policy

    @property
    def observation(self) -> npt.NDArray[np.float32]:
        """What the policy would decide on now."""
        return self._observation

    def replace(self, policy: BundlePolicy) -> None:
        """Use another policy of the same inputs and actions, from its initial state."""
        self._policy = policy
        self._forget_decisions()

    def forget(self) -> None:
        """Drop all inputs and the recurrent state: what was seen says nothing of now."""
        self._listened_s = -math.inf
        if self._settings.message_rate_hz:
            for _ in self._hear():
                pass
        for entry in self._inputs:
            entry.forget()
        self._forget_decisions()

    def receive(
        self,
        index: int,
        episode: int,
        step: int,
        data: Sequence[float],
        now_s: float,
        age_s: float | None = 0.0,
    ) -> bool:
        """Take in input number `index`; False if it was dropped (counted by reason).

        The inputs are the manifest's blocks in their order and, if the robot's legal actions
        vary, the action mask. `age_s` as in `Input.take`.
        """
        entry = self._inputs[index]
        reason = entry.take((episode, step), data, now_s, age_s)
        if reason is not None:
            self.drops[f"{entry.name}/{reason}"] += 1
            return False
        self._news = True
        return True

    def complete(self) -> Stamp | None:
        """The stamp that all inputs share, if they do: a whole step to decide on."""
        first = self._inputs[0].stamp
        if first == NEVER or any(entry.stamp != first for entry in self._inputs):
            return None
        return first

    def decide(self, stamp: Stamp, now_s: float = 0.0) -> Decision:
        """Lock-step: decide on a whole step; repeats the last decision for the same step.

        Step 0 with other values is another episode under the same number; another step with other
        values than before is not believed. A recurrent policy lives through every step once. It
        keeps its state over a silence if the next step follows the last one, as the world stood
        still meanwhile; it begins anew if steps were missed.
        """
        answer, last = self._answer, self._decided
        anew = stamp[0] != last[0] or stamp < last
        if answer is not None and answer.stamp == stamp:
            if self._seen == self._all_values():
                return answer
            if stamp[1] != 0:
                contradicted = self._unpolitic(self._policy.manifest.safe_index, "contradiction")
                return contradicted._replace(stamp=stamp)
            anew = True
        doubts = self._doubts()
        if doubts:
            return self._stall(doubts, now_s)._replace(stamp=stamp)
        if anew or (self._interrupted and stamp[1] > last[1] + 1):
            self._policy.reset()
        return self._think(stamp, now_s, anew=anew)

    def decide_newest(self, now_s: float) -> Decision:
        """Real time: decide on the newest value of each input, unless one cannot be used.

        Each set of inputs is thought about once: without news the last answer stands. After a
        stall the policy begins anew.
        """
        troubles = self.troubles(now_s)
        if troubles:
            return self._stall(troubles, now_s)
        stamp, last = self._newest(), self._decided
        anew = stamp[0] != last[0] or stamp < last
        if self._interrupted or anew:
            self._policy.reset()
        elif self._answer is not None and not self._news:
            return self._answer
        return self._think(stamp, now_s, anew=anew)

    def stall(self, now_s: float) -> Decision:
        """What is published while inputs cannot be used.

        In lock-step it answers no step: the last one has been answered, perhaps by an action that
        has yet to be read and must not be replaced; one that has arrived in part may still become
        whole, and a simulator has its own deadline.
        """
        return self._stall(self.troubles(now_s), now_s)

    def safe(self, reason: str) -> Decision:
        """The safe action, under the stamp of `stall`."""
        return self._unpolitic(self._policy.manifest.safe_index, reason)

    def override(self, decision: Decision, action: int) -> Decision:
        """A person's action, as far as it is legal, in place of a decision."""
        legal = self._legal_action(action)
        return decision._replace(action=legal, status=Status.OVERRIDE, reason="")

    def stop(self, decision: Decision, reason: str) -> Decision:
        """The safe action in place of a decision, whoever made it."""
        safe = self._legal_action(self._policy.manifest.safe_index)
        return decision._replace(action=safe, status=Status.SAFE, reason=reason)

    def count(self, decision: Decision) -> None:
        """Note what is sent, by its reason."""
        self.decisions[decision.reason or decision.status.name.lower()] += 1

    def mask(self) -> Mask | None:
        """The legal actions as last known; None if all are, or none is known."""
        if self._mask_input is None or self._mask_input.stamp == NEVER:
            return None
        mask: Mask = self._legal > 0.5
        return mask

    def troubles(self, now_s: float) -> dict[str, list[str]]:
        """Names of the inputs that cannot be acted on, by reason."""
        found: dict[str, list[str]] = {}
        for entry in self._inputs:
            word = entry.trouble(now_s)
            if word is not None:
                found.setdefault(word, []).append(entry.name)
        return found

    def take_told(self) -> Told | None:
        """What the newest thought tells peers; None if it tells nothing, or was taken already."""
        told, self._told = self._told, None
        return told

    def silent_peers(self) -> list[str]:
        """Peers of whom nothing good had come for `timeout_s` when they were last listened to."""
        return [
            peer.robot
            for peer, heard_s in zip(self._inbox.peers, self._heard_s, strict=True)
            if self._listened_s - heard_s > self._settings.timeout_s
        ]

    def message_ages(self) -> dict[str, int]:
        """Age in steps of each peer's message when last read; one beyond the limit: none."""
        names = (peer.block for peer in self._inbox.peers)
        return dict(zip(names, self._inbox.ages, strict=True))

    def ages_s(self, now_s: float) -> dict[str, float]:
        """Seconds since each input was last good; infinite for one that never came."""
        return {entry.name: now_s - entry.received_s for entry in self._inputs}

    def clipped(self) -> dict[str, int]:
        """Messages with values beyond the limits, by input, where there were any."""
        return {entry.name: entry.clipped for entry in self._inputs if entry.clipped}

    def newest_received_s(self) -> float:
        """When the newest good input came."""
        return max(entry.received_s for entry in self._inputs)

    def _newest(self) -> Stamp:
        return max(entry.stamp for entry in self._inputs)

    def _all_values(self) -> bytes:
        return self._observation.tobytes() + self._legal.tobytes()

    def _doubts(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for entry in self._inputs:
            word = entry.doubt()
            if word is not None:
                found.setdefault(word, []).append(entry.name)
        return found

    def _forget_decisions(self) -> None:
        self._policy.reset()
        self._answer, self._decided = None, NEVER

    def _listen(self, stamp: Stamp, now_s: float, *, anew: bool) -> Values | None:
        """What peers have told, as the policy reads it in a step; None without peers."""
        if not self._inbox.peers:
            return None
        rate_hz = self._settings.message_rate_hz
        now = int(now_s * rate_hz) if rate_hz else stamp[1]
        if anew:
            self._inbox.begin(0 if rate_hz else stamp[0])
        if self._listened_s == -math.inf:
            self._heard_s = [now_s for _ in self._heard_s]
        self._listened_s = now_s
        own = self._policy.manifest.training_number
        for index, episode, step, bits, data, taken_s, training in self._hear():
            taken_s = now_s if taken_s is None else taken_s
            at = (0, min(int(taken_s * rate_hz), now - 1)) if rate_hz else (episode, step)
            reason: str | None = "other_training"
            if training in (None, own):
                reason = self._inbox.put(index, *at, data, now, bits)
            if reason is None:
                self._heard_s[index] = taken_s
            elif reason:
                self.drops[f"{self._inbox.peers[index].block}/{reason}"] += 1
        return self._inbox.read(now)

    def _think(self, stamp: Stamp, now_s: float, *, anew: bool) -> Decision:
        begun = time.perf_counter()
        self._told = None
        self._stalled_s, self._interrupted, self._news = None, False, False
        self._decided, self._seen = stamp, self._all_values()
        mask, reason = self.mask(), ""
        if mask is not None and not mask.any():
            mask, reason = None, "no_legal_action"
        messages = self._listen(stamp, now_s, anew=anew)
        told = self._policy.manifest.message
        try:
            action = self._policy.act(self._observation, mask, messages)
            if told and self._policy.message is not None:
                data = encode(self._policy.message, told.format)
                self._told = Told(stamp, FORMATS[told.format].bits, data)
        except FloatingPointError:
            self._policy.reset()
            reason = "non_finite_output"
        if reason:
            action = self._legal_action(self._policy.manifest.safe_index)
        elapsed = time.perf_counter() - begun
        status = Status.SAFE if reason else Status.POLICY
        self._answer = Decision(stamp, action, status, reason, elapsed)
        return self._answer

    def _stall(self, troubles: Mapping[str, list[str]], now_s: float) -> Decision:
        if self._stalled_s is None:
            self._stalled_s = now_s
        self._interrupted = True
        reason = "; ".join(f"{word}: {', '.join(names)}" for word, names in troubles.items())
        last = self._answer.action if self._answer and not self._answer.reason else None
        action = self._settings.stall.choose(
            self._policy.manifest.safe_index, last, now_s - self._stalled_s
        )
        return self._unpolitic(action, reason or "stale")

    def _unpolitic(self, action: int, reason: str) -> Decision:
        legal = self._legal_action(action)
        stamp = self._newest() if self._settings.real_time else NO_STEP
        stamp = NO_STEP if stamp == NEVER else stamp
        return Decision(stamp, legal, Status.SAFE, reason, 0.0)

    def _legal_action(self, wanted: int) -> int:
        return legal_action(wanted, self._policy.manifest.safe_index, self.mask())
