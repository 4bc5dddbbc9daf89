"""The terms of the student's objective, each a pure function (Algorithm 1, lines 9-10 and 14).

Shapes: `B` samples, `N` agents, `A` actions. Policies are given as log-probabilities [B, N, A].
Those of actions that are not legal are very negative, not minus infinity, so that a probability of
zero contributes zero and never a NaN.

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
from torch.nn.functional import log_softmax, normalize

from kdmarl_core.errors import UserError
from kdmarl_core.schema import check_at_least
from kdmarl_core.teacher.returns import ppo_clip

# Of terms whose mathematics has changed: what an earlier revision gave is not used again.
REVISIONS = {"role": 2}


@dataclass(frozen=True)
class Weights:
    """Weight of each term; zero switches it off."""

    ppo: float
    kl: float  # alpha
    cross_entropy: float  # beta, hard label
    soft_cross_entropy: float  # beta, eq. 8 as printed
    structure: float  # lambda_str
    role: float  # lambda_role
    entropy: float  # zeta
    grounding: float  # of messages, where there are some

    def __post_init__(self) -> None:
        names = [field.name for field in fields(self)]
        check_at_least(0, self, *names)
        if not any(getattr(self, name) for name in names if name != "grounding"):
            raise UserError("all weights are 0, so nothing would be learned; raise one of them")


class Terms(NamedTuple):
    """The terms, each a scalar: summed over agents, averaged over samples."""

    ppo: Tensor
    kl: Tensor
    cross_entropy: Tensor
    soft_cross_entropy: Tensor
    structure: Tensor
    role: Tensor
    entropy: Tensor
    grounding: Tensor


def critic_free_ppo(
    student: Tensor, action: Tensor, behaviour: Tensor, advantage: Tensor, clip: float
) -> Tensor:
    """PPO-clip objective (eq. 3-4) with the teacher's advantage, summed over agents.

    Args:
        student: log pi_S, [B, N, A].
        action: the actions taken, [B, N].
        behaviour: log pi_beh of the same actions, [B, N].
        advantage: A_T, [B].
        clip: epsilon.
    """
    ratio = torch.exp(_of_actions(student, action) - behaviour)
    return ppo_clip(ratio, advantage[:, None], clip).mean(0).sum()


def policy_kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """tau^2 KL(pi_T || pi_S), both softened by tau (eq. 7), summed over agents."""
    if temperature != 1.0:
        teacher = log_softmax(teacher / temperature, -1)
        student = log_softmax(student / temperature, -1)
    return temperature**2 * _divergence(teacher, student)


def hard_cross_entropy(teacher: Tensor, student: Tensor) -> Tensor:
    """Cross-entropy of pi_S against the teacher's most probable action (eq. 8, see above)."""
    return -_of_actions(student, teacher.argmax(-1)).mean(0).sum()


def soft_cross_entropy(teacher: Tensor, student: Tensor) -> Tensor:
    """Cross-entropy of pi_S against pi_T, eq. 8 as printed: the KL plus the teacher's entropy."""
    return -(teacher.exp() * student).sum(-1).mean(0).sum()


def relational_structure(teacher_cosines: Tensor, student: Tensor) -> Tensor:
    """Squared differences of cosines between agents' embeddings, over all pairs j < i (eq. 9).

    Args:
        teacher_cosines: `pair_cosines` of phi_T, [B, P].
        student: phi_S brought to one width for all robots, [B, N, C].
    """
    return (teacher_cosines - pair_cosines(student)).square().sum(-1).mean()


def pair_cosines(embedding: Tensor) -> Tensor:
    """[..., N, W] -> cosines between all pairs of agents j < i, [..., N (N - 1) / 2]."""
    unit = normalize(embedding, dim=-1)
    agents = embedding.shape[-2]
    row, column = torch.tril_indices(agents, agents, offset=-1)
    return (unit @ unit.transpose(-1, -2))[..., row, column]


def role_alignment(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """KL(rho_T || rho_S) of role scores U phi [B, N, K] softened by tau (eq. 10-11)."""
    return _divergence(
        log_softmax(teacher / temperature, -1), log_softmax(student / temperature, -1)
    )


def entropy(student: Tensor) -> Tensor:
    """H(pi_S), summed over agents."""
    return -(student.exp() * student).sum(-1).mean(0).sum()


def grounding(sensed: Tensor, read: Tensor) -> Tensor:
    """Squared error of what is read from messages, summed over robots and features [B, N, F].

    Not the source's, which has no messages: one that tells what its sender senses gives those who
    learn to listen something to begin with (autoencoded messages, Lin et al. 2021).

    Args:
        sensed: what senders sense.
        read: what linear maps make of their messages.
    """
    return (sensed - read).square().sum((-1, -2)).mean()


def total(terms: Terms, weights: Weights) -> Tensor:
    """The objective to be minimised (Algorithm 1, line 14); a weight of zero leaves a term out."""
    parts = [
        (-weights.ppo, terms.ppo),
        (weights.kl, terms.kl),
        (weights.cross_entropy, terms.cross_entropy),
        (weights.soft_cross_entropy, terms.soft_cross_entropy),
        (weights.structure, terms.structure),
        (weights.role, terms.role),
        (-weights.entropy, terms.entropy),
        (weights.grounding, terms.grounding),
    ]
    return torch.stack([weight * term for weight, term in parts if weight]).sum()


def _divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL of two distributions given as log-probabilities [B, N, any], summed over agents."""
    return (teacher.exp() * (teacher - student)).sum(-1).mean(0).sum()


def _of_actions(log_probs: Tensor, action: Tensor) -> Tensor:
    """Log-probabilities [B, N] of actions [B, N]."""
    return log_probs.gather(-1, action[..., None]).squeeze(-1)
