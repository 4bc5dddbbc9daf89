"""Advantages, and the policy-gradient objective that uses them."""

import torch
from torch import Tensor

from kdmarl_core.errors import UserError


def gae(reward: Tensor, value: Tensor, done: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimation, cut at episode ends (eq. 1-2; Schulman et al. 2016).

    delta_t = r_t + gamma V_{t+1} - V_t; A_t = delta_t + gamma lam A_{t+1}; where an episode ends
    at t, neither V_{t+1} nor A_{t+1} counts.

    Args:
        reward: [T, E].
        value: [T + 1, E], the last row bootstraps.
        done: [T, E], whether the episode ended with step t.
        gamma: discount factor.
        lam: trace decay.

    Returns:
        Advantages, [T, E]. Returns are these plus `value[:-1]`.
    """
    goes_on = 1.0 - done.to(value.dtype)
    delta = reward + gamma * value[1:] * goes_on - value[:-1]
    advantage = torch.empty_like(delta)
    following = torch.zeros_like(delta[0])
    for t in range(len(delta) - 1, -1, -1):
        following = delta[t] + gamma * lam * goes_on[t] * following
        advantage[t] = following
    return advantage


def normalised(advantage: Tensor) -> Tensor:
    """Advantages of one rollout at mean 0 and standard deviation 1."""
    return (advantage - advantage.mean()) / (advantage.std() + 1e-8)


def refuse_one_sample(num_envs: int, rollout_steps: int) -> None:
    """Raise a `UserError` if a rollout is one sample, which has no standard deviation."""
    if num_envs * rollout_steps == 1:
        raise UserError(
            "rollout_steps: 1 in 1 environment is one sample, whose advantage cannot be "
            "normalised; raise one of them"
        )


def ppo_clip(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO-clip (eq. 4), to be maximised: min(r A, clip(r, 1 - eps, 1 + eps) A), elementwise."""
    return torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
