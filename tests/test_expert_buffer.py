"""The expert buffer: what is in it, what it weighs, and that nothing else is taken for it."""

import dataclasses
import re
from types import SimpleNamespace

import pytest
import torch
from helpers import DISTILLATION_RECIPE, TASK, make_teacher
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.functional import cosine_similarity

from kdmarl_core.distil.coordination import role_scores
from kdmarl_core.distil.expert_buffer import (
    ENVS,
    bytes_per_step,
    fill_buffer,
    load_buffer,
    plan_buffer,
    save_buffer,
)
from kdmarl_core.distil.losses import hard_cross_entropy, policy_kl, role_alignment
from kdmarl_core.distil.samples import ILLEGAL, Labels, label
from kdmarl_core.tasks import make_task
from kdmarl_core.teacher.returns import gae
from kdmarl_core.teacher.rollout import Collector
from kdmarl_core.team import SensedBlocks

pytestmark = pytest.mark.usefixtures("simulators_made_once")

SPEC = make_task(TASK).spec
ROLES = DISTILLATION_RECIPE["roles"]
BFLOAT16 = {"atol": 0.05, "rtol": 0.02}  # the teacher labels at this precision
HALF = {"atol": 1e-6, "rtol": 2.0**-11}  # half of the last of 11 binary digits
SEED = 3


@pytest.fixture(scope="module")
def taught():
    """A task and a teacher of clear opinions, with its card."""
    task = make_task(TASK)
    return task, *make_teacher(task.spec, width=32)


@pytest.fixture(scope="module")
def buffer(taught):
    """The smallest buffer: one rollout."""
    task, teacher, card = taught
    return fill_buffer(task, teacher, card, plan_buffer(task.spec, card, 1, ROLES, SEED))


@pytest.fixture(scope="module")
def rollout(taught):
    """What the buffer was made from."""
    task, teacher, _ = taught
    horizon = task.spec.episode_steps
    collector = Collector(task.spec, task.make_batch(ENVS), horizon, SEED, anew=True)

    def act(step, begins):
        with torch.no_grad():
            shown = (step.observation, step.state, step.action_mask)
            return teacher.logits(*map(torch.from_numpy, shown))

    return collector.collect(act, 0)


# Size


@pytest.mark.parametrize(
    ("steps", "expected"), [(1, 6400), (6400, 6400), (6401, 12800), (64000, 64000)]
)
def test_whole_episodes_are_kept(taught, steps, expected):
    """Of 256 environments, 25 steps each: never less than was asked for."""
    task, _, card = taught
    origin = plan_buffer(task.spec, card, steps, ROLES, SEED)
    assert origin.steps == expected
    assert (origin.task, origin.roles, origin.seed) == (TASK, ROLES, SEED)


def test_no_more_environments_than_there_may_be(taught):
    """As of a game that runs in processes of its own."""
    task, teacher, card = taught
    made = []

    def make_batch(count):
        made.append(count)
        return task.make_batch(count)

    few = SimpleNamespace(spec=dataclasses.replace(task.spec, most_envs=8), make_batch=make_batch)
    origin = plan_buffer(few.spec, card, 201, ROLES, SEED)
    assert origin.steps == 400  # twice 8 episodes of 25 steps
    buffer = fill_buffer(few, teacher, card, origin)
    assert made == [8]
    assert buffer.labels.begins.shape == (25, 16)


def test_memory_is_what_is_said(taught, buffer):
    task, _, card = taught
    spec = task.spec
    tensors = (buffer.observation, *buffer.labels)
    assert all(len(tensor.untyped_storage()) == tensor.nbytes for tensor in tensors)
    total = sum(tensor.nbytes for tensor in tensors)
    assert total == bytes_per_step(spec, card, ROLES) * buffer.origin.steps
    # 3 robots: 18 features of two bytes; 5 actions with one for the mask and two for the logit;
    # an action, its log-probability, 3 role scores. And 3 pairs, a begin, an advantage.
    assert (
        bytes_per_step(spec, card, 3) == 3 * (18 * 2 + 5 * (1 + 2) + 1 + 4 + 3 * 2) + 3 * 2 + 1 + 4
    )


@pytest.mark.parametrize("name", ["smax/3m", "smax/8m", "smax/5m_vs_6m", "smax/3s5z"])
def test_a_million_steps_of_any_map_fit_in_four_gigabytes(name):
    """An assistant that sees features at random takes a bit more for each of them."""
    spec = make_task(name).spec
    _, card = make_teacher(spec)
    origin = plan_buffer(spec, card, 1_000_000, 4, 0)
    assert origin.steps >= 1_000_000
    assert bytes_per_step(spec, card, 4) * origin.steps < 4e9
    sensed = {"ally_0": SensedBlocks(("own",), (8, 10))}
    assistant = dataclasses.replace(card, restriction=sensed)
    assert bytes_per_step(spec, assistant, 4) * origin.steps < 4.5e9


def test_more_than_the_machine_holds_is_refused(taught, refusal):
    task, _, card = taught
    message = refusal(plan_buffer, task.spec, card, 10**14, ROLES, SEED)
    assert message.startswith("offline.buffer_steps: 100000000000000 steps of mpe/simple_spread ")
    assert "more than half of this machine's memory" in message
    most = int(re.search("give at most ([0-9]+)$", message)[1])
    assert plan_buffer(task.spec, card, most, ROLES, SEED).steps == most


# Content


def test_every_sequence_begins_with_an_episode(buffer):
    begins = buffer.labels.begins
    assert begins.shape == (25, ENVS)
    assert begins[0].all()
    assert not begins[1:].any()


def test_steps_are_those_of_the_teachers_rollout(buffer, rollout):
    torch.testing.assert_close(buffer.observation.float(), rollout.observation, **HALF)
    labels = buffer.labels
    assert torch.equal(labels.action.long(), rollout.action)
    assert torch.equal(labels.behaviour, rollout.log_prob)
    assert torch.equal(labels.action_mask, rollout.action_mask)
    assert torch.equal(labels.begins, rollout.begins)


def test_labels_in_half_precision_are_the_labels(taught, buffer, rollout):
    """Relative error of one rounding, 2^-11; the terms that read them differ by 0.1 percent."""
    _, teacher, card = taught
    full = label(rollout, teacher, card, buffer.projection)
    for name, kept, exact in zip(Labels._fields, buffer.labels, full, strict=True):
        torch.testing.assert_close(kept.double(), exact.double(), **HALF, msg=name)
    halves = {name for name, kept in buffer.labels._asdict().items() if kept.dtype == torch.half}
    assert halves == {"teacher", "cosines", "roles"}
    generator = torch.Generator().manual_seed(0)
    students = torch.randn(25 * ENVS, 3, 5, generator=generator).log_softmax(-1)
    of_half, of_full = (x.teacher.flatten(0, 1).float() for x in (buffer.labels, full))
    for term in (lambda t, s: policy_kl(t, s, 2.0), hard_cross_entropy):
        assert float(term(of_half, students)) == pytest.approx(
            float(term(of_full, students)), rel=1e-3
        )
    scores = torch.randn(25 * ENVS, 3, ROLES, generator=generator)
    of_half, of_full = (x.roles.flatten(0, 1).float() for x in (buffer.labels, full))
    assert float(role_alignment(of_half, scores, 1.0)) == pytest.approx(
        float(role_alignment(of_full, scores, 1.0)), rel=1e-3
    )


def test_labels_are_the_teachers(taught, buffer, rollout):
    """Against the teacher in full precision, and definitions written out."""
    _, teacher, card = taught
    labels, state = buffer.labels, rollout.state[:-1]
    with torch.no_grad():
        logits = teacher.logits(rollout.observation, state, rollout.action_mask)
        embedding = teacher.actor.embed(teacher.reads(rollout.observation, state, None))
        value = teacher.value(rollout.state)
    torch.testing.assert_close(labels.teacher.float(), logits.log_softmax(-1), **BFLOAT16)
    torch.testing.assert_close(
        labels.roles.float(), role_scores(embedding, buffer.projection), atol=0.05, rtol=0.05
    )
    pairs = [(1, 0), (2, 0), (2, 1)]
    assert labels.cosines.shape[-1] == len(pairs)
    for column, (i, j) in enumerate(pairs):
        cosine = cosine_similarity(embedding[:, :, i], embedding[:, :, j], dim=-1)
        torch.testing.assert_close(labels.cosines[..., column].float(), cosine, **BFLOAT16)
    # The advantage: the teacher's critic, the reward in the units of its training, normalised.
    raw = gae(rollout.reward * card.reward_scale, value, rollout.done, 0.95, 0.95)
    torch.testing.assert_close(labels.advantage, (raw - raw.mean()) / raw.std(), **BFLOAT16)
    unscaled = gae(rollout.reward, value, rollout.done, 0.95, 0.95)  # negative control
    wrong = (unscaled - unscaled.mean()) / unscaled.std()
    assert (labels.advantage - wrong).abs().max() > 3 * BFLOAT16["atol"]


def test_without_roles_the_coordination_labels_are_empty(taught, rollout):
    """What no term reads is not computed."""
    _, teacher, card = taught
    labels = label(rollout, teacher, card, None)
    assert labels.cosines.shape == (25, ENVS, 0)
    assert labels.roles.shape == (25, ENVS, 3, 0)


def test_illegal_actions_have_no_probability_in_the_labels(taught, rollout):
    """Not in half precision either, and the others share what is left."""
    _, teacher, card = taught
    mask = rollout.action_mask.clone()
    mask[:5, :, 1, 2] = False
    free = label(rollout, teacher, card, None).teacher
    found = label(rollout._replace(action_mask=mask), teacher, card, None).teacher.half()
    assert torch.isfinite(found).all()
    assert (found[~mask] == ILLEGAL).all()
    assert (found.exp()[~mask] == 0).all()
    kept = [0, 1, 3, 4]
    expected = free[:5, :, 1, kept].log_softmax(-1)
    torch.testing.assert_close(found[:5, :, 1, kept].float(), expected, atol=1e-3, rtol=1e-3)
    assert torch.equal(found[5:], free[5:].half())


def test_what_was_planned_before_is_the_beginning_of_more(taught, buffer):
    """Rollout after rollout: a longer buffer begins with the shorter one, and goes on anew."""
    task, teacher, card = taught
    more = fill_buffer(task, teacher, card, plan_buffer(task.spec, card, 6401, ROLES, SEED))
    assert torch.equal(more.projection, buffer.projection)
    assert torch.equal(more.observation[:, :ENVS], buffer.observation)
    assert not torch.equal(more.observation[:, ENVS:], buffer.observation)
    for longer, kept in zip(more.labels, buffer.labels, strict=True):
        assert torch.equal(longer[:, :ENVS], kept)


# Files


@pytest.fixture
def file(buffer, tmp_path):
    path = tmp_path / "expert" / "buffer.safetensors"
    save_buffer(buffer, path)
    return path


def test_round_trip(taught, buffer, file):
    loaded = load_buffer(file, SPEC, taught[2], ROLES)
    assert loaded.origin == buffer.origin
    assert torch.equal(loaded.projection, buffer.projection)
    assert torch.equal(loaded.observation, buffer.observation)
    for name, read, written in zip(Labels._fields, loaded.labels, buffer.labels, strict=True):
        assert read.dtype == written.dtype, name
        assert torch.equal(read, written), name
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("change", "roles", "words"),
    [
        ({"task": "mpe/simple_tag"}, ROLES, ["task", f"'{TASK}'", "'mpe/simple_tag'"]),
        ({"weights_sha256": "ab" * 32}, ROLES, ["teacher", "'abababababab'"]),
        ({}, ROLES + 1, ["roles", f"'{ROLES}'", f"'{ROLES + 1}'"]),
    ],
    ids=["task", "teacher", "roles"],
)
def test_buffers_of_others_are_refused(taught, file, refusal, change, roles, words):
    card = taught[2].__class__(**vars(taught[2]) | change)
    message = refusal(load_buffer, file, SPEC, card, roles)
    assert message.startswith(f"{file}: {words[0]}: ")
    assert "another --buffer file" in message
    for word in words:
        assert word in message


def test_a_buffer_with_roles_of_an_earlier_revision_is_refused(taught, buffer, tmp_path, refusal):
    earlier = buffer._replace(origin=dataclasses.replace(buffer.origin, role_revision=1))
    save_buffer(earlier, tmp_path / "earlier.safetensors")
    message = refusal(load_buffer, tmp_path / "earlier.safetensors", SPEC, taught[2], ROLES)
    assert "role_revision" in message
    assert "another --buffer file" in message


def test_a_buffer_of_another_opponent_is_refused(taught, file, refusal):
    spec = dataclasses.replace(SPEC, fixture_sha256="cd" * 32)
    message = refusal(load_buffer, file, spec, taught[2], ROLES)
    assert message.startswith(f"{file}: opponent: ")
    assert "'cdcdcdcdcdcd'" in message


@pytest.mark.parametrize("name", ["observation", "behaviour", "roles"])
@pytest.mark.parametrize(
    "damage", [None, lambda t: t[:-1], lambda t: t[:, :1], torch.Tensor.double]
)
def test_buffers_that_lack_something_are_refused(taught, file, refusal, name, damage):
    """A tensor is not there, is too small, or of another kind."""
    with safe_open(file, "pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    held = tensors.pop(name)
    if damage is not None:
        tensors[name] = damage(held).contiguous()
    save_file(tensors, file, metadata)
    damaged = tensors.get(name)
    found = "missing" if damaged is None else f"{damaged.dtype} {tuple(damaged.shape)}"
    message = refusal(load_buffer, file, SPEC, taught[2], ROLES)
    assert message.startswith(f"{file}: {name}: {found}, not {held.dtype} {tuple(held.shape)}; ")
    assert "remove it" in message


@pytest.mark.parametrize("kept", [-1, -5000, 100, 8, 0])
def test_files_that_were_cut_are_refused(taught, file, refusal, kept):
    file.write_bytes(file.read_bytes()[:kept])
    message = refusal(load_buffer, file, SPEC, taught[2], ROLES)
    assert message.startswith(f"{file}: ")
    assert "cut short" in message


def test_other_files_are_refused(taught, file, refusal, tmp_path):
    message = refusal(load_buffer, tmp_path / "none", SPEC, taught[2], ROLES)
    assert message == f"{tmp_path / 'none'}: no such file; check the path"
    other = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(2)}, other)
    message = refusal(load_buffer, other, SPEC, taught[2], ROLES)
    assert message.startswith(f"{other}: ")
    assert "not an expert buffer" in message
