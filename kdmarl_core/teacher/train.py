"""The training run: iterations, checkpoints, interruption and resumption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from kdmarl_core.errors import UserError, naming
from kdmarl_core.metrics import Evaluation
from kdmarl_core.seeding import derive_seed
from kdmarl_core.tasks import Task
from kdmarl_core.teacher.checkpoint import Run, recipe_hash
from kdmarl_core.teacher.followers import Followers
from kdmarl_core.teacher.mappo import FOR_TEACHERS, Mappo, Recipe
from kdmarl_core.teacher.rollout import Collector
from kdmarl_core.teacher.teacher import Teacher, TeacherCard, find_teacher, load_teacher
from kdmarl_core.team import Team, load_team

Report = Callable[[int, dict[str, float]], None]


def train(
    task: Task,
    recipe: Recipe,
    seed: int,
    folder: Path,
    *,
    team: Team | None = None,
    resume: bool,
    report: Report,
    where: str = "recipe",
) -> tuple[Teacher, float]:
    """Train a teacher, or the bound of a team's restriction; returns it with the seconds spent.

    Args:
        task: what to learn.
        recipe: how to learn it.
        seed: the same seed gives the same teacher on one number of threads; interrupted or not, if
            rollouts are whole episodes (see `Collector`).
        folder: receives the checkpoint.
        team: the actor only reads what its robots sense; None: everything.
        resume: go on from the folder's checkpoint.
        report: called after each iteration with its number and figures.
        where: names the recipe in errors.

    Raises:
        UserError: the recipe names a teacher or a team that does not fit; the checkpoint to
            resume from is missing, damaged, or of other work; or a loss is not finite, and the
            checkpoint is what was good last.
        KeyboardInterrupt: after a checkpoint was written.
    """
    torch.manual_seed(derive_seed(seed, 0))
    for key in FOR_TEACHERS:
        if team is not None and getattr(recipe, key):
            raise UserError(
                f"{where}: {key}: is for teachers, who read everything, but this policy is to "
                f"read what team '{team.name}' senses; leave one out"
            )
    with naming(where):
        teacher = Teacher(task.spec, recipe.architecture, team)
    if recipe.begins_with:
        _take_weights(teacher, recipe.begins_with, f"{where}: begins_with")
    followers = _followers(recipe, task, f"{where}: followers: team")
    learner = Mappo(teacher, recipe, followers)
    restricted = followers.team if followers else team
    identity = recipe_hash(recipe.record(), task.spec, restricted)
    run = Run(folder, learner.learned, learner.optimizer, identity, seed)
    if resume:
        run.resume()
    env = task.make_batch(recipe.num_envs)
    collector = Collector(task.spec, env, recipe.rollout_steps, seed)
    run.save()
    with run.going() as interrupted:
        while run.done < recipe.iterations and not interrupted.is_set():
            with run.iteration() as number:
                learner.policy.begin(derive_seed(seed, 2, number))
                rollout = collector.collect(learner.policy, number)
                generator = torch.Generator().manual_seed(derive_seed(seed, 1, number))
                figures = learner.update(rollout, number, generator)
                sampled = {"return": rollout.episode_return(), "win_rate": rollout.win_rate()}
                report(number + 1, figures | sampled)
        learner.check()
    return teacher, run.seconds


def _take_weights(teacher: Teacher, name: str, where: str) -> None:
    """Begin as another teacher is."""
    with naming(where):
        earlier, card = load_teacher(find_teacher(name), teacher.spec)
    if card.architecture != teacher.architecture:
        raise UserError(
            f"{where}: '{name}' has {card.architecture}, not {teacher.architecture}; name a "
            "teacher of the same architecture"
        )
    teacher.load_state_dict(earlier.state_dict())


def _followers(recipe: Recipe, task: Task, where: str) -> Followers | None:
    if recipe.followers is None:
        return None
    with naming(where):
        team = load_team(recipe.followers.team)
    if team.task.spec.name != task.spec.name:
        raise UserError(
            f"{where}: '{team.name}' is of task '{team.task.spec.name}', not "
            f"'{task.spec.name}'; name one of this task"
        )
    return Followers(team, recipe.architecture)


def make_card(
    teacher: Teacher, recipe: Recipe, *, command: str, seed: int, seconds: float, score: Evaluation
) -> TeacherCard:
    """What `save_teacher` writes beside the weights of a teacher that `train` returned."""
    spec, team = teacher.spec, teacher.team
    return TeacherCard(
        task=spec.name,
        architecture=recipe.architecture,
        restriction=team.restriction() if team else None,
        reward_scale=recipe.reward_scale,
        gamma=recipe.gamma,
        gae_lambda=recipe.gae_lambda,
        observation_sizes=tuple(agent.observation_size for agent in spec.agents),
        num_actions=spec.num_actions,
        state_size=spec.state_size,
        weights_sha256="",
        command=command,
        env_steps=recipe.iterations * recipe.steps_per_iteration,
        seed=seed,
        training_seconds=round(seconds, 1),
        evaluation=score,
        fixture_sha256=spec.fixture_sha256,
    )
