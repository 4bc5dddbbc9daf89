"""From a team and a teacher to bundles: both phases, export, measurement."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
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
    message_entry,
    write_bundle,
)
from kdmarl_core.bundle.sha256 import sha256_hex
from kdmarl_core.distil.coordination import CoordinationHeads
from kdmarl_core.distil.expert_buffer import (
    Origin,
    fill_buffer,
    load_buffer,
    plan_buffer,
    save_buffer,
)
from kdmarl_core.distil.learner import Learner
from kdmarl_core.distil.losses import Terms
from kdmarl_core.distil.offline import learn_offline
from kdmarl_core.distil.on_policy import OnPolicy, StudentsActing, refuse_short_parts
from kdmarl_core.distil.recipe import Recipe
from kdmarl_core.distil.student import StudentTeam
from kdmarl_core.errors import UserError
from kdmarl_core.evaluate import (
    BundlePlayer,
    Episode,
    RandomPlayer,
    TeamPlayer,
    evaluation,
    play,
    returns,
    scores,
)
from kdmarl_core.export import check_agreement, student_model
from kdmarl_core.files import atomic_folder, refuse_unwritable
from kdmarl_core.metrics import Interval, Returns, normalised_retention
from kdmarl_core.resources.count import count
from kdmarl_core.seeding import derive_seed
from kdmarl_core.teacher.checkpoint import CHECKPOINT, Run, fingerprint
from kdmarl_core.teacher.player import TeacherPlayer
from kdmarl_core.teacher.rollout import Collector
from kdmarl_core.teacher.teacher import Teacher, TeacherCard
from kdmarl_core.team import Robot, Team

BUNDLES = f"*/{MANIFEST}"  # what a folder of bundles is known by
CHECKED_EPISODES = 64  # in which ONNX Runtime and torch are compared

# phase, updates or iterations done, of how many, terms, return and win rate of sampled episodes
# (NaN when unknown)
Report = Callable[[str, int, int, Terms, float, float], None]


class Lessons(NamedTuple):
    """A frozen policy that students learn from, and its card."""

    policy: Teacher
    card: TeacherCard


class Work(NamedTuple):
    """Everything that decides what students are distilled.

    An assistant (Mirzadeh et al. 2020) stands between teacher and students: it is as big as the
    teacher and senses as little as they or, if it hears, as they and those whom they hear. If
    there is one, they learn from it alone.
    """

    team: Team
    teacher: Teacher
    card: TeacherCard
    recipe: Recipe
    seed: int
    assistant: Lessons | None = None

    @property
    def lessons(self) -> Lessons:
        """Whom the students learn from."""
        return self.assistant or Lessons(self.teacher, self.card)

    def identity(self, buffer: Origin) -> str:
        """A hash: what was begun by other work is not gone on with."""
        record = [
            self.team.record(),
            self.lessons.card.weights_sha256,
            dataclasses.asdict(self.recipe),
            self.recipe.revisions,
            self.seed,
            dataclasses.asdict(buffer),
        ]
        return fingerprint(record)


def distil(
    work: Work,
    report: Report,
    *,
    folder: Path,
    resume: bool = False,
    buffer_file: Path | None = None,
    on_buffer: Callable[[int, int], None] = lambda done, of: None,
) -> StudentTeam:
    """Train a team's students (Algorithm 1): offline phase, then on-policy phase.

    Args:
        work: what to distil, and how.
        report: called after each update of the first phase and iteration of the second.
        folder: receives a checkpoint now and then, and at the end: `discard` it once what becomes
            of the students is kept.
        resume: go on from the folder's checkpoint, if there is one.
        buffer_file: an expert buffer to read, or to write if there is none yet.
        on_buffer: called while it is filled, with rollouts done and of how many.

    Raises:
        UserError: a loss is not finite, and the checkpoint is what was good last; or checkpoint or
            buffer are damaged or of other work; or the buffer cannot be written; or there would be
            more environments than may be.
        KeyboardInterrupt: after a checkpoint was written.
    """
    team, recipe, seed = work.team, work.recipe, work.seed
    torch.manual_seed(derive_seed(seed, 10))
    students = StudentTeam(team)
    acting, spec = recipe.on_policy, team.task.spec
    if acting.iterations:
        spec.refuse_more_envs(acting.num_envs, "on_policy.num_envs")
    if students.wiring and recipe.on_policy.iterations:
        refuse_short_parts(recipe.on_policy.rollout_steps, students.wiring.longest)
    heads = CoordinationHeads(students, recipe.common_width, recipe.roles)
    learner = Learner(students, heads, recipe)
    kept = None
    if buffer_file is not None and buffer_file.exists():
        kept = load_buffer(buffer_file, team.task.spec, work.lessons.card, recipe.roles)
    elif buffer_file is not None:
        refuse_unwritable(buffer_file)
    planned = planned_buffer(work)
    origin = kept.origin if kept else planned
    if origin.steps < planned.steps:
        raise UserError(
            f"{buffer_file}: steps: holds {origin.steps}, and {planned.steps} are asked for; "
            f"name another --buffer file, or --set offline.buffer_steps={origin.steps}"
        )
    run = Run(folder, learner.learned, learner.optimizer, work.identity(origin), seed)
    if resume and run.path.is_file():
        run.resume()
    buffer = kept or fill_buffer(team.task, *work.lessons, origin, on_buffer)
    if buffer_file is not None and kept is None:
        save_buffer(buffer, buffer_file)
    first, second = recipe.offline.updates, acting.iterations
    on_policy = None
    if second:
        on_policy = OnPolicy(
            learner, team.task, *work.lessons, acting, buffer.projection, derive_seed(seed, 13)
        )
    with run.going() as interrupted:
        while run.done < first + second and not interrupted.is_set():
            sampled = (math.nan, math.nan)
            with run.iteration() as number:
                if number < first:
                    phase, done, of = "offline", number + 1, first
                    shuffle = derive_seed(seed, 12)
                    terms = learn_offline(learner, buffer, recipe.offline, number, shuffle)
                else:
                    phase, done, of = "on-policy", number + 1 - first, second
                    assert on_policy is not None
                    terms, rollout = on_policy.iterate(number - first)
                    sampled = (rollout.episode_return(), rollout.win_rate())
                report(phase, done, of, terms, *sampled)
        learner.check()
    return students


def discard(folder: Path) -> None:
    """Remove the checkpoint that `distil` left, and the folders that are empty without it."""
    (folder / CHECKPOINT).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        os.removedirs(folder)


def planned_buffer(work: Work) -> Origin:
    """What the expert buffer of some work is made from; errors as `plan_buffer`."""
    steps, roles = work.recipe.offline.buffer_steps, work.recipe.roles
    return plan_buffer(
        work.team.task.spec, work.lessons.card, steps, roles, derive_seed(work.seed, 11)
    )


class Exported(NamedTuple):
    """One robot's model before it is written."""

    robot: Robot
    model: bytes
    difference: float  # largest, between ONNX Runtime and torch
    draft: Manifest  # without measurement


def export(work: Work, students: StudentTeam) -> list[Exported]:
    """ONNX models of all robots, checked against torch on episodes that the students played.

    Each step is checked from the state that torch had before it: a recurrent student may be
    chaotic, and what rounding grows to over an episode says nothing about the model.

    Raises:
        UserError: a model differs from torch.
    """
    team = work.team
    spec, seed = team.task.spec, derive_seed(work.seed, 14)
    acting = StudentsActing(students, seed)
    episodes = spec.envs(CHECKED_EPISODES)
    env = team.task.make_batch(episodes)
    collector = Collector(spec, env, spec.episode_steps, seed, anew=True)
    rollout = collector.collect(acting, 0)
    inputs, begins = acting.inputs(), rollout.begins
    state, mail = students.initial_state(episodes), students.initial_mail(episodes)
    delivery = acting.delivery()
    with torch.no_grad():
        output = students(
            inputs, torch.ones_like(rollout.action_mask), begins, state, delivery, mail
        )
    models = [
        student_model(
            students.layers(index),
            students.message_weights(index),
            students.impute_weights(index),
            students.encodings(index),
        )
        for index in range(len(team.robots))
    ]
    training = fingerprint([sha256_hex(model) for model in models])[:8]
    exported = []
    for index, (robot, model) in enumerate(zip(team.robots, models, strict=True)):
        draft = _draft(work, robot, model, training)
        policy = BundlePolicy(draft, model, f"{robot.name}/{MODEL}")
        own = inputs[:, :, index, : draft.observation_size].numpy()
        expected = output.logits[:, :, index, : len(robot.agent.actions)]
        read = None
        if students.wiring:
            assert output.held is not None
            assert output.message is not None
            assert delivery is not None
            read = students.wiring.read_by(index, output.held, delivery).numpy()
            told = output.message[:, :, index, : students.wiring.sizes[index]]
            expected = torch.cat([expected, told], -1)
        after = output.embedding[:, :, index, : draft.student.state_size]
        before = torch.cat([torch.zeros_like(after[:1]), after[:-1]]) * ~begins[..., None]
        expected = torch.cat([expected, after], -1)
        found = _played_again(policy, own, read, before.numpy())
        difference = check_agreement(robot.name, found, expected.numpy())
        exported.append(Exported(robot, model, difference, draft))
    return exported


def _played_again(
    policy: BundlePolicy, own: np.ndarray, read: np.ndarray | None, before: np.ndarray
) -> np.ndarray:
    """Logits, messages and states [T, E, A + M + W] of ONNX Runtime, each step for itself.

    Args:
        policy: one robot's.
        own: its features, [T, E, D].
        read: what it read of its peers, [T, E, R], if there are messages.
        before: what it remembered, [T, E, W]; W is 0 without memory.
    """
    steps, episodes = before.shape[:2]
    found = []
    for episode in range(episodes):
        for step in range(steps):
            policy.state = before[step, episode]
            messages = None if read is None else read[step, episode]
            logits = policy.logits(own[step, episode], messages)
            told = np.zeros(0, np.float32) if policy.message is None else policy.message
            found.append(np.concatenate([logits, told, policy.state]))
    return np.stack(found).reshape(episodes, steps, -1).swapaxes(0, 1)


class Played(NamedTuple):
    """What the same seeded reference episodes of students, teacher and random actions say."""

    measured: Measured
    retention: Interval | None
    returns: dict[str, Returns]  # by player: student, teacher, random
    steps: np.ndarray  # of the students' episodes


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
        "student": BundlePlayer(policies, team),
        "teacher": TeacherPlayer(teacher, spec),
        "random": RandomPlayer(),
    }
    env = team.task.make_reference()
    played: dict[str, list[Episode]] = {}
    for name, player in players.items():
        played[name] = list(play(env, player, episodes, seed))
        on_player()
    score = {name: evaluation(of_player, seed) for name, of_player in played.items()}
    student, teachers, randoms = (scores(of_player) for of_player in played.values())
    retention = normalised_retention(student, teachers, randoms)
    measured = Measured(
        episodes=episodes,
        seed=seed,
        student_return=score["student"].mean_return,
        teacher_return=score["teacher"].mean_return,
        random_return=score["random"].mean_return,
        retention=retention and retention.value,
        retention_low=_known(retention and retention.low),
        retention_high=_known(retention and retention.high),
        student_win_rate=score["student"].win_rate,
        teacher_win_rate=score["teacher"].win_rate,
    )
    return Played(
        measured,
        retention,
        {name: returns(played[name]) for name in players},
        np.array([episode.steps for episode in played["student"]]),
    )


def _known(end: float | None) -> float | None:
    """The end of an interval as a manifest has it: what is infinite says nothing."""
    return None if end is None or math.isinf(end) else end


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


def _draft(work: Work, robot: Robot, model: bytes, training: str) -> Manifest:
    team, cost = work.team, count(model)
    told, rate_hz = robot.messages, team.task.spec.rate_hz
    assistant = work.assistant and work.assistant.card.weights_sha256
    return Manifest(
        schema_version=SCHEMA_VERSION,
        kdmarl_version=__version__,
        team=team.name,
        robot=robot.name,
        task=team.task.spec.name,
        agent=robot.agent.name,
        rate_hz=rate_hz,
        blocks=tuple(BlockEntry(b.name, b.size, b.unit) for b in robot.blocks),
        actions=robot.agent.actions,
        safe_action=robot.safe_action,
        legal_actions_vary=team.task.spec.legal_actions_vary,
        student=StudentEntry(
            robot.student.network,
            robot.student.width,
            cost.parameters,
            cost.flops,
            robot.student.width if robot.student.network == "gru" else 0,
        ),
        teacher=TeacherEntry(team.teacher, work.card.weights_sha256, assistant),
        measured=None,
        model=ModelEntry(MODEL, "", len(model)),
        message=message_entry(told.size, told.format, told.receivers, rate_hz) if told else None,
        peers=robot.peers,
        training=training if told or robot.peers else "",
    )
