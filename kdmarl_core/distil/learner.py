"""The students' optimiser: one gradient step of the objective on labelled samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from kdmarl_core.distil.coordination import CoordinationHeads
from kdmarl_core.distil.expert_buffer import Samples, teacher_embedding
from kdmarl_core.distil.losses import (
    Terms,
    Weights,
    critic_free_ppo,
    entropy,
    hard_cross_entropy,
    policy_kl,
    relational_structure,
    role_alignment,
    soft_cross_entropy,
    total,
)
from kdmarl_core.distil.student import StudentTeam
from kdmarl_core.errors import UserError
from kdmarl_core.schema import check_above_zero, check_at_least
from kdmarl_core.teacher.teacher import Teacher


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
    common_width: int
    roles: int
    offline: OfflinePhase
    on_policy: OnPolicyPhase

    def __post_init__(self) -> None:
        check_above_zero(self, "temperature", "clip", "max_grad_norm")
        check_at_least(1, self, "common_width")
        check_at_least(2, self, "roles")


class Learner:
    """Owns the optimiser of a team of students and of its coordination heads."""

    def __init__(
        self, students: StudentTeam, teacher: Teacher, heads: CoordinationHeads, recipe: Recipe
    ) -> None:
        self.students, self._teacher, self._heads = students, teacher, heads
        self._recipe = recipe
        self._learned = [*students.parameters(), *heads.parameters()]
        self._optimizer = torch.optim.Adam(self._learned, lr=0.0, fused=True)
        self._updates = 0

    def update(self, batch: Samples, weights: Weights, learning_rate: float) -> Terms:
        """One gradient step (Algorithm 1, lines 5-15).

        Raises:
            UserError: a term is not finite; weights are left as they were before the step.
        """
        terms = self._terms(batch, weights)
        loss = total(terms, weights)
        self._refuse_non_finite(loss, terms)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(self._learned, self._recipe.max_grad_norm)
        self._optimizer.step()
        self._updates += 1
        return Terms(*(term.detach() for term in terms))

    def _terms(self, batch: Samples, weights: Weights) -> Terms:
        recipe = self._recipe
        restricted = self.students.restrict(batch.observation)
        logits, embedding = self.students(restricted, batch.action_mask)
        log_prob = torch.log_softmax(logits, -1).gather(-1, batch.action[..., None]).squeeze(-1)
        structure, role = self._coordination(batch, embedding, weights)
        return Terms(
            ppo=critic_free_ppo(log_prob, batch.behaviour, batch.advantage, recipe.clip),
            kl=policy_kl(batch.teacher_logits, logits, recipe.temperature),
            cross_entropy=hard_cross_entropy(batch.teacher_logits, logits),
            soft_cross_entropy=soft_cross_entropy(batch.teacher_logits, logits),
            structure=structure,
            role=role,
            entropy=entropy(logits),
        )

    def _coordination(
        self, batch: Samples, embedding: Tensor, weights: Weights
    ) -> tuple[Tensor, Tensor]:
        """Structure and role terms; zero, and free, where both are switched off."""
        if not weights.coordinate:
            return torch.zeros(()), torch.zeros(())
        heads = self._heads
        phi = teacher_embedding(self._teacher, batch.observation)
        structure = relational_structure(phi, heads.student_structure(embedding))
        scores = heads.student_scores(embedding)
        return structure, role_alignment(
            heads.teacher_scores(phi), scores, self._recipe.temperature
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
