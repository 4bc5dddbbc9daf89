"""Labelled experience: what a policy met, and what the frozen teacher says about it.

Shapes: `T` steps, `B` sequences side by side, `N` robots, `D` features, `A` actions, `I` student
inputs, `K` roles, `P` pairs of robots.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kdmarl_core.distil.coordination import role_scores
from kdmarl_core.distil.losses import pair_cosines
from kdmarl_core.distil.messages import Delivery, Mail
from kdmarl_core.nets.precision import products_in
from kdmarl_core.teacher.returns import gae, normalised
from kdmarl_core.teacher.rollout import Rollout
from kdmarl_core.teacher.teacher import Teacher, TeacherCard, mask_logits

# Log-probability of what is not legal: in half precision, too, it is finite, and its power zero.
ILLEGAL = -6e4


class Labels(NamedTuple):
    """Steps and the teacher's judgement of them."""

    action_mask: Tensor  # [T, B, N, A]
    action: Tensor  # [T, B, N]
    behaviour: Tensor  # [T, B, N] log-probability under the policy that acted
    begins: Tensor  # [T, B], whether an episode begins with this step
    advantage: Tensor  # [T, B] A_T, normalised
    teacher: Tensor  # [T, B, N, A] log pi_T; very negative where an action is not legal
    cosines: Tensor  # [T, B, P] between the teacher's embeddings of robots j < i
    roles: Tensor  # [T, B, N, K] the teacher's role scores U_T phi_T


class Batch(NamedTuple):
    """What one gradient step reads."""

    inputs: Tensor  # [T, B, N, I], from `Restriction.inputs`
    state: Tensor  # [N, W, B] of recurrent students before the first step
    labels: Labels
    delivery: Delivery | None = None  # what becomes of messages, where there are some
    mail: Mail | None = None  # what is on its way before the first step


def label(
    rollout: Rollout,
    teacher: Teacher,
    card: TeacherCard,
    roles: Tensor | None,
    visible: Tensor | None = None,
) -> Labels:
    """Let the frozen teacher judge a rollout that begins with episodes, whoever acted in it.

    A_T is GAE on the team reward with V_T only, cut at episode ends (eq. 1-2), in the units in
    which the teacher was trained, then normalised. Cosines and role scores are empty without U_T
    `roles` [K, W + 1]. A restricted teacher sees what its episodes showed, `visible` [T, B, N, D].
    Matrix products run in bfloat16 where the processor has it.
    """
    state = rollout.state[:-1]
    with torch.no_grad(), products_in("bfloat16"):
        value = teacher.value(rollout.state)
        inputs = teacher.reads(rollout.observation, state, visible)
        past = teacher.no_past(rollout.begins.shape[1])
        thoughts = teacher.through_time(inputs, rollout.begins, past)
        logits = mask_logits(thoughts.logits.float(), rollout.action_mask)
        embedding = thoughts.embedding.float()
    reward = rollout.reward * card.reward_scale
    advantage = gae(reward, value, rollout.done, card.gamma, card.gae_lambda)
    return Labels(
        action_mask=rollout.action_mask,
        action=rollout.action,
        behaviour=rollout.log_prob,
        begins=rollout.begins,
        advantage=normalised(advantage),
        teacher=torch.log_softmax(logits, -1).clamp(min=ILLEGAL),
        cosines=embedding.new_zeros(*embedding.shape[:2], 0)
        if roles is None
        else pair_cosines(embedding),
        roles=embedding.new_zeros(*embedding.shape[:3], 0)
        if roles is None
        else role_scores(embedding, roles),
    )


def each_step_alone(batch: Batch) -> Batch:
    """Steps as sequences of length one, [1, T * B]: how feed-forward students see them."""
    flat = Labels(*(field.flatten(0, 1)[None] for field in batch.labels))
    return Batch(batch.inputs.flatten(0, 1)[None], batch.state, flat)


def side_by_side(values: Tensor, steps: int, axis: int) -> Tensor:
    """Sequences [T, ...] cut into parts of so many steps, which lie behind one another in `axis`.

    All first parts come first, then all second ones.
    """
    return torch.cat(torch.split(values, steps), axis)


def columns(batch: Batch, index: Tensor) -> Batch:
    """The sequences of these indices."""
    labels = Labels(*(field[:, index] for field in batch.labels))
    # Feed-forward students have no state, whatever the number of sequences.
    state = batch.state[..., index] if batch.state.shape[1] else batch.state
    return Batch(
        batch.inputs[:, index],
        state,
        labels,
        batch.delivery and Delivery(*(field[..., index] for field in batch.delivery)),
        batch.mail and Mail(*(field[:, index] for field in batch.mail)),
    )
