"""MAPPO under centralised training, decentralised execution (Yu et al. 2022), as in stage 1.

One update per rollout: `epochs` passes over shuffled minibatches of the PPO-clip objective with a
centralised value function. Reading order: `Recipe`, `loss`, `update`.

Shapes: `T` steps, `B` sequences of a minibatch, `E` environments, `N` agents, `I` inputs, `J`
inputs of followers, `A` actions, `S` joint state, `W` width.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.utils import clip_grad_norm_

from kdmarl_core.errors import UserError, check_finite
from kdmarl_core.files import config_file, share_folder
from kdmarl_core.nets.precision import Precision, dtype_of, products_in
from kdmarl_core.schema import (
    check_above_zero,
    check_at_least,
    check_share,
    from_mapping,
    read_with_bases,
)
from kdmarl_core.tasks import TaskSpec
from kdmarl_core.teacher.acting import Acting
from kdmarl_core.teacher.architecture import Architecture, Network
from kdmarl_core.teacher.followers import Followers, FollowersEntry, divergence
from kdmarl_core.teacher.returns import gae, normalised, ppo_clip, refuse_one_sample
from kdmarl_core.teacher.rollout import Rollout
from kdmarl_core.teacher.teacher import Teacher, mask_logits

FOR_TEACHERS = ("begins_with", "followers")  # keys of a recipe that no other policy can have


@dataclass(frozen=True)
class Recipe:
    """How a teacher is trained; every value stands in `config/training/<name>.yaml`."""

    task: str
    architecture: Architecture
    env_steps: int
    num_envs: int
    rollout_steps: int
    epochs: int
    minibatches: int
    learning_rate: float
    final_learning_rate: float
    clip: float
    entropy: float
    final_entropy: float
    gamma: float
    gae_lambda: float
    reward_scale: float
    max_grad_norm: float
    precision: Precision
    begins_with: str = ""  # the teacher whose weights it begins with; empty: none
    followers: FollowersEntry | None = None  # who is to be able to follow it; None: nobody

    def __post_init__(self) -> None:
        check_at_least(1, self, "env_steps", "num_envs", "rollout_steps", "epochs", "minibatches")
        check_above_zero(self, "learning_rate", "clip", "reward_scale", "max_grad_norm")
        check_at_least(0, self, "final_learning_rate", "entropy", "final_entropy")
        check_share(self, "gamma", "gae_lambda")
        if self.architecture.network == "gru" and self.num_envs % self.minibatches:
            raise UserError(
                f"minibatches: {self.minibatches} does not divide num_envs = {self.num_envs}, and "
                "a recurrent network learns from whole sequences; change one of them"
            )
        alone = self.followers.iterations_alone if self.followers else 0
        if alone >= self.iterations:
            raise UserError(
                f"followers: iterations_alone: {alone} leaves none of the {self.iterations} "
                "iterations to the teacher; lower it, or raise env_steps"
            )
        if self.steps_per_iteration % self.minibatches:
            raise UserError(
                f"minibatches: {self.minibatches} does not divide num_envs * rollout_steps = "
                f"{self.steps_per_iteration}; change one of them"
            )
        refuse_one_sample(self.num_envs, self.rollout_steps)

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps of one rollout."""
        return self.num_envs * self.rollout_steps

    @property
    def iterations(self) -> int:
        """Rollouts, each followed by one update."""
        return -(-self.env_steps // self.steps_per_iteration)

    def record(self) -> dict[str, Any]:
        """For keys and hashes."""
        record = dataclasses.asdict(self)
        for key in FOR_TEACHERS:
            if not record[key]:
                del record[key]
        return record

    def with_network(self, network: Network) -> Recipe:
        """The same recipe for another actor."""
        architecture = dataclasses.replace(self.architecture, network=network)
        return dataclasses.replace(self, architecture=architecture)


def shipped_recipe(spec: TaskSpec, suffix: str = "") -> Path:
    """Where the recipe of a task lies that ships."""
    return share_folder() / "config" / "training" / f"{spec.slug}{suffix}.yaml"


recipe_file = functools.partial(config_file, "recipe", "training/*.yaml")  # by name or path


def load_recipe(path: Path, spec: TaskSpec) -> Recipe:
    """The recipe in a file, laid over that which its key `base` names, if it has one.

    Raises:
        UserError: the file is missing or malformed, or is for another task.
    """
    recipe = from_mapping(Recipe, read_with_bases(path, recipe_file), str(path))
    if recipe.task != spec.name:
        raise UserError(
            f"{path}: task: '{recipe.task}' is not '{spec.name}'; give that task's recipe"
        )
    return recipe


class Sequences(NamedTuple):
    """Steps of environments side by side; each step alone if nothing is remembered (`T` is 1)."""

    inputs: Tensor  # what the actor reads, [T, B, N, I]
    begins: Tensor  # [T, B]
    action_mask: Tensor  # [T, B, N, A]
    action: Tensor  # [T, B, N]
    log_prob: Tensor  # [T, B, N]
    advantage: Tensor  # [T, B]
    state: Tensor  # [T, B, S]
    value_target: Tensor  # [T, B]
    sensed: Tensor  # what followers read, [T, B, N, J]; nothing without them


class Losses(NamedTuple):
    """Terms of the objective, each a scalar."""

    policy: Tensor
    value: Tensor
    entropy: Tensor
    unfollowed: Tensor  # what followers cannot follow: the teacher pays for it
    following: Tensor  # the same, as what followers have yet to learn


class Mappo:
    """The learner: owns policy and optimiser, and turns rollouts into updates."""

    def __init__(
        self, teacher: Teacher, recipe: Recipe, followers: Followers | None = None
    ) -> None:
        """With the followers that the recipe names; None if it names none."""
        assert (followers is None) == (recipe.followers is None)
        self.teacher, self.recipe, self._followers = teacher, recipe, followers
        modules = {"teacher": teacher} | ({"followers": followers} if followers else {})
        self.learned: nn.Module = nn.ModuleDict(modules) if followers else teacher
        self.optimizer = torch.optim.Adam(
            [{"params": list(module.parameters())} for module in modules.values()],
            lr=recipe.learning_rate,
            eps=1e-5,
            fused=True,
        )
        self._dtype = dtype_of(recipe.precision)
        self._autocast = functools.partial(products_in, recipe.precision)
        self.policy = Acting(teacher, self._autocast)
        self._newest: tuple[Sequences, Tensor] | None = None  # what was learned from last

    def update(
        self, rollout: Rollout, iteration: int, generator: torch.Generator
    ) -> dict[str, float]:
        """Learn from a rollout in which `policy` acted from its `begin` on.

        Returns mean figures to log.

        Raises:
            UserError: a term or the gradient is not finite; weights are left as they were before
                the step.
        """
        recipe = self.recipe
        progress = iteration / recipe.iterations
        rate = _anneal(recipe.learning_rate, recipe.final_learning_rate, progress)
        entropy_weight = _anneal(recipe.entropy, recipe.final_entropy, progress)
        rates = [rate, recipe.followers.learning_rate] if recipe.followers else [rate]
        for group, of_group in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = of_group
        batch, past = self._batch(rollout, generator)
        sums = torch.zeros(len(Losses._fields))
        for _ in range(recipe.epochs):
            order = torch.randperm(len(past), generator=generator)
            for rows in order.chunk(recipe.minibatches):
                some = Sequences(*(field.index_select(1, rows) for field in batch))
                losses = self._losses(some, past[rows])
                total = self._total(losses, entropy_weight, iteration)
                self.optimizer.zero_grad()
                total.backward()  # type: ignore[no-untyped-call]
                norm = clip_grad_norm_(self.teacher.parameters(), recipe.max_grad_norm)
                check_finite(
                    _figures(losses) | {"the gradient": float(norm)},
                    f"at iteration {iteration}",
                    f"lower the learning rate, now {' and '.join(f'{r:.1e}' for r in rates)}",
                )
                self.optimizer.step()
                self._newest = some, past[rows]
                sums += torch.stack(losses).detach()
        means = sums / (recipe.epochs * recipe.minibatches)
        figures = dict(zip(Losses._fields, means.tolist(), strict=True)) | {"learning_rate": rate}
        del figures["following"]  # the same number
        if self._followers is None:
            del figures["unfollowed"]
        return figures

    def check(self) -> None:
        """Raise a `UserError` if the newest step has spoilt what the next one would begin with."""
        if self._newest:
            with torch.no_grad():
                losses = self._losses(*self._newest)
            check_finite(_figures(losses), "after the last update", "lower the learning rate")

    def _total(self, losses: Losses, entropy_weight: float, iteration: int) -> Tensor:
        """The objective, to be made small."""
        of_teacher = -losses.policy + 0.5 * losses.value - entropy_weight * losses.entropy
        followers = self.recipe.followers
        if followers is None:
            return of_teacher
        if iteration < followers.iterations_alone:
            return losses.following
        return of_teacher + followers.weight * losses.unfollowed + losses.following

    def _batch(self, rollout: Rollout, generator: torch.Generator) -> tuple[Sequences, Tensor]:
        """What to learn from, and the past before each sequence [B, N, W]."""
        recipe = self.recipe
        with torch.no_grad(), self._autocast():
            value = self.teacher.value(rollout.state)
        reward = rollout.reward * recipe.reward_scale
        advantage = gae(reward, value, rollout.done, recipe.gamma, recipe.gae_lambda)
        batch = Sequences(
            inputs=self.policy.inputs().to(self._dtype),
            begins=rollout.begins,
            action_mask=rollout.action_mask,
            action=rollout.action,
            log_prob=rollout.log_prob,
            advantage=normalised(advantage),
            state=rollout.state[:-1].to(self._dtype),
            value_target=advantage + value[:-1],
            sensed=self._sensed(rollout, generator),
        )
        if self.teacher.recurrent:
            return batch, self.policy.past_at_begin
        alone = Sequences(*(field.flatten(0, 1)[None] for field in batch))
        return alone, self.teacher.no_past(recipe.steps_per_iteration)

    def _sensed(self, rollout: Rollout, generator: torch.Generator) -> Tensor:
        if self._followers is None:
            return rollout.observation[..., :0]
        state = rollout.state[:-1]
        return self._followers.sensed(rollout.observation, state, generator).to(self._dtype)

    def _losses(self, batch: Sequences, past: Tensor) -> Losses:
        with self._autocast():
            raw = self.teacher.through_time(batch.inputs, batch.begins, past).logits
            value = self.teacher.critic(batch.state)
        log_probs = torch.log_softmax(mask_logits(raw.float(), batch.action_mask), -1)
        log_prob = log_probs.gather(-1, batch.action[..., None]).squeeze(-1)
        ratio = torch.exp(log_prob - batch.log_prob)
        return Losses(
            policy=ppo_clip(ratio, batch.advantage[..., None], self.recipe.clip).mean(),
            value=mse_loss(value.float().squeeze(-1), batch.value_target),
            entropy=-(log_probs.exp() * log_probs).sum(-1).mean(),
            **self._followed(batch, log_probs),
        )

    def _followed(self, batch: Sequences, log_probs: Tensor) -> dict[str, Tensor]:
        """What teacher and followers owe to each other: each learns from the other as it is."""
        if self._followers is None:
            return {"unfollowed": torch.zeros(()), "following": torch.zeros(())}
        with self._autocast():
            raw = self._followers.actor(batch.sensed)
        theirs = torch.log_softmax(mask_logits(raw.float(), batch.action_mask), -1)
        return {
            "unfollowed": divergence(log_probs, theirs.detach()),
            "following": divergence(log_probs.detach(), theirs),
        }


def _figures(losses: Losses) -> dict[str, float]:
    return {f"term {name}": float(term.detach()) for name, term in losses._asdict().items()}


def _anneal(first: float, last: float, progress: float) -> float:
    return first + (last - first) * progress
