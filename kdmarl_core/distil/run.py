"""From a team and a teacher to bundles: both phases, export, measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from kdmarl_core import __version__
from kdmarl_core.bundle import (
    MANIFEST,
    MODEL,
    SCHEMA_VERSION,
    BlockEntry,
    BundlePolicy,
    Manifest,
    Measured,
    ModelEntry,
    StudentEntry,
    TeacherEntry,
    write_bundle,
)
from kdmarl_core.distil.coordination import CoordinationHeads, fit_roles
from kdmarl_core.distil.expert_buffer import Samples, teacher_embedding
from kdmarl_core.distil.learner import Learner, Recipe
from kdmarl_core.distil.losses import Terms
from kdmarl_core.distil.offline import fill_buffer, learn_offline
from kdmarl_core.distil.on_policy import learn_on_policy
from kdmarl_core.distil.student import StudentTeam
from kdmarl_core.evaluate import BundlePlayer, RandomPlayer, TeamPlayer, play, returns
from kdmarl_core.export import check_agreement, feed_forward_model
from kdmarl_core.files import atomic_folder
from kdmarl_core.metrics import Interval, Returns, normalised_retention
from kdmarl_core.resources.count import count
from kdmarl_core.seeding import derive_seed
from kdmarl_core.teacher.player import TeacherPlayer
from kdmarl_core.teacher.rollout import Collector
from kdmarl_core.teacher.teacher import Teacher, TeacherCard
from kdmarl_core.team import Robot, Team

BUNDLES = f"*/{MANIFEST}"  # what a folder of bundles is known by
ROLE_SAMPLES = 6000  # teacher embeddings from which roles are fitted

# phase, updates or iterations done, of how many, terms, return of sampled episodes (NaN when
# unknown)
Report = Callable[[str, int, int, Terms, float], None]


def distil(
    team: Team, teacher: Teacher, card: TeacherCard, recipe: Recipe, seed: int, report: Report
) -> StudentTeam:
    """Train a team's students (Algorithm 1): offline phase, then on-policy phase."""
    torch.manual_seed(derive_seed(seed, 10))
    students = StudentTeam(team)
    buffer = fill_buffer(
        team.task, teacher, card, recipe.offline.buffer_steps, derive_seed(seed, 11)
    )
    heads = _coordination_heads(team, teacher, buffer, recipe, seed)
    learner = Learner(students, teacher, heads, recipe)
    updates = learn_offline(learner, buffer, recipe.offline, derive_seed(seed, 12))
    for done, terms in enumerate(updates, 1):
        report("offline", done, recipe.offline.updates, terms, float("nan"))
    phase = recipe.on_policy
    iterations = learn_on_policy(learner, team.task, teacher, card, phase, derive_seed(seed, 13))
    for done, (terms, mean_return) in enumerate(iterations, 1):
        report("on-policy", done, phase.iterations, terms, mean_return)
    return students


def _coordination_heads(
    team: Team, teacher: Teacher, buffer: Samples, recipe: Recipe, seed: int
) -> CoordinationHeads:
    some = buffer.observation[: ROLE_SAMPLES // team.task.spec.num_agents]
    embedding = teacher_embedding(teacher, some).flatten(0, 1)
    roles = fit_roles(embedding, recipe.roles, derive_seed(seed, 15))
    widths = [robot.student.width for robot in team.robots]
    return CoordinationHeads(widths, recipe.common_width, roles)


class Exported(NamedTuple):
    """One robot's model before it is written."""

    robot: Robot
    model: bytes
    difference: float  # largest, between ONNX Runtime and torch
    draft: Manifest  # without measurement


def export(team: Team, students: StudentTeam, card: TeacherCard, seed: int) -> list[Exported]:
    """ONNX models of all robots, checked against torch on observations that students met.

    Raises:
        UserError: a model differs from torch.
    """
    spec = team.task.spec
    collector = Collector(
        spec, team.task.make_batch(64), spec.episode_steps, derive_seed(seed, 14)
    )
    rollout = collector.collect(students.policy, 0)
    seen, mask = rollout.observation.flatten(0, 1), rollout.action_mask.flatten(0, 1)
    with torch.no_grad():
        restricted = students.restrict(seen)
        logits = students(restricted, mask).logits.numpy()
    exported = []
    for index, robot in enumerate(team.robots):
        model = feed_forward_model(students.layers(index))
        draft = _draft(team, robot, model, card)
        policy = BundlePolicy(draft, model, f"{robot.name}/{MODEL}")
        own = restricted[:, index, : draft.observation_size].numpy()
        found = np.stack([policy.logits(observation) for observation in own])
        expected = logits[:, index, : len(robot.agent.actions)]
        difference = check_agreement(robot.name, found, expected)
        exported.append(Exported(robot, model, difference, draft))
    return exported


class Played(NamedTuple):
    """Returns of the same seeded reference episodes, and what follows from them."""

    measured: Measured
    retention: Interval | None
    returns: dict[str, Returns]  # by player: student, teacher, random


def measure(
    team: Team,
    teacher: Teacher,
    exported: Sequence[Exported],
    episodes: int,
    seed: int,
    on_player: Callable[[], None] = lambda: None,
) -> Played:
    """Let the exported students, the teacher and random actions play."""
    spec = team.task.spec
    policies = [BundlePolicy(item.draft, item.model) for item in exported]
    players: dict[str, TeamPlayer] = {
        "student": BundlePlayer(policies, spec.agents),
        "teacher": TeacherPlayer(teacher, spec),
        "random": RandomPlayer(spec),
    }
    env = team.task.make_reference()
    played: dict[str, Returns] = {}
    for name, player in players.items():
        played[name] = returns(list(play(env, player, episodes, seed)))
        on_player()
    retention = normalised_retention(played["student"], played["teacher"], played["random"])
    measured = Measured(
        episodes=episodes,
        seed=seed,
        student_return=float(played["student"].mean()),
        teacher_return=float(played["teacher"].mean()),
        random_return=float(played["random"].mean()),
        retention=retention and retention.value,
        retention_low=retention and retention.low,
        retention_high=retention and retention.high,
    )
    return Played(measured, retention, played)


class DistilledTeam(NamedTuple):
    """A team that was distilled, exported, measured and written."""

    folder: Path
    team: Team
    teacher: Teacher
    exported: list[Exported]
    played: Played


def write_team(
    exported: Sequence[Exported], measured: Measured | None, folder: Path, *, overwrite: bool
) -> None:
    """Write one bundle per robot; the folder appears complete or not at all."""
    with atomic_folder(folder, BUNDLES, overwrite=overwrite) as temporary:
        for item in exported:
            place = temporary / item.robot.name
            place.mkdir()
            write_bundle(place, replace(item.draft, measured=measured), item.model)


def _draft(team: Team, robot: Robot, model: bytes, card: TeacherCard) -> Manifest:
    cost = count(model)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        kdmarl_version=__version__,
        team=team.name,
        robot=robot.name,
        task=team.task.spec.name,
        agent=robot.agent.name,
        rate_hz=team.task.spec.rate_hz,
        blocks=tuple(BlockEntry(b.name, b.size, b.unit) for b in robot.blocks),
        actions=robot.agent.actions,
        safe_action=robot.safe_action,
        student=StudentEntry(
            robot.student.network, robot.student.width, cost.parameters, cost.flops
        ),
        teacher=TeacherEntry(team.teacher, card.weights_sha256),
        measured=None,
        model=ModelEntry(MODEL, "", len(model)),
    )
