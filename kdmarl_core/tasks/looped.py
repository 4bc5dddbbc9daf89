"""Tasks whose simulator plays one episode at a time.

A batch of them is copies, stepped one after the other in this process: exact, and as slow as one
copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kdmarl_core.seeding import derive_seed
from kdmarl_core.tasks.task import (
    BatchEnv,
    BatchStep,
    Integers,
    ReferenceEnv,
    TaskSpec,
    View,
)


@dataclass(frozen=True)
class LoopedTask:
    """A task that trains in the simulator that judges."""

    spec: TaskSpec
    make_reference: Callable[[], ReferenceEnv]

    def make_batch(self, num_envs: int) -> BatchEnv:
        """Copies of the reference simulator.

        Raises:
            UserError: they are more than there may be at once.
        """
        self.spec.refuse_more_envs(num_envs, "num_envs")
        return _LoopedBatch(self.spec, [self.make_reference() for _ in range(num_envs)])


class _LoopedBatch:
    def __init__(self, spec: TaskSpec, envs: Sequence[ReferenceEnv]) -> None:
        self._spec, self._envs = spec, envs
        self._seed = 0
        self._begun = [0] * len(envs)  # episodes of each environment since the reset

    def reset(self, seed: int) -> BatchStep:
        self._seed = seed
        self._begun = [0] * len(self._envs)
        views = [self._begin(index) for index in range(len(self._envs))]
        nothing = [0] * len(views)
        return self._show(views, nothing, nothing, nothing)

    def step(self, actions: Integers) -> BatchStep:
        views, rewards, dones, wons = [], [], [], []
        for index, (env, own) in enumerate(zip(self._envs, actions.tolist(), strict=True)):
            view, reward, done, label = env.step(own)
            views.append(self._begin(index) if done else view)
            rewards.append(reward)
            dones.append(done)
            wons.append(label == "won")
        return self._show(views, rewards, dones, wons)

    def _begin(self, index: int) -> View:
        episode = self._begun[index]
        self._begun[index] += 1
        return self._envs[index].reset(derive_seed(self._seed, index, episode))

    def _show(
        self,
        views: Sequence[View],
        reward: Sequence[float],
        done: Sequence[bool | int],
        won: Sequence[bool | int],
    ) -> BatchStep:
        spec = self._spec
        shape = (len(views), spec.num_agents)
        observation = np.zeros((*shape, spec.observation_size), np.float32)
        mask = np.zeros((*shape, spec.num_actions), np.bool_)
        for row, legal, view in zip(observation, mask, views, strict=True):
            for index, own in enumerate(view.observations):
                row[index, : len(own)] = own
            for index, flags in enumerate(view.action_masks):
                legal[index, : len(flags)] = flags
        return BatchStep(
            observation,
            np.stack([view.state for view in views]),
            mask,
            np.array(reward, np.float32),
            np.array(done, np.bool_),
            np.array(won, np.bool_),
        )
