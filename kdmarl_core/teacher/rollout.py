"""Stepping a batch of environments with a policy, and keeping what happened.

Shapes: `T` steps, `E` environments, `N` agents, `D` features, `A` actions, `S` joint state.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdmarl_core.seeding import derive_seed
from kdmarl_core.tasks import BatchEnv, BatchStep, TaskSpec

# observation [E, N, D] and action mask [E, N, A] -> logits [E, N, A], minus infinity where masked
Policy = Callable[[Tensor, Tensor], Tensor]


class Rollout(NamedTuple):
    """What a policy saw and did."""

    observation: Tensor  # [T, E, N, D]
    state: Tensor  # [T + 1, E, S], the last row bootstraps
    action_mask: Tensor  # [T, E, N, A]
    action: Tensor  # [T, E, N]
    log_prob: Tensor  # [T, E, N], of the policy that acted
    reward: Tensor  # [T, E] team reward
    done: Tensor  # [T, E]

    def episode_return(self) -> float:
        """Team reward per episode that ended in this rollout; NaN where none did."""
        ended = int(self.done.sum())
        return float(self.reward.sum()) / ended if ended else float("nan")


class Collector:
    """Rolls a policy out; rollout `k` of a seed is the same whatever ran before it.

    That holds for tasks whose episodes all have one length, if `steps` is a multiple of it: every
    rollout then begins with new episodes. Otherwise episodes go on from rollout to rollout.
    """

    def __init__(self, spec: TaskSpec, env: BatchEnv, steps: int, seed: int) -> None:
        self._spec, self._env, self._steps, self._seed = spec, env, steps, seed
        self._whole_episodes = not spec.ends_early and steps % spec.episode_steps == 0
        self._now: BatchStep | None = None

    def collect(self, policy: Policy, index: int) -> Rollout:
        """Rollout number `index`, actions drawn from the policy."""
        seed = derive_seed(self._seed, index)
        generator = torch.Generator().manual_seed(seed)
        if self._now is None or self._whole_episodes:
            self._now = self._env.reset(seed)
        shown, actions, log_probs = [self._now], [], []
        for _ in range(self._steps):
            now = shown[-1]
            logits = policy(torch.from_numpy(now.observation), torch.from_numpy(now.action_mask))
            action, log_prob = sample(logits, generator)
            actions.append(action)
            log_probs.append(log_prob)
            shown.append(self._env.step(action.numpy()))
        self._now = shown[-1]
        return Rollout(
            observation=_stack([s.observation for s in shown[:-1]]),
            state=_stack([s.state for s in shown]),
            action_mask=_stack([s.action_mask for s in shown[:-1]]),
            action=torch.stack(actions),
            log_prob=torch.stack(log_probs),
            reward=_stack([s.reward for s in shown[1:]]),
            done=_stack([s.done for s in shown[1:]]),
        )


def sample(logits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw actions by the Gumbel-max trick; returns them and their log-probabilities."""
    uniform = torch.rand(logits.shape, generator=generator).clamp_(min=1e-20)
    action = (logits - torch.log(-torch.log(uniform))).argmax(-1)
    log_probs = torch.log_softmax(logits, -1)
    return action, log_probs.gather(-1, action[..., None]).squeeze(-1)


def _stack(arrays: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))
