"""A task's frozen opponent: the same in both simulators, verified, and trained by self-play."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest
import torch
from helpers import TRAINING_RECIPE, changed, write_yaml

from kdmarl_core.evaluate import RandomPlayer, play, returns
from kdmarl_core.files import share_folder
from kdmarl_core.schema import from_mapping, read_json
from kdmarl_core.tasks import make_task
from kdmarl_core.tasks.opponent import (
    CARD,
    WEIGHTS,
    OpponentCard,
    greedy,
    load_opponent,
    save_opponent,
)
from kdmarl_core.teacher import self_play as training
from kdmarl_core.teacher.mappo import Recipe
from kdmarl_core.teacher.self_play import match_returns, self_play
from kdmarl_core.teacher.teacher import find_teacher, load_teacher

NAME = "mpe/simple_adversary"
TASK = make_task(NAME)
RECIPE = TRAINING_RECIPE | {"task": NAME, "env_steps": 800}


def shipped_card():
    path = share_folder() / "models" / TASK.opponent.model / CARD
    return from_mapping(OpponentCard, read_json(path), str(path))


# Playing


def test_greedy_by_hand():
    """Two inputs, three hidden units of which ReLU cuts one off, two actions."""
    layers = (
        (np.array([[1.0, -1.0, 0.0], [0.0, 1.0, 2.0]]), np.array([0.0, 0.0, -1.0])),
        (np.array([[1.0, 0.0], [-9.0, 0.0], [0.0, 1.0]]), np.array([0.0, 0.5])),
    )
    # Hidden (3, -2 -> 0, 1): logits (3, 1.5). Hidden (1, 0, 1): logits (1, 1.5).
    # Hidden (1, 1, 3): logits (-8, 3.5).
    assert greedy(layers, np.array([[3.0, 1.0], [1.0, 1.0], [1.0, 2.0]])).tolist() == [0, 1, 1]
    # Hidden (-1 -> 0, 0, -3 -> 0): logits (0, 0.5); without ReLU (-1, -2.5).
    assert greedy(layers, np.array([-1.0, -1.0])) == 1


def test_both_simulators_choose_the_same_actions():
    layers = load_opponent(TASK.opponent, NAME)
    seen = np.random.default_rng(0).normal(size=(20_000, 8)).astype(np.float32)
    in_jax = jax.jit(jax.vmap(lambda one: greedy(layers, one)))(seen)
    one_by_one = [int(greedy(layers, one)) for one in seen]
    assert np.asarray(in_jax).tolist() == one_by_one
    assert set(one_by_one) == {0, 1, 2, 3, 4}


def test_the_adversary_is_drawn_but_not_played():
    reference = TASK.make_reference()
    reference.reset(0)
    kinds = {entity.name: entity.kind for entity in reference.scene()}
    assert kinds == {
        "adversary_0": "enemy",
        "agent_0": "agent",
        "agent_1": "agent",
        "landmark 0": "landmark",
        "landmark 1": "landmark",
    }
    assert [agent.name for agent in TASK.spec.agents] == ["agent_0", "agent_1"]


def test_the_shipped_adversary_is_strong():
    """Random robots lose to it, by as much as its card says."""
    card = shipped_card()
    assert card.random_team_return < -1.0
    played = returns(list(play(TASK.make_reference(), RandomPlayer(), 300, seed=1)))
    error = played.std() / np.sqrt(len(played))
    assert abs(played.mean() - card.random_team_return) < 5 * error


def test_both_sides_of_a_match_see_the_same_moment():
    """Distances between robots and adversary are those that the other side sees, negated."""
    match = TASK.make_match(5)
    team, opponent = match.reset(3)
    rng = np.random.default_rng(0)
    for _ in range(4):
        np.testing.assert_allclose(
            team.observation[:, :, 6:8],
            -opponent.observation[:, 0, 4:8].reshape(5, 2, 2),
            atol=1e-6,
        )
        np.testing.assert_array_equal(team.state, opponent.state)
        team, opponent = match.step(rng.integers(5, size=(5, 2)), rng.integers(5, size=(5, 1)))
        goal, adversary = team.observation[:, :, :2], team.observation[:, 0, 6:8]
        to_goal = np.linalg.norm(adversary - goal[:, 0], axis=-1)
        np.testing.assert_allclose(opponent.reward, -to_goal, atol=1e-5)
        nearest = np.linalg.norm(goal, axis=-1).min(-1)
        np.testing.assert_allclose(team.reward, to_goal - nearest, atol=1e-5)


# Files


@pytest.fixture
def with_opponent(tmp_path):
    """The task with a copy of its opponent's files, and where they are."""
    card = shipped_card()
    save_opponent(load_opponent(TASK.opponent, NAME), card, tmp_path / "opponent", overwrite=False)
    folder = tmp_path / "opponent"
    assert sorted(path.name for path in folder.iterdir()) == [CARD, WEIGHTS]
    return dataclasses.replace(
        TASK, opponent=dataclasses.replace(TASK.opponent, model=str(folder))
    ), folder


def test_files_round_trip(with_opponent):
    task, _ = with_opponent
    for copied, shipped in zip(
        load_opponent(task.opponent, NAME), load_opponent(TASK.opponent, NAME), strict=True
    ):
        assert all(np.array_equal(a, b) for a, b in zip(copied, shipped, strict=True))


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def remove(path):
    path.unlink()


@pytest.mark.parametrize("name", [CARD, WEIGHTS])
@pytest.mark.parametrize("damage", [cut_short, flip_a_bit, remove])
def test_damaged_files_are_refused_when_a_simulator_is_made(damage, name, with_opponent, refusal):
    task, folder = with_opponent
    damage(folder / name)
    assert task.spec == TASK.spec  # a description needs no weights
    for make in (task.make_reference, lambda: task.make_batch(2)):
        assert refusal(make).startswith(str(folder / name))
    task.make_match(2)  # nobody is frozen: the way to make new files


@pytest.mark.parametrize(
    ("key", "value"), [("task", "mpe/simple_tag"), ("agent", "adversary_1"), ("seed", None)]
)
def test_a_card_that_does_not_fit_is_refused(key, value, with_opponent, refusal):
    task, folder = with_opponent
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(changed(card, key, value)))
    message = refusal(task.make_reference)
    assert message.startswith(str(folder / CARD))
    assert str(value or key) in message


@pytest.mark.parametrize("sizes", [(9, 5), (8, 4)])
def test_weights_of_other_sizes_are_refused(sizes, with_opponent, refusal):
    task, folder = with_opponent
    layers = ((np.zeros(sizes, np.float32), np.zeros(sizes[1], np.float32)),)
    save_opponent(layers, shipped_card(), folder, overwrite=True)
    assert refusal(task.make_reference).startswith(f"{folder / WEIGHTS}: {sizes}")


# Training


def train_both(seed):
    reports = []
    recipe = from_mapping(Recipe, RECIPE, "recipe")
    trained = self_play(TASK.make_match, recipe, seed, lambda *figures: reports.append(figures))
    return trained, reports


def all_weights(trained):
    return torch.cat([p.flatten() for net in trained[:2] for p in net.parameters()]).detach()


@pytest.fixture(scope="module")
def trained():
    """Two iterations of 16 environments for the team, and 16 for the decoys."""
    torch.set_num_threads(1)
    return train_both(5)


def test_training_both_sides(trained):
    both, reports = trained
    assert [report[0] for report in reports] == [1, 2]
    assert np.isfinite(reports).all()
    assert both.env_steps == 2 * 2 * 16 * 25
    assert torch.isfinite(all_weights(both)).all()


def test_training_repeats_itself(trained):
    both, reports = trained
    again, same = train_both(5)
    assert same == reports
    assert torch.equal(all_weights(again), all_weights(both))
    other, _ = train_both(6)
    assert not torch.allclose(all_weights(other), all_weights(both), atol=1e-3)


def test_both_sides_learn():
    """Against random robots, a standing adversary leaves them about 8; and it teaches the team."""
    recipe = from_mapping(Recipe, RECIPE | {"env_steps": 64_000, "num_envs": 64}, "recipe")
    seen = []
    both = self_play(TASK.make_match, recipe, 0, lambda _, *returns: seen.append(returns))
    played = match_returns(TASK.make_match, both, 200, seed=1)
    assert played.random_team < 4.0
    assert played.opponent > -20.0  # at first about -29
    assert played.team > played.random_team
    # The reported figures are of the team's own episodes, in which it moves towards the goal.
    assert seen[0][1] < -25.0 < seen[-1][1]


def test_a_recurrent_opponent_is_refused(refusal):
    architecture = {"network": "gru", "width": 16, "layers": 2}
    recipe = from_mapping(Recipe, RECIPE | {"architecture": architecture}, "recipe")
    assert "gru" in refusal(self_play, TASK.make_match, recipe, 0, lambda *_: None)


@pytest.fixture
def opponent_command(kdmarl, tmp_path):
    """Runs `kdmarl opponent` with RECIPE on one thread."""
    recipe = write_yaml(tmp_path / "recipe.yaml", RECIPE)
    common = ["--recipe", recipe, "--episodes", "4", "--threads", "1", "--output", "out"]

    def run(*arguments, task=NAME):
        return kdmarl("opponent", task, *common, *arguments)

    return run


def test_command(opponent_command, trained, tmp_path):
    done = opponent_command("--seed", "5", "--json")
    assert done.code == 0, done.err
    figures = json.loads(done.out)
    folder = tmp_path / "work" / "out"
    opponent = dataclasses.replace(TASK.opponent, model=str(folder))
    written, expected = load_opponent(opponent, NAME), trained[0].opponent_layers
    assert len(written) == len(expected) == 3
    for pair in zip(written, expected, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(*pair, strict=True))
    card = from_mapping(OpponentCard, read_json(folder / CARD), "card")
    assert (card.seed, card.env_steps, card.episodes) == (5, 1600, 4)
    assert card.command.startswith(f"kdmarl opponent {NAME} --seed 5 --threads 1 --recipe ")
    assert card.random_team_return == figures["random_team"]
    assert (card.team_return, card.opponent_return) == (figures["team"], figures["opponent"])
    # The new opponent plays.
    task = dataclasses.replace(TASK, opponent=opponent)
    assert len(list(play(task.make_reference(), RandomPlayer(), 2, seed=0))) == 2

    again = opponent_command("--seed", "5")
    assert again.code == 2
    assert "--overwrite" in again.err


def test_tasks_without_an_opponent_are_refused(opponent_command):
    done = opponent_command(task="mpe/simple_spread")
    assert done.code == 2
    assert NAME in done.err
    assert done.left == []


def test_ctrl_c_leaves_nothing(opponent_command, monkeypatch):
    monkeypatch.setattr(training, "match_returns", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    done = opponent_command()
    assert done.code == 130
    assert "Traceback" not in done.err
    assert done.left == []


def test_a_teacher_that_met_another_opponent_is_refused(refusal):
    spec = TASK.spec
    folder = find_teacher("mpe_simple_adversary")
    load_teacher(folder, spec)
    other = dataclasses.replace(spec, fixture_sha256="cd" * 32)
    message = refusal(load_teacher, folder, other)
    assert message.startswith(f"{folder / 'card.json'}: fixture_sha256: ")
    assert "'cdcdcdcdcdcd'" in message
