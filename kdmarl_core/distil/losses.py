"""The terms of the student's objective, each a pure function (Algorithm 1, lines 9-10 and 14).

Shapes: `B` samples, `N` agents, `A` actions. Logits of actions that do not exist are very
negative, not minus infinity, so that a probability of zero contributes zero and never a NaN.

Deviations from the paper, settled in its favour: eq. 8 as printed is the KL plus a constant, so
the cross-entropy takes the teacher's most probable action, as the text and Table III ("hard
logit") do; the KL carries the factor tau^2 that keeps its gradient's size when tau changes (Hinton
et al. 2015).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from kdmarl_core.schema import check_at_least
from kdmarl_core.teacher.returns import ppo_clip


@dataclass(frozen=True)
class Weights:
    """Weight of each term; zero switches it off."""

    ppo: float
    kl: float  # alpha
    cross_entropy: float  # beta
    entropy: float  # zeta

    def __post_init__(self) -> None:
        check_at_least(0, self, *(field.name for field in fields(self)))


class Terms(NamedTuple):
    """The terms, each a scalar: summed over agents, averaged over samples."""

    ppo: Tensor
    kl: Tensor
    cross_entropy: Tensor
    entropy: Tensor


def critic_free_ppo(log_prob: Tensor, behaviour: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO-clip objective (eq. 3-4) with the teacher's advantage, summed over agents.

    Args:
        log_prob: log pi_S of the actions taken, [B, N].
        behaviour: log pi_beh of the same actions, [B, N].
        advantage: A_T, [B].
        clip: epsilon.
    """
    ratio = torch.exp(log_prob - behaviour)
    return ppo_clip(ratio, advantage[:, None], clip).mean(0).sum()


def policy_kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """tau^2 KL(pi_T || pi_S) of logits [B, N, A] softened by tau (eq. 7), summed over agents."""
    target = log_softmax(teacher / temperature, -1)
    found = log_softmax(student / temperature, -1)
    divergence = (target.exp() * (target - found)).sum(-1)
    return temperature**2 * divergence.mean(0).sum()


def hard_cross_entropy(teacher: Tensor, student: Tensor) -> Tensor:
    """Cross-entropy of pi_S against the teacher's most probable action (eq. 8, see above)."""
    return (
        cross_entropy(student.transpose(1, 2), teacher.argmax(-1), reduction="none").mean(0).sum()
    )


def entropy(student: Tensor) -> Tensor:
    """H(pi_S) of logits [B, N, A], summed over agents."""
    log_probs = log_softmax(student, -1)
    return -(log_probs.exp() * log_probs).sum(-1).mean(0).sum()


def total(terms: Terms, weights: Weights) -> Tensor:
    """The objective to be minimised (Algorithm 1, line 14)."""
    return (
        -weights.ppo * terms.ppo
        + weights.kl * terms.kl
        + weights.cross_entropy * terms.cross_entropy
        - weights.entropy * terms.entropy
    )
