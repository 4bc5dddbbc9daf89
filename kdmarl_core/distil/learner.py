"""The students' optimiser: one gradient step of the objective on labelled samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from kdmarl_core.distil.expert_buffer import Samples
from kdmarl_core.distil.losses import (
    Terms,
    Weights,
    critic_free_ppo,
    entropy,
    hard_cross_entropy,
    policy_kl,
    total,
)
from kdmarl_core.distil.student import StudentTeam
from kdmarl_core.errors import UserError
from kdmarl_core.schema import check_above_zero, check_at_least


@dataclass(frozen=True)
class OfflinePhase:
    """Learning from the teacher's own rollouts; no updates switch it off."""

    buffer_steps: int
    updates: int
    minibatch: int
    learning_rate: float
    weights: Weights

    def __post_init__(self) -> None:
        check_at_least(0, self, "updates")
        check_at_least(1, self, "buffer_steps", "minibatch")
        check_above_zero(self, "learning_rate")


@dataclass(frozen=True)
class OnPolicyPhase:
    """Learning from the students' own states; no iterations switch it off."""

    iterations: int
    num_envs: int
    rollout_steps: int
    epochs: int
    minibatches: int
    learning_rate: float
    weights: Weights

    def __post_init__(self) -> None:
        check_at_least(0, self, "iterations")
        check_at_least(1, self, "num_envs", "rollout_steps", "epochs", "minibatches")
        check_above_zero(self, "learning_rate")


@dataclass(frozen=True)
class Recipe:
    """How students are distilled; every value stands in `config/training/distil.yaml`."""

    temperature: float
    clip: float
    max_grad_norm: float
    offline: OfflinePhase
    on_policy: OnPolicyPhase

    def __post_init__(self) -> None:
        check_above_zero(self, "temperature", "clip", "max_grad_norm")


class Learner:
    """Owns the optimiser of a team of students."""

    def __init__(self, students: StudentTeam, recipe: Recipe) -> None:
        self.students, self._recipe = students, recipe
        self._optimizer = torch.optim.Adam(students.parameters(), lr=0.0, fused=True)
        self._updates = 0

    def update(self, batch: Samples, weights: Weights, learning_rate: float) -> Terms:
        """One gradient step (Algorithm 1, lines 5-15).

        Raises:
            UserError: a term is not finite; weights are left as they were before the step.
        """
        terms = self._terms(batch)
        loss = total(terms, weights)
        self._refuse_non_finite(loss, terms)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(self.students.parameters(), self._recipe.max_grad_norm)
        self._optimizer.step()
        self._updates += 1
        return Terms(*(term.detach() for term in terms))

    def _terms(self, batch: Samples) -> Terms:
        restricted = self.students.restrict(batch.observation)
        logits = self.students(restricted, batch.action_mask).logits
        log_prob = torch.log_softmax(logits, -1).gather(-1, batch.action[..., None]).squeeze(-1)
        return Terms(
            ppo=critic_free_ppo(log_prob, batch.behaviour, batch.advantage, self._recipe.clip),
            kl=policy_kl(batch.teacher_logits, logits, self._recipe.temperature),
            cross_entropy=hard_cross_entropy(batch.teacher_logits, logits),
            entropy=entropy(logits),
        )

    def _refuse_non_finite(self, loss: Tensor, terms: Terms) -> None:
        if math.isfinite(float(loss.detach())):
            return
        bad = [
            name
            for name, term in terms._asdict().items()
            if not math.isfinite(float(term.detach()))
        ]
        raise UserError(
            f"loss: term {' and '.join(bad)} is not finite at update {self._updates}; "
            "lower the learning rate or the term's weight"
        )


def decay(learning_rate: float, done: int, total_steps: int) -> float:
    """Linear decay to zero."""
    return learning_rate * (1 - done / total_steps)
