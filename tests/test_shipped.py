"""Every file that ships can be used."""

import pytest

from kdmarl_core.cli.distil import load_recipe, run_distil
from kdmarl_core.evaluate import evaluation, play
from kdmarl_core.files import share_folder
from kdmarl_core.schema import from_mapping, read_yaml
from kdmarl_core.tasks import make_task
from kdmarl_core.teacher.mappo import Recipe
from kdmarl_core.teacher.player import TeacherPlayer
from kdmarl_core.teacher.teacher import CARD, find_teacher, load_teacher
from kdmarl_core.team import load_team, team_names
from kdmarl_ros.deployment import robot_parameters

SHARE = share_folder()
TRAINING = sorted((SHARE / "config" / "training").glob("*.yaml"))
TEACHERS = sorted(card.parent for card in (SHARE / "models").glob(f"*/{CARD}"))
ROBOTS = SHARE / "config" / "robots"


def test_there_is_something():
    assert team_names()
    assert TRAINING
    assert TEACHERS


@pytest.mark.parametrize("name", team_names())
def test_teams(name):
    team = load_team(name)
    load_teacher(find_teacher(team.teacher), team.task.spec)
    for robot in team.robots:
        assert (SHARE / "config" / "robots" / f"{robot.name}.yaml").is_file()


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_recipes(path):
    if path.stem == "distil":
        assert load_recipe(None) == load_recipe(str(path))
        return
    recipe = from_mapping(Recipe, read_yaml(path), str(path))
    assert path.stem == make_task(recipe.task).spec.slug


@pytest.mark.parametrize("folder", TEACHERS, ids=lambda path: path.name)
def test_teachers(folder):
    """The card says how it was made, and its weights are those that were hashed."""
    document = read_yaml(folder / CARD)  # JSON is YAML
    _, card = load_teacher(folder, make_task(document["task"]).spec)
    assert card.command.startswith(f"kdmarl train {card.task} ")
    assert card.evaluation.episodes >= 1000
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}


def test_the_shipped_teacher_plays_as_well_as_its_card_says():
    task = make_task("mpe/simple_spread")
    teacher, card = load_teacher(find_teacher("mpe_simple_spread"), task.spec)
    player = TeacherPlayer(teacher, task.spec)
    score = evaluation(list(play(task.make_reference(), player, 200, seed=1)), seed=1)
    assert card.evaluation.mean_return >= -11.5
    assert abs(score.mean_return - card.evaluation.mean_return) < 5 * score.standard_error


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_shipped_recipe_keeps_95_percent(tmp_path):
    """32-wide students with full observations; the whole recipe, as `make demo` runs it."""
    done = run_distil(
        "simple_spread",
        teacher=None,
        recipe=None,
        output=str(tmp_path / "bundles"),
        overwrite=False,
        episodes=500,
        threads=2,
        seed=1,
    )
    assert {item.draft.student.width for item in done.exported} == {32}
    assert done.played.measured.retention >= 0.95
    assert all(item.difference < 1e-5 for item in done.exported)


def test_robots():
    parameters = robot_parameters("robot_0", ROBOTS)
    assert (parameters["robot_type"], parameters["mode"]) == ("simulated", "lock_step")
