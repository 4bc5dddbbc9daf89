"""The students' optimiser: one gradient step of the objective on labelled samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from kdmarl_core.distil.coordination import CoordinationHeads
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
from kdmarl_core.distil.samples import Batch, masked_teacher_logits
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

    def __init__(self, students: StudentTeam, heads: CoordinationHeads, recipe: Recipe) -> None:
        self.students, self._heads, self._recipe = students, heads, recipe
        self.learned = nn.ModuleDict({"students": students, "heads": heads})
        self.optimizer = torch.optim.Adam(self.learned.parameters(), lr=0.0, fused=True)
        self.updates = 0

    def update(self, batch: Batch, weights: Weights, learning_rate: float) -> Terms:
        """One gradient step (Algorithm 1, lines 5-15).

        Raises:
            UserError: a term is not finite; weights are left as they were before the step.
        """
        terms = self._terms(batch, weights)
        loss = total(terms, weights)
        self._refuse_non_finite(loss, terms)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(self.learned.parameters(), self._recipe.max_grad_norm)
        self.optimizer.step()
        self.updates += 1
        return Terms(*(term.detach() for term in terms))

    def _terms(self, batch: Batch, weights: Weights) -> Terms:
        """The terms that have a weight; zero, and free, for the others."""
        recipe, heads = self._recipe, self._heads
        labels = batch.labels
        output = self.students(batch.inputs, labels.action_mask, labels.begins, batch.state)
        student, embedding = output.logits.flatten(0, 1), output.embedding.flatten(0, 1)
        teacher = masked_teacher_logits(labels).flatten(0, 1)

        def ppo() -> Tensor:
            taken = labels.action.flatten(0, 1).long()[..., None]
            log_prob = torch.log_softmax(student, -1).gather(-1, taken).squeeze(-1)
            behaviour, advantage = labels.behaviour.flatten(0, 1), labels.advantage.flatten()
            return critic_free_ppo(log_prob, behaviour, advantage, recipe.clip)

        compute: dict[str, Callable[[], Tensor]] = {
            "ppo": ppo,
            "kl": lambda: policy_kl(teacher, student, recipe.temperature),
            "cross_entropy": lambda: hard_cross_entropy(teacher, student),
            "soft_cross_entropy": lambda: soft_cross_entropy(teacher, student),
            "structure": lambda: relational_structure(
                labels.cosines.flatten(0, 1), heads.structure(embedding)
            ),
            "role": lambda: role_alignment(
                labels.roles.flatten(0, 1).float(), heads.scores(embedding), recipe.temperature
            ),
            "entropy": lambda: entropy(student),
        }
        return Terms(
            **{
                name: term() if getattr(weights, name) else torch.zeros(())
                for name, term in compute.items()
            }
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
            f"loss: term {' and '.join(bad)} is not finite at update {self.updates}; "
            "lower the learning rate or the term's weight"
        )


def decay(learning_rate: float, done: int, total_steps: int) -> float:
    """Linear decay to zero."""
    return learning_rate * (1 - done / total_steps)
