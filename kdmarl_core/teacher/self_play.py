"""Training a team and its opponent against each other, both by MAPPO on the same episodes.

What is kept of the two is the opponent (`kdmarl_core.tasks.opponent`), which then plays frozen.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdmarl_core.errors import UserError
from kdmarl_core.nets.mlp import Mlp
from kdmarl_core.seeding import derive_seed
from kdmarl_core.tasks import BatchStep
from kdmarl_core.tasks.opponent import Layers, Match, greedy
from kdmarl_core.tasks.task import Integers
from kdmarl_core.teacher.mappo import FOR_TEACHERS, Mappo, Recipe
from kdmarl_core.teacher.rollout import Rollout, rollout_of, sample
from kdmarl_core.teacher.teacher import Teacher

MakeMatch = Callable[[int], Match]  # of a number of environments
Report = Callable[[int, float, float], None]


class SelfPlay(NamedTuple):
    """What training left."""

    team: Teacher
    opponent: Teacher
    env_steps: int
    seconds: float

    @property
    def opponent_layers(self) -> Layers:
        """The opponent's actor as it is shipped."""
        actor = self.opponent.actor
        assert isinstance(actor, Mlp)
        return tuple(actor.dense_layers())


class MatchReturns(NamedTuple):
    """Mean returns against a greedy opponent."""

    team: float  # of the greedy team
    opponent: float  # against the greedy team
    random_team: float


def self_play(
    make_match: MakeMatch, recipe: Recipe, seed: int, report: Report, where: str = "recipe"
) -> SelfPlay:
    """Train both sides.

    In half of the episodes the opponent meets the team, in half of them decoys: a second team that
    plays for nothing but the opponent's failure. A team by itself soon settles for what it knows,
    and an opponent that has seen nothing else is easily led astray once it is frozen.

    Args:
        make_match: makes the simulator.
        recipe: how each learns. Each rollout begins with new episodes; numbers of environments and
            steps are those of the team, and again those of the decoys.
        seed: the same seed gives the same networks on one number of threads.
        report: called after each iteration with its number and the returns of team and opponent.
        where: names the recipe in errors.

    Raises:
        UserError: the recipe's networks are not feed-forward, or it has keys of teachers alone.
    """
    if recipe.architecture.network != "mlp":
        raise UserError(
            f"{where}: architecture: network: '{recipe.architecture.network}' cannot be shipped "
            "as an opponent; use mlp"
        )
    for key in FOR_TEACHERS:
        if getattr(recipe, key):
            raise UserError(f"{where}: {key}: is not for opponents; leave it out")
    envs = recipe.num_envs
    match = make_match(2 * envs)
    torch.manual_seed(derive_seed(seed, 0))
    team_spec, opponent_spec = match.sides
    team, decoys = (Mappo(Teacher(team_spec, recipe.architecture), recipe) for _ in range(2))
    meets_both = dataclasses.replace(recipe, num_envs=2 * envs, env_steps=2 * recipe.env_steps)
    opponent = Mappo(Teacher(opponent_spec, recipe.architecture), meets_both)
    begun = time.monotonic()
    for iteration in range(recipe.iterations):
        of_teams, of_opponent = _collect(
            match, (team, decoys), opponent, recipe.rollout_steps, derive_seed(seed, iteration)
        )
        of_team = _in_environments(of_teams, slice(envs))
        misled = of_teams._replace(reward=-of_opponent.reward)
        lessons = [
            (team, of_team),
            (decoys, _in_environments(misled, slice(envs, None))),
            (opponent, of_opponent),
        ]
        for index, (learner, rollout) in enumerate(lessons):
            generator = torch.Generator().manual_seed(derive_seed(seed, 1, iteration, index))
            learner.update(rollout, iteration, generator)
        against_team = _in_environments(of_opponent, slice(envs))
        report(iteration + 1, of_team.episode_return(), against_team.episode_return())
    for learner in (team, decoys, opponent):
        learner.check()
    env_steps = meets_both.iterations * meets_both.steps_per_iteration
    return SelfPlay(team.teacher, opponent.teacher, env_steps, time.monotonic() - begun)


def match_returns(
    make_match: MakeMatch, trained: SelfPlay, episodes: int, seed: int
) -> MatchReturns:
    """Mean returns of so many episodes, in the simulator that trains."""
    match = make_match(episodes)
    rng = np.random.default_rng(derive_seed(seed, 2))

    def team_acts(step: BatchStep) -> Integers:
        with torch.no_grad():
            logits = trained.team.logits(*map(torch.from_numpy, step[:3]))
        actions: Integers = logits.argmax(-1).numpy()
        return actions

    def random_acts(step: BatchStep) -> Integers:
        drawn = np.where(step.action_mask, rng.random(step.action_mask.shape), -1.0)
        actions: Integers = drawn.argmax(-1)
        return actions

    team, opponent = _play(match, team_acts, trained.opponent_layers, seed)
    random_team, _ = _play(match, random_acts, trained.opponent_layers, seed)
    return MatchReturns(team, opponent, random_team)


def _play(
    match: Match, team_acts: Callable[[BatchStep], Integers], layers: Layers, seed: int
) -> tuple[float, float]:
    """Mean returns of the team and of the opponent over one episode in each environment."""
    team, opponent = match.reset(seed)
    returns = np.zeros(2)
    for _ in range(match.sides[0].episode_steps):
        team, opponent = match.step(team_acts(team), greedy(layers, opponent.observation))
        returns += [team.reward.mean(), opponent.reward.mean()]
    return float(returns[0]), float(returns[1])


def _collect(
    match: Match, teams: Sequence[Mappo], opponent: Mappo, steps: int, seed: int
) -> tuple[Rollout, Rollout]:
    """What the teams, side by side in equal shares of the environments, and the opponent did."""
    for learner in (*teams, opponent):
        learner.policy.begin(seed)  # all see everything: nothing is drawn
    generator = torch.Generator().manual_seed(seed)
    shown = [match.reset(seed)]
    begins = [np.ones_like(shown[0][0].done)]
    by_teams: list[tuple[Tensor, Tensor]] = []
    by_opponent: list[tuple[Tensor, Tensor]] = []
    share = len(begins[0]) // len(teams)
    for _ in range(steps):
        to_teams, to_opponent = shown[-1]
        logits = []
        for index, team in enumerate(teams):
            rows = slice(index * share, (index + 1) * share)
            own = BatchStep._make(field[rows] for field in to_teams)
            logits.append(team.policy(own, begins[-1][rows]))
        by_teams.append(sample(torch.cat(logits), generator))
        by_opponent.append(sample(opponent.policy(to_opponent, begins[-1]), generator))
        shown.append(match.step(by_teams[-1][0].numpy(), by_opponent[-1][0].numpy()))
        begins.append(shown[-1][0].done)
    return (
        rollout_of([to_teams for to_teams, _ in shown], by_teams, begins),
        rollout_of([to_opponent for _, to_opponent in shown], by_opponent, begins),
    )


def _in_environments(rollout: Rollout, rows: slice) -> Rollout:
    return Rollout._make(field[:, rows] for field in rollout)
