"""Results in tables: their cells are computed once and only used for the same."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import (
    DISTILLATION_RECIPE,
    OFF,
    TASK,
    TEAM_FILE,
    TRAINING_RECIPE,
    changed,
    interrupting,
    write_teacher,
    write_yaml,
)

from kdmarl_core.distil import run as distil_run
from kdmarl_core.distil.offline import learn_offline
from kdmarl_core.experiments import cells, messages
from kdmarl_core.experiments.cells import Cell
from kdmarl_core.experiments.messages import Case, Known, Played
from kdmarl_core.experiments.table import RowCells, summary
from kdmarl_core.files import share_folder
from kdmarl_core.metrics import normalised_retention
from kdmarl_core.schema import read_json
from kdmarl_core.tasks import make_task
from kdmarl_core.tasks.opponent import CARD as OPPONENT_CARD
from kdmarl_core.teacher.teacher import CARD

pytestmark = pytest.mark.usefixtures("simulators_made_once")

EPISODES = 6


@pytest.fixture
def table(kdmarl, tmp_path, monkeypatch):
    """Runs `kdmarl table` or another command on a plan of two settings, all on a small scale."""
    teacher = write_teacher(tmp_path / "teacher")
    other = write_teacher(tmp_path / "other", seed=1)
    recipe = changed(DISTILLATION_RECIPE, "offline.updates", 2)
    recipe = changed(recipe, "on_policy.iterations", 1)
    recipe = write_yaml(tmp_path / "distil.yaml", recipe)
    full = TEAM_FILE | {"teacher": str(teacher), "recipe": str(recipe)}
    blind = changed(full, "robots.robot_1.sensors", ["velocity", "position"])
    teams = {"full": full, "blind": blind}
    paths = [str(write_yaml(tmp_path / f"{name}.yaml", team)) for name, team in teams.items()]
    plan = {
        "episodes": EPISODES,
        "settings": ["FO", "LH groups"],
        "tasks": {
            TASK: {
                "seeds": 2,
                "teams": paths,
                "source": {
                    "measure": "return", "teacher": -46.0, "limited": -48.5, "limited_mixed": -50.5
                },
            }
        },
        "ablation": {
            "seeds": 1,
            "teams": paths[1:],
            "all": [f"on_policy.weights.{term}=0.1" for term in OFF],
            "without": ["kl"],
            "others": {
                "offline only": {"recipe": ["on_policy.iterations=0"]},
                "wide": {"team": ["robots.robot_0.student.width=24", f"teacher={other}"]},
            },
        },
        "messages": {
            "seeds": 2,
            "teams": {
                paths[0]: [],
                paths[1]: [f"teacher={other}", "defaults.student={width: 16}"],
            },
            "variants": {
                "silent": {},
                "2 int8": {"team": ["defaults.messages={size: 2, to: all}"]},
            },
            "causes": {
                paths[1]: {
                    "3 int4, once": {
                        "team": [
                            "defaults.messages={size: 3, to: all, format: int4}",
                            f"teacher={teacher}",
                        ],
                        "recipe": ["on_policy.iterations=0"],
                    },
                    "2 int8, assistant": {
                        "team": ["defaults.messages={size: 2, to: all}"],
                        "assistant": "hearing",
                    },
                    "2 int8, deaf assistant": {
                        "team": ["defaults.messages={size: 2, to: all}"],
                        "assistant": "silent",
                    },
                },
            },
            "disturbances": {"all lost": {"loss": 1.0}, "2 steps late": {"delay_steps": 2}},
            "disturbed": {paths[1]: ["2 int8"]},
            "at_a_glance": ["silent", "2 int8"],
        },
    }  # fmt: skip
    plan_path = write_yaml(tmp_path / "plan.yaml", plan)
    training = write_yaml(tmp_path / "training.yaml", TRAINING_RECIPE)
    monkeypatch.setattr(cells, "shipped_recipe", lambda *_: training)

    def run(*arguments, command="table"):
        return kdmarl(command, "--plan", plan_path, "--threads", "1", *arguments)

    return run


def sha256_of(teacher):
    return json.loads((teacher / CARD).read_text())["weights_sha256"]


def rows(done):
    assert done.code == 0, done.err
    found = json.loads(done.out)
    return {(row["setting"], row["assisted"]): row for row in found}


def test_nothing_is_computed_unasked(table):
    found = rows(table("--json"))
    assert list(found) == [("FO", False), ("LH groups", False), ("LH groups", True)]
    assert all(row["retention"] is None for row in found.values())
    assert all(row["scores"]["students"] == [] for row in found.values())


def test_what_is_computed_stays(table, tmp_path):
    asked = ("--settings", "LH groups", "--seeds", "1")
    asked += ("--compute", "given", "students", "bounds", "assisted")
    first = rows(table("--json", *asked))
    results = tmp_path / "work" / "results" / "mpe_simple_spread"
    card = json.loads((tmp_path / "teacher" / CARD).read_text())
    teacher = f"teacher-{card['weights_sha256'][:8]}"
    [bound] = (path.stem for path in results.glob("bound-groups-*.json"))
    assert sorted(path.stem for path in results.iterdir()) == [
        "LH_groups-assisted-0", "LH_groups-students-0", bound, "random", teacher
    ]  # fmt: skip
    changed_at = {path: path.stat().st_mtime_ns for path in results.iterdir()}
    assert rows(table("--json", *asked)) == first  # nothing again
    assert rows(table("--json", *asked[:4])) == first  # nor unasked
    assert {path: path.stat().st_mtime_ns for path in results.iterdir()} == changed_at
    printed = table(*asked[:4]).out.splitlines()  # a line for each row, as nobody looks
    assert [line.split("  ")[0].strip() for line in printed if "LH groups" in line] == [
        "LH groups", "LH groups, assistant"
    ]  # fmt: skip
    cells = {path.stem: json.loads(path.read_text()) for path in results.iterdir()}
    assert "assistant" not in cells["LH_groups-students-0"]["inputs"]
    assistant = cells["LH_groups-assisted-0"]["inputs"]["assistant"]
    assert assistant == cells[bound]["inputs"]
    assert cells[bound]["policy_sha256"] == cells["LH_groups-assisted-0"]["policy_sha256"]
    assert cells[bound]["policy_sha256"]
    assert not cells["LH_groups-students-0"]["policy_sha256"]
    for row, kind in (
        (first["LH groups", False], "students"),
        (first["LH groups", True], "assisted"),
    ):
        of = [np.array(cells[f"LH_groups-{kind}-{seed}"]["returns"]) for seed in range(1)]
        assert all(len(returns) == EPISODES for returns in of)
        scores = [returns.mean() for returns in of]
        assert row["scores"]["students"] == pytest.approx(scores)
        others = (np.array(cells[name]["returns"]) for name in (teacher, "random"))
        expected = normalised_retention(of, *others)
        assert row["retention"]["value"] == pytest.approx(expected.value)


def test_students_of_other_assistants_are_not_mixed(table, tmp_path):
    """Nor held against the bound of another policy; those of unknown ones are computed again."""
    asked = ("--settings", "LH groups", "--compute", "assisted", "--json")
    rows(table(*asked, "--seeds", "1"))
    results = tmp_path / "work" / "results" / "mpe_simple_spread"
    path = results / "LH_groups-assisted-0.json"
    whole = json.loads(path.read_text())

    def told(*arguments):
        done = table(*arguments)
        assert done.code == 2
        return " ".join(done.err.split())

    path.write_text(json.dumps(whole | {"policy_sha256": "ab" * 32}))
    refused = told(*asked)
    assert f"LH_groups-assisted-0.json {'ab' * 6}" in refused
    assert whole["policy_sha256"][:12] in refused
    path.write_text(json.dumps(whole | {"policy_sha256": "", "returns": [0.0] * EPISODES}))
    assert rows(table(*asked[:2], "--json"))["LH groups", True]["scores"]["students"] == [0.0]
    assert len(rows(table(*asked))["LH groups", True]["scores"]["students"]) == 2
    again = json.loads(path.read_text())
    assert (again["returns"], again["policy_sha256"]) == (whole["returns"], whole["policy_sha256"])
    rows(table("--settings", "LH groups", "--compute", "bounds", "--json"))
    [bound] = results.glob("bound-*.json")
    bound.write_text(json.dumps(json.loads(bound.read_text()) | {"policy_sha256": "cd" * 32}))
    assert f"{bound.name} {'cd' * 6}" in told()


def test_a_cell_of_other_inputs_is_not_used(table, tmp_path):
    asked = ("--settings", "FO", "--seeds", "1", "--compute", "students", "given", "--json")
    before = rows(table(*asked))["FO", False]["scores"]
    # Another recipe: the teacher's cell stays, the students' is computed again.
    recipe = changed(DISTILLATION_RECIPE, "offline.updates", 30)
    write_yaml(tmp_path / "distil.yaml", changed(recipe, "on_policy.iterations", 1))
    assert rows(table("--settings", "FO", "--json"))["FO", False]["scores"]["students"] == []
    after = rows(table(*asked))["FO", False]["scores"]
    assert after["teacher"] == before["teacher"]
    assert after["students"] != before["students"]


@pytest.mark.parametrize("compute", [(), ("--compute", "given")])
def test_cells_of_another_plan_are_kept(table, tmp_path, compute):
    path = tmp_path / "work" / "results" / "mpe_simple_spread" / "random.json"
    assert table("--settings", "FO", "--compute", "given").code == 0
    whole = path.read_text()
    plan = tmp_path / "plan.yaml"
    plan.write_text(plan.read_text().replace(f"episodes: {EPISODES}", f"episodes: {EPISODES - 1}"))
    done = table("--settings", "FO", *compute)
    assert done.code == 2
    for named in ("mpe_simple_spread/", f"episodes: {EPISODES} is not the plan's", "--results"):
        assert named in done.err
    assert path.read_text() == whole


def test_a_damaged_cell_is_named(table, tmp_path):
    path = tmp_path / "work" / "results" / "mpe_simple_spread" / "random.json"
    assert table("--settings", "FO", "--compute", "given").code == 0
    whole = path.read_text()
    cell = json.loads(whole)
    for damaged in (whole[:100], json.dumps(cell | {"returns": cell["returns"][1:]})):
        path.write_text(damaged)
        done = table()
        assert done.code == 2
        assert str(path.relative_to(tmp_path / "work")) in done.err


def test_the_page(table, tmp_path):
    page = tmp_path / "work" / "docs" / "results.md"
    page.parent.mkdir()
    page.write_text("Before.\n<!-- table -->\nold\n<!-- end of table -->\nAfter.\n")
    glance = tmp_path / "work" / "README.md"
    glance.write_text("<!-- table -->\nold\n<!-- end of table -->\n")
    assert table("--compute", "given", "--write").code == 0
    assert glance.read_text() == (
        "<!-- table -->\n"
        "| task | FO | LH groups | fewer FLOPs |\n"
        "| --- | --- | --- | --- |\n"
        f"| {TASK} |  |  |  |\n"  # no students yet
        "<!-- end of table -->\n"
    )
    text = page.read_text()
    assert text.startswith("Before.\n<!-- table -->\n## mpe/simple_spread\n")
    assert text.endswith("<!-- end of table -->\nAfter.\n")
    assert "old" not in text
    assert "| LH groups |" in text
    assert "assistant" not in text  # nobody has been taught by one
    assert "| 94.8 |" in text  # the source's own: 46 / 48.5


def cell(score, flops=0.0):
    return Cell({}, (score,) * 4, (), flops, 0.0, "")


def test_what_messages_come_to():
    def played(variant, disturbance, *scores):
        return Played(Case(variant, disturbance), 0, 0.0, tuple(map(cell, scores)))

    found = [played("silent", "", 0.0, 2.0), played("1", "", 6.0), played("1", "lost", 1.0)]
    variants = ("silent", "1", "2")
    known = Known(cell(10.0), cell(-10.0), cell(4.0))
    line = messages.summary("t", found, variants, known)
    assert line == ["t", "55.0", "80.0", "", "70.0"]
    assert messages.summary("t", found, variants, Known(*known[:2])) == [*line[:-1], ""]
    rows = messages.page_rows(found, known._replace(hearing=cell(8.0)))
    assert [(row[0], row[3]) for row in rows[3:]] == [
        (messages.BOUND, "4.00"),
        (messages.HEARING, "8.00"),
    ]
    assert rows[-1][-1].startswith("90.0%")


def test_what_the_table_comes_to():
    """Of students of teacher and assistant the better ones; bounds in brackets."""

    def row(setting, score, *, assisted=False, bound=None, seeds=2):
        told = SimpleNamespace(task="t", setting=setting, assisted=assisted)
        students = () if score is None else (cell(score, 5.0), cell(score, 3.0))
        best, worst = cell(10.0, 40.0), cell(-10.0)
        return RowCells(told, best, worst, students[:seeds], bound and cell(bound))

    found = [
        row("FO", 9.0),
        row("LH", 2.0, bound=4.0),
        row("LH", 3.0, assisted=True, bound=4.0),
        row("LH+A", 2.0, bound=4.0),
        row("LH+A", None, assisted=True, bound=4.0),
        row("none", None),
        row("chance", 2.0, bound=4.0),
        row("chance", 2.0, assisted=True, bound=4.0),  # no better
        row("seeds", 2.0, bound=4.0),
        row("seeds", 9.0, assisted=True, bound=4.0, seeds=1),
    ]
    shown = ["95.0", "65.0* (70.0)", "60.0 (70.0)", "", "60.0 (70.0)", "60.0 (70.0)"]
    settings = ("FO", "LH", "LH+A", "none", "chance", "seeds")
    assert summary(found, settings) == [["t", *shown, "10.0 to 10.0 times"]]


def test_a_task_whose_teacher_has_yet_to_be_trained_is_left_out(table, tmp_path):
    shutil.rmtree(tmp_path / "teacher")
    done = table("--json")
    assert done.code == 0
    assert json.loads(done.out) == []
    assert " ".join(done.err.split()).count(f"{TASK}: left out: ") == 1  # not once per row


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("table", ("--tasks", TASK)),
        ("table", ("--seeds", "1")),
        ("ablation", ("--seeds", "1")),
        ("ablation", ("--variants", "wide")),
        ("messages", ("--variants", "silent")),
    ],
)
def test_a_part_of_the_plan_is_not_written_over_all_of_it(table, command, option):
    done = table("--write", *option, command=command)
    assert done.code == 2
    assert f"{option[0]} chooses some" in " ".join(done.err.split())


def test_what_was_distilled_outlives_a_cell_that_cannot_be_written(table, tmp_path):
    """And checkpoints of other work are in nobody's way."""
    asked = ("--settings", "FO", "--seeds", "1", "--compute", "students", "--json")
    (tmp_path / "file").write_text("")
    done = table("--results", tmp_path / "file" / "results", *asked)
    assert done.code == 2
    assert "cannot be written" in done.err
    checkpoint = "runs/table/*/checkpoint.safetensors"
    [kept] = (tmp_path / "work").glob(checkpoint)
    recipe = changed(DISTILLATION_RECIPE, "offline.updates", 3)
    write_yaml(tmp_path / "distil.yaml", changed(recipe, "on_policy.iterations", 1))
    assert table(*asked).code == 0
    assert list((tmp_path / "work").glob(checkpoint)) == [kept]


def test_an_interrupted_table_goes_on(table, tmp_path, monkeypatch):
    asked = ("--settings", "FO", "--seeds", "1", "--compute", "students", "--json")
    work = tmp_path / "work"
    with monkeypatch.context() as patch:
        patch.setattr(distil_run, "learn_offline", interrupting(learn_offline, 2))
        stopped = table(*asked)
    assert stopped.code == 130
    assert not list(work.glob("results/*/*"))
    [kept] = work.glob("runs/table/*/checkpoint.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(distil_run, "learn_offline", None)  # its two updates are done
        assert table(*asked).code == 0
    assert not kept.exists()
    assert table("--results", "others", *asked).code == 0  # without interruption
    cell = "mpe_simple_spread/FO-students-0.json"
    found, expected = (json.loads((work / f / cell).read_text()) for f in ("results", "others"))
    assert found["returns"] == expected["returns"]


def test_cells_of_another_opponent_are_not_used(tmp_path):
    task = make_task("mpe/simple_adversary")
    shipped = read_json(
        share_folder() / "models" / "mpe_simple_adversary_opponent" / OPPONENT_CARD
    )
    inputs = cells.common_inputs("random", task, EPISODES)
    assert inputs["fixture"] == shipped["weights_sha256"]
    cells.write_cell(tmp_path / "cell.json", cells.play_random(task, EPISODES))
    assert cells.read_cell(tmp_path / "cell.json", inputs)
    assert cells.read_cell(tmp_path / "cell.json", inputs | {"fixture": "ab" * 32}) is None


def test_unknown_names(table):
    for option, name in (("--tasks", "mpe/simple_spred"), ("--settings", "LH group")):
        done = table(option, name)
        assert done.code == 2
        assert f"'{name}'" in done.err
        assert "did you mean" in done.err


def test_ablation(table, tmp_path):
    done = table("--compute", command="ablation")
    assert done.code == 0, done.err
    for variant in ("all terms", "without kl", "offline only", "wide"):
        assert variant in done.out
    kept = list((tmp_path / "work" / "results" / "mpe_simple_spread").glob("ablation-*.json"))
    assert len(kept) == 4
    figures = json.loads(table("--json", command="ablation").out)
    assert [line["variant"] for line in figures][:2] == ["all terms", "without kl"]
    assert figures[0]["change"] is None
    full, without = (line["retention"]["value"] for line in figures[:2])
    assert figures[1]["change"]["value"] == pytest.approx(without - full)
    one = table("--json", "--variants", "wide", command="ablation")
    assert [line["variant"] for line in json.loads(one.out)] == ["all terms", "wide"]
    inputs = {path.stem.split("-")[2]: json.loads(path.read_text())["inputs"] for path in kept}
    weights = inputs["without_kl"]["recipe"]["on_policy"]["weights"]
    assert weights["kl"] == 0
    assert weights["role"] == 0.1
    robots = {name: made["team"]["robots"]["robot_0"] for name, made in inputs.items()}
    widths = {name: robot["student"]["width"] for name, robot in robots.items()}
    assert widths.pop("wide") == 24
    assert 24 not in widths.values()
    main, other = sha256_of(tmp_path / "teacher"), sha256_of(tmp_path / "other")
    taught = {name: made["teacher"] for name, made in inputs.items()}
    assert taught.pop("wide") == other
    assert set(taught.values()) == {main}


def message_cells(tmp_path):
    folder = tmp_path / "work" / "results" / "mpe_simple_spread"
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("messages-*.json")}


def test_messages(table, tmp_path):
    """A team's variants, those that are its own, and what became of messages on their way."""
    page = tmp_path / "work" / "docs" / "results.md"
    page.parent.mkdir()
    page.write_text("<!-- messages -->\nold\n<!-- end of messages -->\n")
    blind = str(tmp_path / "blind.yaml")
    asked = ("--seeds", "1", "--teams", blind, "--compute")
    done = table(*asked, command="messages")
    assert done.code == 0, done.err
    assert "old" in page.read_text()
    glance = tmp_path / "work" / "README.md"
    glance.write_text("<!-- messages -->\nold\n<!-- end of messages -->\n")
    assert table("--write", command="messages").code == 0
    header, _, line = glance.read_text().splitlines()[1:-1]
    assert header == "| team | silent | 2 int8 | bound without messages |"
    assert line.startswith(f"| {blind} |")
    found = message_cells(tmp_path)
    assert sorted(found) == [
        "messages-blind-2_int8-0",
        "messages-blind-2_int8-2_steps_late-0",
        "messages-blind-2_int8-all_lost-0",
        "messages-blind-2_int8-assistant-0",
        "messages-blind-2_int8-deaf_assistant-0",
        "messages-blind-3_int4-once-0",
        "messages-blind-silent-0",
    ]
    inputs = {name.split("-", 2)[2]: cell["inputs"] for name, cell in found.items()}
    robots = {name: made["team"]["robots"]["robot_0"] for name, made in inputs.items()}
    assert "messages" not in robots["silent-0"]
    assert robots["2_int8-0"]["messages"]["size"] == 2
    assert robots["3_int4-once-0"]["messages"]["format"] == "int4"
    # A robot's own entry beats the changed default.
    assert {robot["student"]["width"] for robot in robots.values()} == {8}
    assert inputs["3_int4-once-0"]["recipe"]["on_policy"]["iterations"] == 0
    main, other = sha256_of(tmp_path / "teacher"), sha256_of(tmp_path / "other")
    taught = {name: made["teacher"] for name, made in inputs.items()}
    assert taught.pop("3_int4-once-0") == main
    assert set(taught.values()) == {other}
    # Of the same students, whose returns differ by what becomes of their messages alone.
    assert inputs["2_int8-all_lost-0"].pop("messages") == {"loss": 1.0, "delay_steps": 0}
    assert inputs["2_int8-all_lost-0"] == inputs["2_int8-0"]
    returns = {name: cell["returns"] for name, cell in found.items()}
    lost, silent = returns["messages-blind-2_int8-all_lost-0"], returns["messages-blind-2_int8-0"]
    assert lost != silent
    [hearing] = tmp_path.glob("work/results/mpe_simple_spread/bound-*.json")
    hearing = read_json(hearing)
    assert hearing["inputs"]["restriction"]["agent_0"]["hears"] == ["agent_1", "agent_2"]
    assert hearing["inputs"] == inputs["2_int8-assistant-0"]["assistant"]
    assert "hears" not in inputs["2_int8-deaf_assistant-0"]["assistant"]["restriction"]["agent_0"]
    assert hearing["policy_sha256"] == found["messages-blind-2_int8-assistant-0"]["policy_sha256"]
    text = page.read_text()
    assert "old" not in text
    assert f"| {messages.HEARING} |" in text
    # Robots decide 10 times a second: 3 values of 4 bits, and 2 of 8.
    assert "| 3 int4, once | 12 | 120 |" in text
    assert "| 2 int8, all lost | 16 | 160 |" in text
    assert (page.parent / "images" / "messages_blind.png").stat().st_size > 1000
    figures = json.loads(table("--json", command="messages").out)
    assert {line["variant"]: line["bits_per_step"] for line in figures} == {
        "silent": 0,
        "2 int8": 16,
        "2 int8, all lost": 16,
        "2 int8, 2 steps late": 16,
        "3 int4, once": 12,
        "2 int8, assistant": 16,
        "2 int8, deaf assistant": 16,
    }
    assert all(len(line["scores"]) == 1 for line in figures)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("work/results/*/*.json")}
    assert table(*asked, command="messages").code == 0
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("work/results/*/*.json")}
    assert after == before  # nothing again
    # One that is missing: all that is told of those students is told anew, of the same ones.
    folder = tmp_path / "work" / "results" / "mpe_simple_spread"
    for name in ("2_int8-0", "2_int8-2_steps_late-0"):
        path = folder / f"messages-blind-{name}.json"
        path.write_text(json.dumps(found[path.stem] | {"returns": [0.0] * EPISODES}))
    (folder / "messages-blind-2_int8-all_lost-0.json").unlink()
    assert table(*asked, command="messages").code == 0
    again = message_cells(tmp_path)
    assert {name: cell["returns"] for name, cell in again.items()} == returns


@pytest.mark.parametrize(
    ("command", "option", "name"),
    [
        ("messages", "--teams", "simple_sprea"),
        ("messages", "--variants", "2 int9"),
        ("ablation", "--teams", "simple_sprea"),
        ("ablation", "--variants", "without kul"),
    ],
)
def test_unknown_teams_and_variants(table, command, option, name):
    done = table(option, name, command=command)
    assert done.code == 2
    assert f"'{name}'" in done.err


def test_causes_belong_to_one_team(table, tmp_path):
    full = str(tmp_path / "full.yaml")
    done = table("--teams", full, "--variants", "3 int4, once", command="messages")
    assert done.code == 2
    assert "'3 int4, once'" in done.err


@pytest.mark.parametrize(("key", "empty"), [("causes", "{}"), ("disturbed", "[]")])
def test_a_plan_that_names_an_unknown_team_is_refused(table, tmp_path, key, empty):
    path = tmp_path / "plan.yaml"
    path.write_text(path.read_text().replace(f"{key}:\n", f"{key}:\n    nobody: {empty}\n"))
    done = table(command="messages")
    assert done.code == 2
    for named in (str(path), "messages", key, "'nobody'"):
        assert named in done.err
