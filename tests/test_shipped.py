"""Every file that ships can be used."""

import pytest

from kdmarl_core.cli.distil import run_distil
from kdmarl_core.distil.recipe import load_recipe
from kdmarl_core.evaluate import evaluation, play
from kdmarl_core.experiments.plan import load_plan
from kdmarl_core.files import share_folder
from kdmarl_core.schema import read_yaml
from kdmarl_core.tasks import make_task, task_names
from kdmarl_core.teacher.mappo import load_recipe as load_training_recipe
from kdmarl_core.teacher.player import TeacherPlayer
from kdmarl_core.teacher.teacher import CARD, find_teacher, load_teacher
from kdmarl_core.team import load_team
from kdmarl_ros.parameter_files import robot_parameters
from kdmarl_ros.safety import default_timeout_s

SHARE = share_folder()
TEAMS = sorted(path.stem for path in (SHARE / "config" / "teams").glob("*.yaml"))
TRAINING = sorted((SHARE / "config" / "training").glob("*.yaml"))
SPECS = {spec.slug: spec for spec in (make_task(name).spec for name in task_names())}
TEACHERS = sorted(card.parent for card in (SHARE / "models").glob(f"*/{CARD}"))
ROBOTS = SHARE / "config" / "robots"


def test_there_is_something():
    assert TEAMS
    assert TRAINING
    assert TEACHERS


@pytest.mark.parametrize("name", TEAMS)
def test_teams(name):
    load_recipe(load_team(name).recipe)


def test_every_row_of_the_results_can_be_made():
    plan = load_plan()
    for task in plan.tasks.values():
        assert set(task.teams) <= set(TEAMS)
    for name, changes in plan.messages.teams.items():
        for how in plan.messages.variants_of(name).values():
            team = load_team(name, (*changes, *how.team))
            load_recipe(team.recipe, how.recipe, how.without)


def test_every_team_has_its_teacher():
    shipped = {folder.name for folder in TEACHERS}
    for team in map(load_team, TEAMS):
        assert team.teacher in shipped
        load_teacher(find_teacher(team.teacher), team.students.task.spec)


def test_every_robot_has_its_parameters():
    for robot in {robot.name for name in TEAMS for robot in load_team(name).robots}:
        parameters = robot_parameters(robot, ROBOTS)
        assert (parameters["robot_type"], parameters["mode"]) == ("simulated", "lock_step")


def test_no_shipped_robot_fails_for_a_message_that_got_lost():
    """In real time, at the rate of its task: SMAX steps twice a second."""
    for team in map(load_team, TEAMS):
        rate_hz = team.task.spec.rate_hz
        for robot in team.robots[:10]:
            given = robot_parameters(robot.name, ROBOTS)
            timeout_s = given.get("timeout_s") or default_timeout_s(rate_hz)
            assert timeout_s > 2 / rate_hz, (team.name, robot.name)


LIMITED = [name.removesuffix("_lha") for name in TEAMS if name.endswith("_lha")]


@pytest.mark.parametrize("full", LIMITED)
def test_teams_of_limited_robots(full):
    """The settings of the source: what is sensed is one thing, how wide students are another."""
    senses, widths = {}, {}
    for suffix in ("", "_lh", "_lha", "_random", "_random_a"):
        team = load_team(full + suffix)
        senses[suffix] = {
            robot.name: (robot.agent, robot.sensors, robot.random_features)
            for robot in team.robots
        }
        widths[suffix] = {robot.student.width for robot in team.robots}
    assert senses["_lha"] == senses["_lh"] != senses[""]
    assert senses["_random_a"] == senses["_random"]
    assert {bounds for *_, bounds in senses["_random"].values()} == {(8, 10)}
    for name, (agent, sensors, _) in senses["_lh"].items():
        assert agent == senses[""][name][0]
        assert set(sensors) <= set(senses[""][name][1])
    assert len(widths["_lh"]) == len(widths["_random"]) == 1
    assert len(widths["_lha"]) == len(widths["_random_a"]) == 2
    assert widths["_lh"] < widths["_lha"]
    assert widths["_random"] < widths["_random_a"]


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_recipes(path):
    if path.stem.startswith("distil"):
        assert load_recipe(path.stem) == load_recipe(str(path))
        return
    spec = SPECS[max((slug for slug in SPECS if path.stem.startswith(slug)), key=len)]
    recipe = load_training_recipe(path, spec)
    assert recipe.task == spec.name
    if recipe.begins_with:
        load_teacher(find_teacher(recipe.begins_with), spec)
    if recipe.followers:
        assert load_team(recipe.followers.team).task.spec.name == spec.name


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
def test_the_shipped_recipe_keeps_95_percent(tmp_path, monkeypatch):
    """32-wide students with full observations; the whole recipe, as `make demo` runs it."""
    monkeypatch.chdir(tmp_path)
    done = run_distil(
        "simple_spread",
        teacher=None,
        output="bundles",
        overwrite=False,
        resume=False,
        buffer=None,
        episodes=500,
        threads=1,
        seed=1,
    )
    assert {item.draft.student.width for item in done.exported} == {32}
    assert done.played.measured.retention >= 0.95
    assert all(item.difference < 1e-5 for item in done.exported)
