"""The newest inputs become a decision: everything a policy node knows that is not ROS.

Time is steady time in seconds. An input is identified by (episode, step); within an episode steps
only grow. Another episode begins anew, whatever its number: a restarted simulator may count from
zero. So does step 0 of the same episode: a simulator that was killed plays it from its start.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kdmarl_core.bundle import BundlePolicy
from kdmarl_ros.safety import check_values

Stamp = tuple[int, int]  # episode, step
NEVER: Stamp = (-1, -1)


class Decision(NamedTuple):
    """What to publish."""

    stamp: Stamp
    action: int
    safe: bool  # True: the safe action, not the policy's choice
    reason: str  # why it is the safe action, else empty
    compute_s: float


@dataclass
class _Input:
    name: str
    part: slice  # of the observation
    size: int
    stamp: Stamp = NEVER
    received_s: float = float("-inf")


class PolicyRuntime:
    """One robot's inputs, its policy, and what it decided last."""

    def __init__(self, policy: BundlePolicy) -> None:
        self._policy = policy
        self._observation = np.zeros(policy.manifest.observation_size, np.float32)
        self._inputs: list[_Input] = []
        start = 0
        for block in policy.manifest.blocks:
            part = slice(start, start + block.size)
            self._inputs.append(_Input(block.name, part, block.size))
            start += block.size
        self._decided = NEVER
        self._answer: Decision | None = None  # the policy's newest, whatever was published since
        self.drops: Counter[str] = Counter()
        self.decisions: Counter[str] = Counter()

    def receive(
        self, index: int, episode: int, step: int, data: Sequence[float], now_s: float
    ) -> bool:
        """Take in block number `index`; False if it was dropped (counted by reason).

        A repetition of the newest stamp is accepted: a simulator repeats what was not answered.
        """
        entry = self._inputs[index]
        reason = check_values(data, entry.size)
        if reason is None and episode == entry.stamp[0] and 0 < step < entry.stamp[1]:
            reason = "old"
        if reason is not None:
            self.drops[f"{entry.name}/{reason}"] += 1
            return False
        entry.stamp = (episode, step)
        entry.received_s = now_s
        self._observation[entry.part] = data
        return True

    def complete(self) -> Stamp | None:
        """The stamp that all inputs share, if they do: a whole step to decide on."""
        first = self._inputs[0].stamp
        if first == NEVER or any(entry.stamp != first for entry in self._inputs):
            return None
        return first

    def decide(self, stamp: Stamp) -> Decision:
        """Decide on the inputs as they are; repeats the last decision for the same stamp."""
        if self._answer is not None and self._answer.stamp == stamp:
            return self._answer
        begun = time.perf_counter()
        if stamp[0] != self._decided[0] or stamp < self._decided:
            self._policy.reset()
        self._decided = stamp
        try:
            action, reason = self._policy.act(self._observation), ""
        except FloatingPointError:
            self._policy.reset()
            action, reason = self._policy.manifest.safe_index, "non_finite_output"
        elapsed = time.perf_counter() - begun
        self._answer = self._counted(Decision(stamp, action, reason != "", reason, elapsed))
        return self._answer

    def decide_newest(self, now_s: float, timeout_s: float) -> Decision:
        """Real time: decide on the newest value of each input, unless one is missing or stale."""
        stale = [e.name for e in self._inputs if not now_s - e.received_s <= timeout_s]
        if stale:
            return self.safe(f"stale: {', '.join(stale)}")
        self._answer = None
        return self.decide(max(entry.stamp for entry in self._inputs))

    def safe(self, reason: str) -> Decision:
        """The safe action, under the newest stamp seen."""
        stamp = max((entry.stamp for entry in self._inputs), default=NEVER)
        action = self._policy.manifest.safe_index
        return self._counted(Decision(max(stamp, (0, 0)), action, True, reason, 0.0))

    def ages_s(self, now_s: float) -> dict[str, float]:
        """Seconds since each input was last good; infinite for one that never came."""
        return {entry.name: now_s - entry.received_s for entry in self._inputs}

    def _counted(self, decision: Decision) -> Decision:
        self.decisions[decision.reason or "policy"] += 1
        return decision
