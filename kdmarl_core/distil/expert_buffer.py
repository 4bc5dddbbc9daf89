"""The expert buffer: what the teacher saw, did and would have preferred.

Holds per step the observations, action, log-probability, teacher logits and the teacher's
advantage. The joint state is used up in the advantage; teacher embeddings are recomputed from
observations when a loss needs them, since they are an order of magnitude larger than everything
else.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kdmarl_core.teacher.returns import gae
from kdmarl_core.teacher.rollout import Rollout
from kdmarl_core.teacher.teacher import Teacher, TeacherCard


class Samples(NamedTuple):
    """Labelled steps, shuffled or not; `B` of them."""

    observation: Tensor  # [B, N, D] full observations; students cut out their own
    action_mask: Tensor  # [B, N, A]
    action: Tensor  # [B, N]
    behaviour: Tensor  # [B, N] log-probability under the policy that acted
    advantage: Tensor  # [B] A_T, normalised
    teacher_logits: Tensor  # [B, N, A]

    def rows(self, index: Tensor) -> Samples:
        """The samples of these indices."""
        return Samples(*(field[index] for field in self))


def label(rollout: Rollout, teacher: Teacher, card: TeacherCard) -> Samples:
    """Let the frozen teacher judge a rollout, whoever acted in it.

    A_T is GAE on the team reward with V_T only, cut at episode ends (eq. 1-2), in the units in
    which the teacher was trained, then normalised. Matrix products run in bfloat16.
    """
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        value = teacher.value(rollout.state)
        logits = teacher.logits(rollout.observation, rollout.action_mask)
    reward = rollout.reward * card.reward_scale
    advantage = gae(reward, value, rollout.done, card.gamma, card.gae_lambda)
    normalised = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    steps = (
        rollout.observation,
        rollout.action_mask,
        rollout.action,
        rollout.log_prob,
        normalised,
        logits,
    )
    return Samples(*(field.flatten(0, 1) for field in steps))


def teacher_embedding(teacher: Teacher, observation: Tensor) -> Tensor:
    """phi_T [B, N, W] of full observations [B, N, D], without gradients."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return teacher.embed(observation).float()


def concatenate(parts: list[Samples]) -> Samples:
    """One buffer from several."""
    return Samples(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
