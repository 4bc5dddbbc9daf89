"""Training a teacher: repeatable, interruptible, and better than nothing; and its files."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest
import torch
from helpers import (
    MIXED_TASK,
    TASK,
    TRAINING_RECIPE,
    changed,
    make_teacher,
    write_teacher,
    write_yaml,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from kdmarl_core.evaluate import RandomPlayer, play, returns
from kdmarl_core.schema import from_mapping
from kdmarl_core.seeding import derive_seed
from kdmarl_core.tasks import make_task
from kdmarl_core.teacher.mappo import Recipe
from kdmarl_core.teacher.player import TeacherPlayer
from kdmarl_core.teacher.rollout import Collector, sample
from kdmarl_core.teacher.teacher import CARD, WEIGHTS, load_teacher, read_card, save_teacher
from kdmarl_core.teacher.train import CHECKPOINT, train

ITERATIONS = 4  # of TRAINING_RECIPE


def recipe_of(**changes):
    return from_mapping(Recipe, TRAINING_RECIPE | changes, "recipe")


def weights(folder):
    return load_teacher(folder, make_task(TASK).spec)[0].state_dict()


def assert_equal_weights(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A teacher of TRAINING_RECIPE, seed 5, trained without a break."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    torch.set_num_threads(1)
    teacher, _ = train(
        make_task(TASK), recipe_of(), 5, folder, resume=False, report=lambda *_: None
    )
    return teacher.state_dict()


@pytest.fixture
def train_command(kdmarl, tmp_path):
    """Runs `kdmarl train` with TRAINING_RECIPE on one thread."""
    recipe = write_yaml(tmp_path / "recipe.yaml", TRAINING_RECIPE)
    common = ["--recipe", recipe, "--episodes", "2", "--threads", "1", "--output", "run"]

    def run(*arguments):
        return kdmarl("train", TASK, *common, *arguments)

    return run


def test_command_trains_and_reports(train_command, uninterrupted, tmp_path):
    done = train_command("--seed", "5", "--json")
    assert done.code == 0, done.err
    figures = json.loads(done.out)
    assert figures["env_steps"] == TRAINING_RECIPE["env_steps"]
    folder = tmp_path / "work" / "run"
    assert_equal_weights(weights(folder / "teacher"), uninterrupted)
    card = read_card(folder / "teacher")
    assert (card.task, card.seed, card.env_steps) == (TASK, 5, 1600)
    assert card.evaluation.mean_return == figures["return"]
    assert card.command.startswith(f"kdmarl train {TASK} --seed 5 --recipe ")
    events = EventAccumulator(str(folder)).Reload()
    steps = [event.step for event in events.Scalars("train/return")]
    assert steps == [400, 800, 1200, 1600]
    assert "train/entropy" in events.Tags()["scalars"]


def test_another_seed_gives_another_teacher(uninterrupted, tmp_path):
    other, _ = train(
        make_task(TASK), recipe_of(), 6, tmp_path, resume=False, report=lambda *_: None
    )
    head = "actor.head.weight"
    assert not torch.allclose(other.state_dict()[head], uninterrupted[head], atol=1e-3)


def test_ctrl_c_keeps_a_checkpoint_and_resume_goes_on(
    train_command, uninterrupted, tmp_path, monkeypatch
):
    """Interrupted after two of four iterations, it ends with exactly the same weights."""
    add_scalar = SummaryWriter.add_scalar

    def interrupt(writer, name, value, step):
        add_scalar(writer, name, value, step)
        if name == "train/return" and step == 800:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(SummaryWriter, "add_scalar", interrupt)
    stopped = train_command("--seed", "5")
    assert stopped.code == 130
    assert "--resume" in stopped.err
    assert "Traceback" not in stopped.err
    folder = tmp_path / "work" / "run"
    assert (folder / CHECKPOINT).is_file()
    assert not (folder / "teacher").exists()

    monkeypatch.setattr(SummaryWriter, "add_scalar", add_scalar)
    assert train_command("--seed", "5", "--resume").code == 0
    assert_equal_weights(weights(folder / "teacher"), uninterrupted)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_learning_beats_random(tmp_path):
    """A few seconds of training are worth much more than random actions."""
    task = make_task(TASK)
    recipe = recipe_of(
        architecture={"width": 64, "layers": 2}, env_steps=64_000, num_envs=64, epochs=5
    )
    teacher, _ = train(task, recipe, 0, tmp_path, resume=False, report=lambda *_: None)
    env = task.make_reference()
    learned, random = (
        returns(list(play(env, player, 60, 1))).mean()
        for player in (TeacherPlayer(teacher, task.spec), RandomPlayer(task.spec))
    )
    assert learned > random + 4.0


# Rollouts


@pytest.fixture(scope="module")
def spread():
    task = make_task(TASK)
    return task.spec, task.make_batch(4)


def test_a_rollout_does_not_depend_on_those_before(spread):
    spec, env = spread
    teacher, _ = make_teacher(spec)
    fresh, busy = (Collector(spec, env, spec.episode_steps, seed=3) for _ in range(2))
    busy.collect(teacher.logits, 0)
    for a, b in zip(
        fresh.collect(teacher.logits, 1), busy.collect(teacher.logits, 1), strict=True
    ):
        assert torch.equal(a, b)


def test_a_rollout_says_what_happened(spread):
    spec, env = spread
    teacher, _ = make_teacher(spec)
    rollout = Collector(spec, env, 2 * spec.episode_steps, seed=3).collect(teacher.logits, 0)
    log_probs = torch.log_softmax(teacher.logits(rollout.observation, rollout.action_mask), -1)
    expected = log_probs.gather(-1, rollout.action[..., None]).squeeze(-1)
    torch.testing.assert_close(rollout.log_prob, expected)
    assert rollout.done.sum(0).tolist() == [2] * 4
    # The same simulator, stepped by hand with the same actions.
    shown = [env.reset(derive_seed(3, 0))]
    shown += [env.step(actions) for actions in rollout.action.numpy()]
    for name, first, last in (
        ("observation", 0, -1),
        ("action_mask", 0, -1),
        ("state", 0, None),
        ("reward", 1, None),
        ("done", 1, None),
    ):
        expected = np.stack([getattr(step, name) for step in shown[first:last]])
        assert np.array_equal(getattr(rollout, name).numpy(), expected), name
    assert rollout.episode_return() == pytest.approx(float(rollout.reward.sum()) / 8, rel=1e-5)


def test_actions_are_drawn_with_their_probabilities():
    logits = torch.tensor([0.0, 1.0, -1e9, 2.0]).expand(20_000, 4)
    action, log_prob = sample(logits, torch.Generator().manual_seed(0))
    frequency = np.bincount(action.numpy(), minlength=4) / len(action)
    expected = torch.softmax(logits[0], -1).numpy()
    np.testing.assert_allclose(frequency, expected, atol=0.01)
    assert frequency[2] == 0
    assert log_prob.exp().numpy() == pytest.approx(expected[action.numpy()])


# Networks


def test_agents_that_are_alike_are_not_told_apart():
    spec = make_task(TASK).spec
    teacher, _ = make_teacher(spec)
    observation = torch.randn(1, 1, spec.observation_size).expand(2, spec.num_agents, -1)
    logits = teacher.logits(observation, torch.from_numpy(spec.action_exists))
    assert torch.equal(logits[:, :1].expand_as(logits), logits)


def test_agents_that_differ_are_told_apart():
    teacher, _ = make_teacher(MIXED_TASK)
    observation = torch.ones(2, MIXED_TASK.num_agents, MIXED_TASK.observation_size)
    embedding = teacher.embed(observation)
    assert embedding.shape == (2, MIXED_TASK.num_agents, 16)
    assert not torch.equal(embedding[:, 0], embedding[:, 1])
    exists = torch.from_numpy(MIXED_TASK.action_exists)
    probabilities = torch.softmax(teacher.logits(observation, exists), -1)
    assert (probabilities[:, ~exists] == 0).all()


def test_value_is_of_the_joint_state():
    teacher, _ = make_teacher(MIXED_TASK)
    state = torch.randn(7, 2, MIXED_TASK.state_size)
    assert teacher.value(state).shape == (7, 2)


def test_the_player_takes_the_most_probable_actions(spread):
    spec, _ = spread
    teacher, _ = make_teacher(spec)
    player = TeacherPlayer(teacher, spec)
    rng = np.random.default_rng(0)
    for _ in range(5):
        seen = rng.normal(size=(spec.num_agents, spec.observation_size)).astype(np.float32)
        exists = torch.from_numpy(spec.action_exists)
        expected = teacher.logits(torch.from_numpy(seen), exists).argmax(-1)
        assert player.act(tuple(seen)) == expected.tolist()


# Files


def test_save_and_load_round_trip(tmp_path):
    spec = make_task(TASK).spec
    teacher, card = make_teacher(spec)
    save_teacher(teacher, card, tmp_path / "teacher", overwrite=False)
    loaded, read = load_teacher(tmp_path / "teacher", spec)
    assert_equal_weights(loaded.state_dict(), teacher.state_dict())
    assert dataclasses.replace(read, weights_sha256="") == card
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert sorted(p.name for p in (tmp_path / "teacher").iterdir()) == [CARD, WEIGHTS]


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_short, flip_a_bit, lambda path: path.write_bytes(b"")])
def test_damaged_weights_are_refused(damage, tmp_path, refusal):
    folder = write_teacher(tmp_path / "teacher")
    damage(folder / WEIGHTS)
    message = refusal(load_teacher, folder, make_task(TASK).spec)
    assert message.startswith(str(folder / WEIGHTS))
    assert "copy it again" in message


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("task", "mpe/simple_tag", "mpe/simple_tag"),
        ("observation_sizes", [18, 18, 14], "14"),
        ("num_actions", 9, "9"),
        ("state_size", 54, "54"),
        ("seed", None, "seed"),
        ("seed", "zero", "zero"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(path, value, named, tmp_path, refusal):
    folder = write_teacher(tmp_path / "teacher")
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(changed(card, path, value)))
    message = refusal(load_teacher, folder, make_task(TASK).spec)
    assert message.startswith(str(folder / CARD))
    assert named in message


def test_weights_of_another_width_are_refused(tmp_path, refusal):
    folder = write_teacher(tmp_path / "teacher", width=16)
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(changed(card, "architecture.width", 32)))
    message = refusal(load_teacher, folder, make_task(TASK).spec)
    assert message.startswith(str(folder / WEIGHTS))
    assert "does not fit" in message


def test_missing_weights_are_named(tmp_path, refusal):
    folder = write_teacher(tmp_path / "teacher")
    (folder / WEIGHTS).unlink()
    assert refusal(load_teacher, folder, make_task(TASK).spec).startswith(str(folder / WEIGHTS))
