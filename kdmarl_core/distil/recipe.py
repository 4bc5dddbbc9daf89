"""How students are distilled: every value stands in `config/training/<recipe>.yaml`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from kdmarl_core.distil.losses import REVISIONS, Terms, Weights
from kdmarl_core.errors import UserError, refuse_unknown
from kdmarl_core.files import config_file
from kdmarl_core.schema import (
    check_above_zero,
    check_at_least,
    check_at_most,
    from_mapping,
    read_with_bases,
    with_changes,
)
from kdmarl_core.teacher.returns import refuse_one_sample

MOST = 10**15  # of a size: what no machine holds, and its numbers can still count
MOST_ROLES = 1000  # far more than there are kinds of behaviour, fewer than roles are fitted from


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
        check_at_most(MOST, self, "minibatch")
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
        sizes = ("num_envs", "rollout_steps", "epochs", "minibatches")
        check_at_least(1, self, *sizes)
        check_at_most(MOST, self, *sizes)
        check_above_zero(self, "learning_rate")
        refuse_one_sample(self.num_envs, self.rollout_steps)


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
        check_at_most(MOST, self, "common_width")
        check_at_least(2, self, "roles")
        check_at_most(MOST_ROLES, self, "roles")
        if not (self.offline.updates or self.on_policy.iterations):
            raise UserError(
                "offline.updates and on_policy.iterations are both 0, so nothing would be "
                "learned; raise one of them"
            )

    @property
    def revisions(self) -> dict[str, int]:
        """Of the terms that have a weight, as far as they have been revised."""
        phases = (self.offline.weights, self.on_policy.weights)
        return {
            term: revision
            for term, revision in REVISIONS.items()
            if any(getattr(weights, term) for weights in phases)
        }


_recipe_file = functools.partial(config_file, "recipe", "training/distil*.yaml")


def load_recipe(
    name_or_path: str, changes: Sequence[str] = (), without: Sequence[str] = ()
) -> Recipe:
    """A shipped recipe by its name, or any file by its path.

    Args:
        name_or_path: such as `distil`, or a YAML file.
        changes: values to change, `key.key=value`.
        without: terms of the objective to switch off in both phases.

    Raises:
        UserError: the file is missing or malformed, or a change or term is unknown.
    """
    path = _recipe_file(name_or_path)
    document = read_with_bases(path, _recipe_file)
    refuse_unknown("term", without, Terms._fields)
    off = [f"{phase}.weights.{term}=0.0" for term in without for phase in ("offline", "on_policy")]
    return from_mapping(Recipe, with_changes(document, [*changes, *off]), str(path))


def decay(learning_rate: float, done: int, total_steps: int) -> float:
    """Linear decay to zero."""
    return learning_rate * (1 - done / total_steps)
