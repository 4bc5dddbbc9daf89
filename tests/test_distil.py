"""Distillation from end to end through the command, and the labels that it learns from."""

import json

import pytest
import torch
from helpers import (
    DISTILLATION_RECIPE,
    TASK,
    TEAM_FILE,
    changed,
    make_learner,
    make_teacher,
    write_teacher,
    write_yaml,
)

from kdmarl_core.bundle import read_bundle
from kdmarl_core.distil.expert_buffer import concatenate, label
from kdmarl_core.distil.learner import Recipe
from kdmarl_core.distil.offline import fill_buffer, learn_offline
from kdmarl_core.distil.on_policy import learn_on_policy
from kdmarl_core.distil.run import distil
from kdmarl_core.distil.student import StudentTeam
from kdmarl_core.schema import from_mapping
from kdmarl_core.tasks import make_task
from kdmarl_core.teacher.returns import gae
from kdmarl_core.teacher.rollout import Collector
from kdmarl_core.teacher.teacher import find_teacher, load_teacher
from kdmarl_core.team import load_bundles, load_team

ROBOTS = ["robot_0", "robot_1", "robot_2"]
BFLOAT16 = {"atol": 0.05, "rtol": 0.02}  # the teacher labels at this precision


@pytest.fixture
def team_file(tmp_path):
    """Robots of widths 16, 32 and 8, one of which does not see the others."""
    document = changed(TEAM_FILE, "robots.robot_0.student.width", 16)
    document = changed(document, "robots.robot_1.student.width", 32)
    document = changed(document, "robots.robot_2.sensors", ["position", "landmarks"])
    return write_yaml(tmp_path / "trio.yaml", document)


@pytest.fixture
def distil_command(kdmarl, team_file, tmp_path):
    """Runs `kdmarl distil` with a small recipe and an untrained teacher."""
    teacher = write_teacher(tmp_path / "teacher")
    recipe = write_yaml(tmp_path / "distil.yaml", DISTILLATION_RECIPE)
    common = ["--team", team_file, "--teacher", teacher, "--recipe", recipe]

    def run(*arguments):
        return kdmarl("distil", *common, "--episodes", "4", "--threads", "1", *arguments)

    return run


def test_command_writes_one_bundle_per_robot(distil_command, kdmarl, team_file, tmp_path):
    done = distil_command("--output", "bundles", "--seed", "3", "--json")
    assert done.code == 0, done.err
    figures = json.loads(done.out)
    folder = tmp_path / "work" / "bundles"
    assert sorted(p.name for p in folder.iterdir()) == ROBOTS
    manifests = {name: read_bundle(folder / name)[0] for name in ROBOTS}
    sizes = {name: m.observation_size for name, m in manifests.items()}
    assert sizes == {"robot_0": 14, "robot_1": 14, "robot_2": 8}
    # Two multiply-adds' worth of operations per weight: inputs, two hidden layers, five actions.
    flops = {name: m.student.flops_per_decision for name, m in manifests.items()}
    assert flops == {
        "robot_0": 2 * (14 * 16 + 16 * 16 + 16 * 5),
        "robot_1": 2 * (14 * 32 + 32 * 32 + 32 * 5),
        "robot_2": 2 * (8 * 8 + 8 * 8 + 8 * 5),
    }
    for name, manifest in manifests.items():
        assert figures["robots"][name]["largest_difference"] < 1e-5
        assert figures["robots"][name]["flops_per_decision"] == flops[name]
        assert manifest.team == "trio"
        assert manifest.measured.episodes == 4
        assert manifest.measured.seed == 3
        assert manifest.measured.retention == figures["measured"]["retention"]
        assert manifest.teacher.name == str(tmp_path / "teacher")

    # The figures can be had again from the bundles alone.
    shared = ["--team", team_file, "--teacher", tmp_path / "teacher", "--bundles", "bundles"]
    played = json.loads(
        kdmarl("evaluate", *shared, "--episodes", "4", "--seed", "3", "--json").out
    )
    measured = figures["measured"]
    assert played["players"]["students"]["return"] == measured["student_return"]
    assert played["players"]["teacher"]["return"] == measured["teacher_return"]
    assert played["players"]["random"]["return"] == measured["random_return"]
    assert played["retention"]["value"] == measured["retention"]


def test_the_same_seed_gives_the_same_bundles(distil_command, tmp_path):
    for output, seed in (("first", 0), ("again", 0), ("other", 1)):
        assert distil_command("--output", output, "--seed", seed).code == 0, output
    models = {
        output: [(tmp_path / "work" / output / r / "model.onnx").read_bytes() for r in ROBOTS]
        for output in ("first", "again", "other")
    }
    assert models["first"] == models["again"]
    assert models["first"] != models["other"]


def test_existing_bundles_are_kept_unless_told_otherwise(distil_command, team_file, tmp_path):
    folder = tmp_path / "work" / "bundles"
    folder.mkdir()
    (folder / "note").write_text("mine")
    for option, hint in ([], "--overwrite"), (["--overwrite"], "not replaced"):
        refused = distil_command("--output", "bundles", *option)
        assert refused.code == 2
        assert hint in refused.err
        assert refused.left == ["bundles", "bundles/note"]
    (folder / "note").unlink()
    (folder / "robot_9").mkdir()
    (folder / "robot_9" / "manifest.json").write_text("{}")  # an earlier team's
    assert distil_command("--output", "bundles", "--overwrite").code == 0
    assert sorted(p.name for p in folder.iterdir()) == ROBOTS
    load_bundles(load_team(str(team_file)), folder)


# Labels and learning


@pytest.fixture(scope="module")
def taught():
    """A teacher, its card, a rollout of it, and a small expert buffer."""
    task = make_task(TASK)
    teacher, card = make_teacher(task.spec, width=32)
    collector = Collector(task.spec, task.make_batch(8), task.spec.episode_steps, 0)
    rollout = collector.collect(teacher.logits, 0)
    return task, teacher, card, rollout


def test_labels_are_the_teachers(taught):
    _, teacher, card, rollout = taught
    samples = label(rollout, teacher, card)
    assert len(samples.action) == rollout.action.shape[0] * rollout.action.shape[1]
    expected = teacher.logits(samples.observation, samples.action_mask)
    torch.testing.assert_close(samples.teacher_logits, expected, **BFLOAT16)
    # The advantage: the teacher's critic, the reward in the units of its training, normalised.
    value = teacher.value(rollout.state)
    raw = gae(rollout.reward * card.reward_scale, value, rollout.done, 0.95, 0.95).flatten()
    torch.testing.assert_close(samples.advantage, (raw - raw.mean()) / raw.std(), **BFLOAT16)
    unscaled = gae(rollout.reward, value, rollout.done, 0.95, 0.95).flatten()  # negative control
    wrong = (unscaled - unscaled.mean()) / unscaled.std()
    assert (samples.advantage - wrong).abs().max() > 3 * BFLOAT16["atol"]


def test_samples_keep_together_what_belongs_together(taught):
    _, teacher, card, rollout = taught
    samples = label(rollout, teacher, card)
    both = concatenate([samples, samples.rows(torch.arange(10))])
    for field, part in zip(both, samples, strict=True):
        assert len(field) == len(part) + 10
        assert torch.equal(field[-10:], part[:10])


def test_students_learn_to_do_as_the_teacher_does(taught, team_file):
    task, teacher, card, _ = taught
    torch.manual_seed(0)
    team = load_team(str(team_file))
    students = StudentTeam(team)
    recipe = from_mapping(
        Recipe, changed(DISTILLATION_RECIPE, "offline.updates", 150), "distil.yaml"
    )
    buffer = fill_buffer(task, teacher, card, recipe.offline.buffer_steps, seed=1)
    assert len(buffer.action) >= recipe.offline.buffer_steps
    unseen = fill_buffer(task, teacher, card, 6400, seed=2)

    def agreement():
        chosen = students.policy(unseen.observation, unseen.action_mask).argmax(-1)
        return (chosen == unseen.teacher_logits.argmax(-1)).float().mean(0)

    before = agreement()
    learner = make_learner(students, team, recipe)
    terms = list(learn_offline(learner, buffer, recipe.offline, seed=3))
    after = agreement()
    assert float(terms[-1].kl) < 0.5 * float(terms[0].kl)
    assert (after > before + 0.3).all()
    assert (after[:2] > 0.75).all()  # the third does not see everything that the teacher sees


def test_on_policy_the_students_act_and_the_teacher_labels(team_file):
    """Bad students of a good teacher: what is sampled is bad, what is learnt is good."""
    task = make_task(TASK)
    teacher, card = load_teacher(find_teacher("mpe_simple_spread"), task.spec)
    torch.manual_seed(0)
    document = changed(DISTILLATION_RECIPE, "on_policy.iterations", 12)
    document = changed(document, "on_policy.learning_rate", 1.0e-2)
    recipe = from_mapping(Recipe, document, "distil.yaml")
    team = load_team(str(team_file))
    learner = make_learner(StudentTeam(team), team, recipe)
    done = list(learn_on_policy(learner, task, teacher, card, recipe.on_policy, seed=0))
    terms, returns = zip(*done, strict=True)
    assert returns[0] < -20 < card.evaluation.mean_return - 5
    assert float(terms[-1].kl) < 0.8 * float(terms[0].kl)


@pytest.mark.parametrize(("updates", "iterations"), [(4, 3), (0, 2), (3, 0)])
def test_both_phases_are_gone_through(taught, team_file, updates, iterations):
    """A count of zero switches a phase off."""
    _, teacher, card, _ = taught
    document = changed(DISTILLATION_RECIPE, "offline.updates", updates)
    document = changed(document, "on_policy.iterations", iterations)
    reports = []
    distil(
        load_team(str(team_file)),
        teacher,
        card,
        from_mapping(Recipe, document, "distil.yaml"),
        0,
        lambda phase, done, of, terms, mean_return: reports.append((phase, done, of)),
    )
    expected = [("offline", i + 1, updates) for i in range(updates)]
    expected += [("on-policy", i + 1, iterations) for i in range(iterations)]
    assert reports == expected
