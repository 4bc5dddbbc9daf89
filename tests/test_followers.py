"""Teachers that a team's robots are to be able to follow: what they pay, and who learns when."""

import dataclasses
import math
import os
import signal

import pytest
import torch
from helpers import TASK, TRAINING_RECIPE, make_teacher, write_teacher, write_yaml

from kdmarl_core.schema import from_mapping
from kdmarl_core.tasks import make_task
from kdmarl_core.teacher.followers import Followers, divergence
from kdmarl_core.teacher.mappo import Mappo, Recipe
from kdmarl_core.teacher.rollout import Collector
from kdmarl_core.teacher.self_play import self_play
from kdmarl_core.teacher.teacher import Teacher
from kdmarl_core.teacher.train import train
from kdmarl_core.team import load_team

pytestmark = pytest.mark.usefixtures("simulators_made_once")

FOLLOWERS = {
    "team": "simple_spread_lh",
    "weight": 1.0,
    "learning_rate": 1.0e-3,
    "iterations_alone": 1,
}


def recipe_of(followers=None, **changes):
    more = {"followers": FOLLOWERS | (followers or {})}
    return from_mapping(Recipe, TRAINING_RECIPE | more | changes, "recipe")


def train_quietly(recipe, folder, **options):
    options = {"resume": False, "report": lambda *_: None} | options
    return train(make_task(TASK), recipe, 5, folder, **options)[0]


def copies(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(module, before):
    return any(not torch.equal(value, before[name]) for name, value in module.state_dict().items())


def make_learner(recipe):
    """A teacher with followers, and a rollout of it."""
    torch.manual_seed(0)
    task = make_task(TASK)
    followers = Followers(load_team("simple_spread_lh"), recipe.architecture)
    learner = Mappo(Teacher(task.spec, recipe.architecture), recipe, followers)
    collector = Collector(task.spec, task.make_batch(16), 25, seed=0)
    learner.policy.begin(0)
    return learner, followers, collector.collect(learner.policy, 0)


def updated(learner, rollout, iteration):
    return learner.update(rollout, iteration, torch.Generator().manual_seed(0))


def test_the_divergence_by_hand():
    teacher = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log()
    followers = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
    expected = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert float(divergence(teacher, followers)) == pytest.approx(expected, rel=1e-6)
    assert float(divergence(followers, teacher)) != pytest.approx(expected, rel=1e-2)


def test_followers_first_learn_alone():
    mappo, followers, rollout = make_learner(recipe_of())
    before = copies(mappo.teacher), copies(followers)
    updated(mappo, rollout, 0)
    assert not moved(mappo.teacher, before[0])
    assert moved(followers, before[1])
    updated(mappo, rollout, 1)
    assert moved(mappo.teacher, before[0])


def test_the_price_moves_the_teacher_alone():
    """Followers learn from the teacher as it is, whatever it pays."""
    after = []
    for weight in (30.0, 1e-6):
        recipe = recipe_of({"weight": weight, "iterations_alone": 0}, epochs=1, minibatches=1)
        mappo, followers, rollout = make_learner(recipe)
        updated(mappo, rollout, 0)
        after.append((mappo.teacher.actor, followers))
    (teacher, followers), (other_teacher, other_followers) = after
    assert moved(teacher, other_teacher.state_dict())
    assert not moved(followers, other_followers.state_dict())


def test_who_pays_is_easier_to_follow(tmp_path):
    """The same training with a high price and with next to none."""
    left = {}
    for weight in (30.0, 1e-6):
        figures = []
        recipe = recipe_of({"weight": weight}, env_steps=12_000, entropy=0.0)
        train_quietly(recipe, tmp_path / str(weight), report=lambda _, f, to=figures: to.append(f))
        left[weight] = figures[-1]["unfollowed"]
    assert left[30.0] < 0.5 * left[1e-6]


def test_followers_read_what_the_robots_sense():
    team = load_team("simple_spread_lh")
    recipe = recipe_of()
    followers = Followers(team, recipe.architecture)
    observation = torch.randn(4, 3, 3, 18)
    state = torch.randn(4, 3, team.task.spec.state_size)
    before = followers.sensed(observation, state, torch.Generator())
    assert before.shape[:3] == (4, 3, 3)
    for index, robot in enumerate(team.robots):
        start = 0
        for block in robot.agent.blocks:
            changed = observation.clone()
            changed[:, :, index, start : start + block.size] += 1.0
            after = followers.sensed(changed, state, torch.Generator())
            assert torch.equal(after, before) != (block in robot.sensors), (robot.name, block.name)
            start += block.size


def test_what_is_hidden_at_random_changes_with_every_step():
    followers = Followers(load_team("simple_spread_random"), recipe_of().architecture)
    observation = torch.ones(50, 20, 3, 18)
    state = torch.zeros(50, 20, 1)
    sensed = followers.sensed(observation, state, torch.Generator().manual_seed(0))
    shown = sensed[..., :14].sum(-1)
    assert (shown.min(), shown.max()) == (8, 10)
    assert shown.mean() == pytest.approx(9.0, abs=0.05)
    assert len({tuple(row) for row in sensed[:, 0, 0, :14].tolist()}) > 40


def test_it_begins_as_another_teacher_is(tmp_path):
    """And stays so as long as followers learn alone, or it hardly learns."""
    write_teacher(tmp_path / "teacher")
    expected = make_teacher(make_task(TASK).spec)[0]
    recipe = recipe_of(
        {"iterations_alone": 3},
        learning_rate=1e-30,
        begins_with=str(tmp_path / "teacher"),
        architecture=dataclasses.asdict(expected.architecture),
    )
    trained = train_quietly(recipe, tmp_path / "run")
    for name, value in expected.state_dict().items():
        assert torch.equal(trained.state_dict()[name], value), name


@pytest.mark.parametrize("stopped_after", [1, 3])  # the first of two alone; the teacher's own
def test_it_resumes_where_it_was_interrupted(stopped_after, tmp_path):
    recipe = recipe_of({"iterations_alone": 2})
    whole = train_quietly(recipe, tmp_path / "whole")
    folder = tmp_path / "stopped"

    def interrupt(iteration, figures):
        if iteration == stopped_after:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_quietly(recipe, folder, report=interrupt)
    resumed = train_quietly(recipe, folder, resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_recipes_without_followers_leave_no_trace():
    """Keys of results, and of checkpoints that there are, do not change."""
    plain = from_mapping(Recipe, TRAINING_RECIPE, "recipe")
    assert plain.record() == TRAINING_RECIPE
    assert plain.record() != recipe_of().record()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"followers": FOLLOWERS | {"team": "smax_3m_lh"}},
            ["followers: team: 'smax_3m_lh'", TASK],
        ),
        (
            {"followers": FOLLOWERS | {"team": "simple_spred"}},
            ["followers: team: unknown team 'simple_spred'; did you mean"],
        ),
        (
            {"begins_with": "mpe_simple_spread"},
            ["begins_with: 'mpe_simple_spread'", "architecture", "width=256"],
        ),
        ({"begins_with": "smax_3m"}, ["begins_with: ", "task is 'smax/3m'"]),
        ({"begins_with": "nobody"}, ["begins_with: unknown teacher 'nobody'"]),
    ],
)
def test_mistakes_are_refused_in_one_line(changes, words, tmp_path, refusal):
    message = refusal(train_quietly, recipe_of(**changes), tmp_path / "run", where="own.yaml")
    assert message.startswith("own.yaml: ")
    for word in words:
        assert word in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight": 0.0}, ["followers: weight", "0.0"]),
        ({"learning_rate": -1.0}, ["followers: learning_rate", "-1.0"]),
        ({"iterations_alone": -1}, ["followers: iterations_alone", "-1"]),
        ({"iterations_alone": 4}, ["followers: iterations_alone: 4", "none of the 4"]),
        ({"wait": 1.0}, ["followers", "'wait'", "did you mean"]),
    ],
)
def test_wrong_values_are_refused_in_one_line(change, words, refusal):
    message = refusal(recipe_of, change)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("key", "value"), [("begins_with", "mpe_simple_spread"), ("followers", FOLLOWERS)]
)
def test_these_keys_are_for_teachers_alone(key, value, tmp_path, refusal):
    """Neither for the bound of a team's restriction nor for an opponent."""
    recipe = from_mapping(Recipe, TRAINING_RECIPE | {key: value}, "recipe")
    team = load_team("simple_spread_random")
    message = refusal(train_quietly, recipe, tmp_path / "run", team=team)
    assert f"{key}: " in message
    assert "simple_spread_random" in message
    message = refusal(self_play, make_task("mpe/simple_adversary").make_match, recipe, 0, print)
    assert f"{key}: " in message


def test_a_run_is_not_resumed_for_other_followers(tmp_path, refusal):
    """Though the recipe is the same, and their networks would fit."""
    path, folder = tmp_path / "team.yaml", tmp_path / "run"
    recipe = recipe_of({"team": str(path)})

    def give(block):
        robots = {f"robot_{i}": {"sensors": [block]} for i in range(3)}
        write_yaml(path, {"base": "simple_spread", "robots": robots})

    give("velocity")
    train_quietly(recipe, folder)
    give("position")
    message = refusal(train_quietly, recipe, folder, resume=True)
    assert "--resume" in message


@pytest.mark.parametrize("network", ["mlp", "gru"])
@pytest.mark.parametrize(
    "team", ["simple_spread_random", "simple_adversary_random", "simple_speaker_listener_lh"]
)
def test_teachers_of_all_kinds_can_be_followed(network, team, tmp_path):
    """Of robots that differ, with what is hidden at random, in bfloat16."""
    task = load_team(team).task
    recipe = recipe_of(
        {"team": team, "iterations_alone": 0},
        task=task.spec.name,
        architecture={"network": network, "width": 16, "layers": 2},
        env_steps=800,
        precision="bfloat16",
    )
    figures = []
    options = {"resume": False, "report": lambda _, found: figures.append(found)}
    train(task, recipe, 0, tmp_path, **options)
    assert all(math.isfinite(found["unfollowed"]) for found in figures)
    assert figures[0]["unfollowed"] > 0
