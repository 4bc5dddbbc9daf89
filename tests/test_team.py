"""Team files: what robots share, what one changes, and what of it is said twice."""

from pathlib import Path

import pytest
from helpers import TASK, TEAM_FILE, changed, write_yaml

from kdmarl_core.tasks import live_columns
from kdmarl_core.team import load_team
from kdmarl_core.team_file import StudentSpec

SPREAD = load_team("simple_spread")
ALL = tuple(block.name for block in SPREAD.robots[0].sensors)


def names(robot):
    return tuple(block.name for block in robot.sensors)


@pytest.fixture
def load(tmp_path):
    """Loads a team from a document, on a base if one is given."""

    def make(document, base=None):
        if base is not None:
            path = write_yaml(tmp_path / "base.yaml", base)
            document = {"base": str(path), **document}
        return load_team(str(write_yaml(tmp_path / "team.yaml", document)))

    return make


def test_a_robot_changes_what_it_names_and_keeps_the_rest(load):
    team = load({"robots": {"robot_1": {"student": {"width": 5}}}}, TEAM_FILE)
    assert (team.name, team.teacher, team.recipe) == ("team", TEAM_FILE["teacher"], "distil")
    plain = load(TEAM_FILE)
    assert [robot.student.width for robot in team.robots] == [8, 5, 8]
    assert team.robots[0] == plain.robots[0]
    assert team.robots[2] == plain.robots[2]
    changed_robot, before = team.robots[1], plain.robots[1]
    assert changed_robot.student == StudentSpec("mlp", 5)
    assert changed_robot.sensors == before.sensors
    assert changed_robot.safe_action == before.safe_action


def test_lists_are_replaced_not_joined(load):
    team = load({"robots": {"robot_1": {"sensors": ["position"]}}}, TEAM_FILE)
    assert [names(robot) for robot in team.robots] == [ALL, ("position",), ALL]


def test_keys_of_the_team_can_be_changed_too(load):
    team = load({"teacher": "another", "recipe": "quick"}, TEAM_FILE)
    assert (team.teacher, team.recipe) == ("another", "quick")
    assert team.robots == load(TEAM_FILE).robots


def test_robots_may_have_a_shipped_base(load):
    team = load({"base": "simple_spread", "robots": {"robot_2": {"student": {"width": 16}}}})
    assert team.robots[:2] == SPREAD.robots[:2]
    assert team.robots[2].student.width == 16


def test_bases_have_bases(load, tmp_path):
    """Three files deep; the nearest wins."""
    write_yaml(tmp_path / "first.yaml", TEAM_FILE)
    middle = {
        "base": str(tmp_path / "first.yaml"),
        "robots": {"robot_0": {"student": {"width": 20}}, "robot_1": {"student": {"width": 21}}},
    }
    team = load({"robots": {"robot_1": {"student": {"width": 31}}}}, middle)
    assert [robot.student.width for robot in team.robots] == [20, 31, 8]


def test_what_a_base_takes_away_does_not_come_back(load, tmp_path):
    """Files are laid over one another from the lowest up."""
    told = {"size": 3, "to": "all", "delay_steps": 2}
    write_yaml(tmp_path / "first.yaml", changed(TEAM_FILE, "robots.robot_0.messages", told))
    silenced = {"robots": {"robot_0": {"messages": None}}}
    middle = {"base": str(tmp_path / "first.yaml")} | silenced
    team = load({"robots": {"robot_0": {"messages": {"size": 2, "to": "all"}}}}, middle)
    assert (team.robots[0].messages.size, team.robots[0].messages.delay_steps) == (2, 1)


def test_relative_paths_begin_at_their_file(tmp_path, monkeypatch):
    """Base, recipe and teacher lie where their files say, whatever the folder of the command."""
    (tmp_path / "teams" / "shared").mkdir(parents=True)
    paths = {"recipe": "slow.yaml", "teacher": "../models/mine"}
    write_yaml(tmp_path / "teams" / "shared" / "first.yaml", {**TEAM_FILE, **paths})
    path = write_yaml(tmp_path / "teams" / "second.yaml", {"base": "shared/first.yaml"})
    for folder, name in ((tmp_path, "teams/second.yaml"), (path.parent, "second.yaml")):
        monkeypatch.chdir(folder)
        team = load_team(name)
        assert len(team.robots) == 3
        assert Path(team.recipe).resolve() == path.parent / "shared" / "slow.yaml"
        assert Path(team.teacher).resolve() == path.parent / "models" / "mine"


def test_a_base_that_leads_back_is_refused_however_it_is_spelt(tmp_path, refusal):
    path = write_yaml(tmp_path / "loop.yaml", {"base": f"../{tmp_path.name}/loop.yaml"})
    assert "leads back" in refusal(load_team, str(path))


def test_defaults_are_what_robots_share(load):
    document = {
        "task": TASK,
        "teacher": "nobody",
        "defaults": {
            "sensors": ["position", "landmarks"],
            "safe_action": "stay",
            "student": {"network": "gru", "width": 12},
        },
        "robots": {
            "robot_0": {"agent": "agent_0"},
            "robot_1": {"agent": "agent_1", "safe_action": "up", "student": {"width": 9}},
            "robot_2": {"agent": "agent_2", "sensors": ["velocity"]},
        },
    }
    team = load(document)
    assert [robot.safe_action for robot in team.robots] == ["stay", "up", "stay"]
    assert [robot.student.width for robot in team.robots] == [12, 9, 12]
    assert {robot.student.network for robot in team.robots} == {"gru"}
    shared = ("position", "landmarks")
    assert [names(robot) for robot in team.robots] == [shared, shared, ("velocity",)]
    # Laid over a base, defaults change all robots that do not say otherwise themselves.
    over = load({"defaults": {"student": {"width": 40}}}, document)
    assert [robot.student.width for robot in over.robots] == [40, 9, 40]


def test_features_hidden_at_random(load):
    """As many as are said; `null` shows all again."""
    hiding = changed(TEAM_FILE, "defaults", {"random_features": [3, 4]})
    team = load(hiding)
    assert [robot.random_features for robot in team.robots] == [(3, 4)] * 3
    assert [block.name for block in team.robots[0].blocks] == [*ALL, "visible"]
    assert team.robots[0].blocks[-1].size == len(live_columns(team.robots[0].sensors)) == 14
    one_sees = load({"robots": {"robot_1": {"random_features": None}}}, hiding)
    assert [robot.random_features for robot in one_sees.robots] == [(3, 4), None, (3, 4)]
    assert one_sees.robots[1] == load(TEAM_FILE).robots[1]


def test_the_order_is_that_of_the_tasks_agents(load):
    robots = dict(reversed(TEAM_FILE["robots"].items()))
    assert load({**TEAM_FILE, "robots": robots}).robots == load(TEAM_FILE).robots


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("student.width", 9),
        ("student.network", "gru"),
        ("sensors", ["position", "landmarks", "others"]),
        ("random_features", [3, 4]),
    ],
)
def test_a_teams_record_changes_with_what_its_students_can_learn(load, path, value):
    """And not with what they cannot: the safe action, the file's name."""
    document = changed(TEAM_FILE, f"robots.robot_1.{path}", value)
    if path == "student.network":
        for robot in ("robot_0", "robot_2"):
            document = changed(document, f"robots.{robot}.{path}", value)
    assert load(document).record() != load(TEAM_FILE).record()
    safe = changed(TEAM_FILE, "robots.robot_1.safe_action", "up")
    assert load(safe).record() == load(TEAM_FILE).record()


def test_a_number_of_robots_is_one_for_every_agent(load):
    team = load({"base": "simple_spread_30", "task": "mpe/simple_spread_5", "robots": 5})
    assert [robot.name for robot in team.robots] == [f"robot_{i}" for i in range(5)]
    assert [robot.agent.name for robot in team.robots] == [f"agent_{i}" for i in range(5)]


def test_students_of_another_team_fly_in_turn(load):
    team = load({"base": "simple_spread_30", "task": "mpe/simple_spread_5", "robots": 5})
    assert [r.bundle for r in team.robots] == [f"robot_{i}" for i in (0, 1, 2, 0, 1)]
    assert team.students.name == "simple_spread"
    assert SPREAD.students is SPREAD
    assert [robot.bundle for robot in SPREAD.robots] == [robot.name for robot in SPREAD.robots]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"robots": 29}, ["robots: 29 is not 30", "mpe/simple_spread_30"]),
        ({"students": "simple_spred"}, ["students", "did you mean simple_spread"]),
        ({"students": "simple_spread_30"}, ["students", "simple_spread", "with its own"]),
        (
            {"students": "simple_speaker_listener"},
            ["students: 'simple_speaker_listener'", "('goal', 3)", "robot_0"],
        ),
        ({"defaults": {"sensors": ["position"]}}, ["students", "sensors", "[('position', 2)]"]),
        ({"task": "mpe/simple_spread_2"}, ["task", "'2'", "from 4 to 1000"]),
        ({"task": "mpe/simple_spread_many"}, ["'many'", "mpe/simple_spread_30"]),
    ],
)
def test_fleets_that_cannot_be(load, refusal, document, words):
    line = refusal(load, {"base": "simple_spread_30", **document})
    for word in words:
        assert word in line


def test_teams_that_lend_each_other_students(refusal, tmp_path):
    first, second = (tmp_path / name for name in ("first.yaml", "second.yaml"))
    write_yaml(first, TEAM_FILE | {"students": str(second)})
    write_yaml(second, TEAM_FILE | {"students": str(first)})
    assert refusal(load_team, str(first)) == (
        f"{first}: students: '{second}' has students of {first}; name a team with its own"
    )


def test_a_mapping_with_a_key_that_is_no_text(refusal, tmp_path):
    path = tmp_path / "team.yaml"
    path.write_text("task: mpe/simple_spread\nteacher: {{ teacher }}\n? [a, b]\n: c\n")
    message = refusal(load_team, str(path))
    assert message.startswith(f"{path}: not valid YAML")
