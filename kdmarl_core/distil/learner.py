"""The students' optimiser: one gradient step of the objective on labelled samples."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from kdmarl_core.distil.coordination import CoordinationHeads
from kdmarl_core.distil.losses import (
    Terms,
    Weights,
    critic_free_ppo,
    entropy,
    grounding,
    hard_cross_entropy,
    policy_kl,
    relational_structure,
    role_alignment,
    soft_cross_entropy,
    total,
)
from kdmarl_core.distil.recipe import Recipe
from kdmarl_core.distil.samples import Batch
from kdmarl_core.distil.student import StudentTeam
from kdmarl_core.errors import check_finite


class Learner:
    """Owns the optimiser of a team of students and of its coordination heads."""

    def __init__(self, students: StudentTeam, heads: CoordinationHeads, recipe: Recipe) -> None:
        self.students, self._heads, self._recipe = students, heads, recipe
        self.learned = nn.ModuleDict({"students": students, "heads": heads})
        self.optimizer = torch.optim.Adam(self.learned.parameters(), lr=0.0, fused=True)
        self._newest: tuple[Batch, Weights] | None = None  # what was learned from last

    @property
    def updates(self) -> int:
        """Gradient steps done, with those before a resumption."""
        return max((int(state["step"]) for state in self.optimizer.state.values()), default=0)

    def update(self, batch: Batch, weights: Weights, learning_rate: float) -> Terms:
        """One gradient step (Algorithm 1, lines 5-15).

        Raises:
            UserError: a term or the gradient is not finite; weights are left as they were before
                the step.
        """
        when = f"at update {self.updates}"
        remedy = f"lower the learning rate, now {learning_rate:.1e}, or the term's weight"
        terms = self._terms(batch, weights)
        loss = total(terms, weights)
        check_finite(_figures(terms), when, remedy)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = clip_grad_norm_(self.learned.parameters(), self._recipe.max_grad_norm)
        check_finite({"the gradient": float(norm)}, when, remedy)
        self.optimizer.step()
        self._newest = batch, weights
        return Terms(*(term.detach() for term in terms))

    def check(self) -> None:
        """Raise a `UserError` if the newest step has spoilt what the next one would begin with."""
        if self._newest:
            with torch.no_grad():
                terms = self._terms(*self._newest)
            remedy = "lower the learning rate or the term's weight"
            check_finite(_figures(terms), f"after update {self.updates - 1}", remedy)

    def _terms(self, batch: Batch, weights: Weights) -> Terms:
        """The terms that have a weight; zero, and free, for the others."""
        recipe, heads = self._recipe, self._heads
        labels = batch.labels
        output = self.students(
            batch.inputs,
            labels.action_mask,
            labels.begins,
            batch.state,
            batch.delivery,
            batch.mail,
        )
        student, embedding = output.log_probs.flatten(0, 1), output.embedding.flatten(0, 1)
        teacher = labels.teacher.flatten(0, 1).float()

        def grounded() -> Tensor:
            if output.message is None:
                return torch.zeros(())
            sensed = heads.sensed_by_senders(batch.inputs.flatten(0, 1))
            return grounding(sensed, heads.read(output.message.flatten(0, 1)))

        compute: dict[str, Callable[[], Tensor]] = {
            "ppo": lambda: critic_free_ppo(
                student,
                labels.action.flatten(0, 1).long(),
                labels.behaviour.flatten(0, 1),
                labels.advantage.flatten(),
                recipe.clip,
            ),
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
            "grounding": grounded,
        }
        return Terms(
            **{
                name: term() if getattr(weights, name) else torch.zeros(())
                for name, term in compute.items()
            }
        )


def _figures(terms: Terms) -> dict[str, float]:
    return {f"term {name}": float(term.detach()) for name, term in terms._asdict().items()}
