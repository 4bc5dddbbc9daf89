"""Stepping a batch of environments with a policy, and keeping what happened.

Shapes: `T` steps, `E` environments, `N` agents, `D` features, `A` actions, `S` joint state.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdmarl_core.seeding import derive_seed
from kdmarl_core.tasks import BatchEnv, BatchStep, TaskSpec
from kdmarl_core.tasks.task import Booleans

# What is shown, and which environments [E] begin an episode with it (where a policy forgets the
# past) -> logits [E, N, A], very negative where an action is not legal.
Policy = Callable[[BatchStep, Booleans], Tensor]


class Rollout(NamedTuple):
    """What a policy saw and did."""

    observation: Tensor  # [T, E, N, D]
    state: Tensor  # [T + 1, E, S], the last row bootstraps
    action_mask: Tensor  # [T, E, N, A]
    action: Tensor  # [T, E, N]
    log_prob: Tensor  # [T, E, N], of the policy that acted
    reward: Tensor  # [T, E] team reward
    done: Tensor  # [T, E]
    begins: Tensor  # [T, E], whether an episode begins with this step's observation
    won: Tensor  # [T, E], whether an episode ended with this step and was won

    def episode_return(self) -> float:
        """Team reward per episode that ended in this rollout; NaN where none did.

        Exact where rollouts begin with new episodes. Where episodes go on, the beginnings that an
        earlier rollout saw stand for the ends that a later one will see.
        """
        ended = int(self.done.sum())
        counted = self.reward
        if self.begins[0].all():
            counted = counted * (self.done.flip(0).cumsum(0).flip(0) > 0)
        return float(counted.sum()) / ended if ended else float("nan")

    def win_rate(self) -> float:
        """Share of the episodes that ended in this rollout that were won; NaN where none did."""
        ended = int(self.done.sum())
        return float(self.won.sum()) / ended if ended else float("nan")


class Collector:
    """Rolls a policy out; rollout `k` of a seed is the same whatever ran before it.

    That holds where every rollout begins with new episodes: if asked for (`anew`), and for tasks
    whose episodes all have one length, if `steps` is a multiple of it. Otherwise episodes go on
    from rollout to rollout.
    """

    def __init__(
        self, spec: TaskSpec, env: BatchEnv, steps: int, seed: int, *, anew: bool = False
    ) -> None:
        self._env, self._steps, self._seed = env, steps, seed
        self._anew = anew or (not spec.ends_early and steps % spec.episode_steps == 0)
        self._now: BatchStep | None = None

    def collect(self, policy: Policy, index: int) -> Rollout:
        """Rollout number `index`, actions drawn from the policy."""
        seed = derive_seed(self._seed, index)
        generator = torch.Generator().manual_seed(seed)
        if self._now is None or self._anew:
            self._now = self._env.reset(seed)
            begins = [np.ones_like(self._now.done)]
        else:
            begins = [self._now.done]
        shown, drawn = [self._now], []
        for _ in range(self._steps):
            action, log_prob = sample(policy(shown[-1], begins[-1]), generator)
            drawn.append((action, log_prob))
            shown.append(self._env.step(action.numpy()))
            begins.append(shown[-1].done)
        self._now = shown[-1]
        return rollout_of(shown, drawn, begins)


def rollout_of(
    shown: Sequence[BatchStep], drawn: Sequence[tuple[Tensor, Tensor]], begins: Sequence[Booleans]
) -> Rollout:
    """What happened, from what was shown (once more than acted), drawn (`sample`) and begun."""
    return Rollout(
        observation=_stack([s.observation for s in shown[:-1]]),
        state=_stack([s.state for s in shown]),
        action_mask=_stack([s.action_mask for s in shown[:-1]]),
        action=torch.stack([action for action, _ in drawn]),
        log_prob=torch.stack([log_prob for _, log_prob in drawn]),
        reward=_stack([s.reward for s in shown[1:]]),
        done=_stack([s.done for s in shown[1:]]),
        begins=_stack(begins[:-1]),
        won=_stack([s.won for s in shown[1:]]),
    )


def sample(logits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw actions by the Gumbel-max trick; returns them and their log-probabilities."""
    uniform = torch.rand(logits.shape, generator=generator).clamp_(min=1e-20)
    action = (logits - torch.log(-torch.log(uniform))).argmax(-1)
    log_probs = torch.log_softmax(logits, -1)
    return action, log_probs.gather(-1, action[..., None]).squeeze(-1)


def _stack(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))
