"""Training a team and its opponent against each other, both by MAPPO on the same episodes.

What is kept of the two is the opponent (`kdmarl_core.tasks.opponent`), which then plays frozen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdmarl_core.seeding import derive_seed
from kdmarl_core.tasks import BatchStep
from kdmarl_core.tasks.opponent import Match
from kdmarl_core.teacher.mappo import Mappo, Recipe
from kdmarl_core.teacher.rollout import Rollout, sample
from kdmarl_core.teacher.teacher import Teacher

Report = Callable[[int, dict[str, float]], None]


class Sides(NamedTuple):
    """One network for each side."""

    team: Teacher
    opponent: Teacher


def self_play(
    make_match: Callable[[int], Match], recipe: Recipe, seed: int, report: Report
) -> tuple[Sides, float]:
    """Train both sides; returns them with the seconds spent.

    Args:
        make_match: makes that many environments.
        recipe: how each side learns; rollouts are whole episodes.
        seed: the same seed gives the same networks on one number of threads.
        report: called after each iteration with its number and both sides' returns.
    """
    match = make_match(recipe.num_envs)
    torch.manual_seed(derive_seed(seed, 0))
    learners = [Mappo(Teacher(side, recipe.architecture), recipe) for side in match.sides]
    begun = time.monotonic()
    for iteration in range(recipe.iterations):
        rollouts = _collect(match, learners, recipe.rollout_steps, derive_seed(seed, iteration))
        for side, (learner, rollout) in enumerate(zip(learners, rollouts, strict=True)):
            generator = torch.Generator().manual_seed(derive_seed(seed, 1, iteration, side))
            learner.update(rollout, iteration, generator)
        team, opponent = (rollout.episode_return() for rollout in rollouts)
        report(iteration + 1, {"team_return": team, "opponent_return": opponent})
    return Sides(*(learner.teacher for learner in learners)), time.monotonic() - begun


def _collect(match: Match, learners: Sequence[Mappo], steps: int, seed: int) -> list[Rollout]:
    """What each side saw and did, from a reset on."""
    generator = torch.Generator().manual_seed(seed)
    shown = [match.reset(seed)]
    begins = [np.ones_like(shown[0][0].done)]
    drawn = []
    for _ in range(steps):
        now = shown[-1]
        logits = [learner.policy(s, begins[-1]) for learner, s in zip(learners, now, strict=True)]
        drawn.append([sample(of_side, generator) for of_side in logits])
        team, opponent = (action.numpy() for action, _ in drawn[-1])
        shown.append(match.step(team, opponent))
        begins.append(shown[-1][0].done)
    return [
        _rollout([s[i] for s in shown], [d[i] for d in drawn], begins)
        for i in range(len(learners))
    ]


def _rollout(
    shown: Sequence[BatchStep],
    drawn: Sequence[tuple[Tensor, Tensor]],
    begins: Sequence[np.ndarray],
) -> Rollout:
    return Rollout(
        observation=_stack([s.observation for s in shown[:-1]]),
        state=_stack([s.state for s in shown]),
        action_mask=_stack([s.action_mask for s in shown[:-1]]),
        action=torch.stack([action for action, _ in drawn]),
        log_prob=torch.stack([log_prob for _, log_prob in drawn]),
        reward=_stack([s.reward for s in shown[1:]]),
        done=_stack([s.done for s in shown[1:]]),
        begins=_stack(begins[:-1]),
        won=_stack([s.won for s in shown[1:]]),
    )


def _stack(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))
