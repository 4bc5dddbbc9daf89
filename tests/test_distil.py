"""Distillation from end to end, through the command, and gone on with after an interruption."""

import dataclasses
import fnmatch
import functools
import json
import math
import signal

import numpy as np
import pytest
import torch
from helpers import (
    DISTILLATION_RECIPE,
    OFF,
    TASK,
    TEAM_FILE,
    changed,
    interrupting,
    make_learner,
    make_teacher,
    write_teacher,
    write_yaml,
)
from safetensors import SafetensorError

from kdmarl_core.bundle import BundlePolicy, read_bundle
from kdmarl_core.distil import run as distil_run
from kdmarl_core.distil.expert_buffer import fill_buffer, load_buffer, plan_buffer
from kdmarl_core.distil.offline import learn_offline
from kdmarl_core.distil.on_policy import OnPolicy
from kdmarl_core.distil.recipe import Recipe, load_recipe
from kdmarl_core.distil.run import Work, discard, distil
from kdmarl_core.distil.student import StudentTeam
from kdmarl_core.export import student_model
from kdmarl_core.metrics import Interval
from kdmarl_core.schema import from_mapping
from kdmarl_core.tasks import make_task
from kdmarl_core.teacher import checkpoint
from kdmarl_core.teacher.checkpoint import CHECKPOINT
from kdmarl_core.teacher.teacher import find_teacher, load_teacher, read_tensors
from kdmarl_core.team import load_team
from kdmarl_core.team_bundles import load_bundles
from kdmarl_ros.cli import main

pytestmark = pytest.mark.usefixtures("simulators_made_once")

ROBOTS = ["robot_0", "robot_1", "robot_2"]
WIDTHS = {"robot_0": 16, "robot_1": 32, "robot_2": 8}
ALL_TERMS = dict.fromkeys(OFF, 0.1) | {"kl": 1.0}


def recipe_document(**changes):
    """The small recipe with the values at dotted paths changed (`__` for the dot)."""
    document = DISTILLATION_RECIPE
    for path, value in changes.items():
        document = changed(document, path.replace("__", "."), value)
    return document


def make_recipe(**changes):
    return from_mapping(Recipe, recipe_document(**changes), "distil.yaml")


def write_team_file(folder, network="mlp", random_features=None):
    """Robots of widths 16, 32 and 8, one of which does not see the others."""
    document = changed(TEAM_FILE, "robots.robot_2.sensors", ["position", "landmarks"])
    for name, width in WIDTHS.items():
        document = changed(
            document, f"robots.{name}.student", {"network": network, "width": width}
        )
        if random_features:
            document = changed(document, f"robots.{name}.random_features", random_features)
    return write_yaml(folder / "trio.yaml", document)


def command(folder):
    """Arguments of a small distillation of an untrained teacher, with files in a folder."""
    write_team_file(folder)
    write_teacher(folder / "teacher")
    write_yaml(folder / "distil.yaml", DISTILLATION_RECIPE)
    return [
        *["distil", "--team", str(folder / "trio.yaml"), "--teacher", str(folder / "teacher")],
        *["--recipe", str(folder / "distil.yaml"), "--episodes", "4", "--threads", "1"],
    ]


@pytest.fixture
def distil_command(kdmarl, tmp_path):
    """Runs `kdmarl distil` on a small scale."""
    return functools.partial(kdmarl, *command(tmp_path))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The models of a run with seed 0 that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*command(folder), "--output", "bundles"]) == 0
    return models(folder / "bundles")


def models(folder):
    """The models of all robots, byte for byte."""
    return [(folder / robot / "model.onnx").read_bytes() for robot in ROBOTS]


def nothing_to_fill(*arguments):
    """In the place of what fills a buffer that is not to be filled."""
    raise AssertionError("the buffer was made")


def checkpoints(left):
    """Those of runs of the team with seed 0, among the files that a command left."""
    return [path for path in left if fnmatch.fnmatch(path, f"runs/distil/trio-0-*/{CHECKPOINT}")]


# The command


@pytest.mark.parametrize(
    ("network", "random_features"), [("mlp", None), ("gru", [4, 6])], ids=["plain", "recurrent"]
)
def test_command_writes_one_bundle_per_robot(
    distil_command, kdmarl, tmp_path, network, random_features
):
    team_file = write_team_file(tmp_path, network, random_features)
    document = recipe_document(offline__weights=ALL_TERMS, on_policy__weights=ALL_TERMS)
    write_yaml(tmp_path / "distil.yaml", document)
    done = distil_command("--output", "bundles", "--seed", "3", "--json")
    assert done.code == 0, done.err
    assert not [path for path in done.left if "checkpoint" in path]
    figures = json.loads(done.out)
    folder = tmp_path / "work" / "bundles"
    assert sorted(p.name for p in folder.iterdir()) == ROBOTS
    manifests = {name: read_bundle(folder / name)[0] for name in ROBOTS}
    told = 1 if random_features is None else 2  # each feature, and whether it is visible
    sizes = {name: m.observation_size for name, m in manifests.items()}
    assert sizes == {"robot_0": told * 14, "robot_1": told * 14, "robot_2": told * 8}
    for name, manifest in manifests.items():
        # Two operations per weight: inputs, a second layer or two times three gates, 5 actions.
        width, core = WIDTHS[name], 1 if network == "mlp" else 6
        flops = 2 * (sizes[name] * width + core * width * width + width * 5)
        assert manifest.student.flops_per_decision == flops
        assert manifest.student.state_size == (width if network == "gru" else 0)
        assert manifest.student.network == network
        assert (manifest.blocks[-1].name == "visible") == (random_features is not None)
        assert figures["robots"][name]["largest_difference"] < 1e-5
        assert figures["robots"][name]["flops_per_decision"] == flops
        assert manifest.team == "trio"
        assert manifest.measured.episodes == 4
        assert manifest.measured.seed == 3
        assert manifest.measured.retention == figures["measured"]["retention"]
        assert manifest.teacher.name == str(tmp_path / "teacher")

    # The figures can be had again from the bundles alone.
    shared = ["--team", team_file, "--teacher", tmp_path / "teacher", "--bundles", "bundles"]
    done = kdmarl("evaluate", *shared, "--episodes", "4", "--seed", "3", "--json")
    assert done.code == 0, done.err
    played, measured = json.loads(done.out), figures["measured"]
    assert played["players"]["students"]["return"] == measured["student_return"]
    assert played["players"]["teacher"]["return"] == measured["teacher_return"]
    assert played["players"]["random"]["return"] == measured["random_return"]
    assert played["retention"]["value"] == measured["retention"]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_seed_gives_the_same_bundles(distil_command, tmp_path, straight, seed):
    assert distil_command("--output", "bundles", "--seed", seed).code == 0
    assert (models(tmp_path / "work" / "bundles") == straight) == (seed == 0)


def test_an_end_of_the_retention_that_is_infinite_is_no_number_of_a_manifest(
    distil_command, tmp_path, monkeypatch
):
    """As where the teacher wins a few games only: the bundle can be read all the same."""
    endless = Interval(2.0, 1.0, math.inf)
    monkeypatch.setattr(distil_run, "normalised_retention", lambda *_: endless)
    done = distil_command("--output", "bundles")
    assert done.code == 0, done.err
    assert "200.0% [100.0, inf]" in done.out
    assert "last longer" not in done.err
    measured = read_bundle(tmp_path / "work" / "bundles" / ROBOTS[0])[0].measured
    assert (measured.retention, measured.retention_low) == (2.0, 1.0)
    assert measured.retention_high is None


def test_who_never_meets_the_end_of_its_episodes_is_told(distil_command):
    done = distil_command("--output", "bundles", "--set", "on_policy.rollout_steps=24")
    assert done.code == 0, done.err
    assert "100% of the students' episodes last longer" in " ".join(done.err.split())


def test_existing_bundles_are_kept_unless_told_otherwise(distil_command, tmp_path):
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
    load_bundles(load_team(str(tmp_path / "trio.yaml")), folder)


def test_a_buffer_is_written_once_and_then_read(distil_command, tmp_path, straight, monkeypatch):
    """The bundles are those that come of a buffer that is made anew."""
    file = tmp_path / "work" / "experts" / "buffer.safetensors"
    assert distil_command("--output", "written", "--buffer", file).code == 0
    content = file.read_bytes()
    monkeypatch.setattr(distil_run, "fill_buffer", nothing_to_fill)
    assert distil_command("--output", "read", "--buffer", file).code == 0
    assert file.read_bytes() == content
    assert models(tmp_path / "work" / "written") == straight
    assert models(tmp_path / "work" / "read") == straight


def test_where_no_buffer_can_be_written_none_is_filled(distil_command, tmp_path, monkeypatch):
    monkeypatch.setattr(distil_run, "fill_buffer", nothing_to_fill)
    refused = distil_command("--output", "bundles", "--buffer", tmp_path / "trio.yaml" / "buffer")
    assert refused.code == 2
    assert f"{tmp_path / 'trio.yaml' / 'buffer'}: cannot be written" in refused.err
    assert not [path for path in refused.left if "bundles" in path]


def test_a_disk_that_is_full_is_one_line(distil_command, tmp_path, monkeypatch):
    def full(*arguments):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("kdmarl_core.distil.expert_buffer.save_file", full)
    refused = distil_command("--output", "bundles", "--buffer", tmp_path / "buffer")
    assert refused.code == 2
    for word in (f"kdmarl: {tmp_path / 'buffer'}: cannot be written", "No space left", "place"):
        assert word in refused.err
    assert not (tmp_path / "buffer").exists()


def test_an_interrupted_command_goes_on(distil_command, tmp_path, straight, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(distil_run, "learn_offline", interrupting(learn_offline, 5))
        stopped = distil_command("--output", "resumed")
    assert stopped.code == 130
    assert "go on with --resume" in " ".join(stopped.err.split())
    assert len(checkpoints(stopped.left)) == 1
    assert "resumed" not in stopped.left
    resumed = distil_command("--output", "resumed", "--resume")
    assert resumed.code == 0, resumed.err
    assert checkpoints(resumed.left) == []
    assert models(tmp_path / "work" / "resumed") == straight


def test_what_was_interrupted_while_it_played_is_not_learned_again(
    distil_command, tmp_path, straight, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(distil_run, "play", interrupting(distil_run.play, 2))
        stopped = distil_command("--output", "resumed")
    assert stopped.code == 130
    assert "go on with --resume" in " ".join(stopped.err.split())
    assert "resumed" not in stopped.left

    def nothing_to_learn(*arguments):
        raise AssertionError("students learned again")

    for name in ("learn_offline", "OnPolicy.iterate"):
        monkeypatch.setattr(f"kdmarl_core.distil.run.{name}", nothing_to_learn)
    resumed = distil_command("--output", "resumed", "--resume")
    assert resumed.code == 0, resumed.err
    assert checkpoints(resumed.left) == []
    assert models(tmp_path / "work" / "resumed") == straight


def test_a_checkpoint_that_was_promised_is_not_begun_anew(distil_command, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(distil_run, "learn_offline", interrupting(learn_offline, 5))
        stopped = distil_command("--output", "first")
    assert stopped.code == 130
    (place,) = checkpoints(stopped.left)
    content = (tmp_path / "work" / place).read_bytes()
    refused = distil_command("--output", "other")
    assert refused.code == 2
    for word in (place.removesuffix(f"/{CHECKPOINT}"), "--resume", "--overwrite"):
        assert word in refused.err
    assert (tmp_path / "work" / place).read_bytes() == content
    assert distil_command("--output", "other", "--overwrite").code == 0


def test_runs_of_one_team_and_seed_are_kept_apart(distil_command, tmp_path, straight, monkeypatch):
    """Another recipe neither meets nor removes the checkpoint of a run that was interrupted."""
    with monkeypatch.context() as patch:
        patch.setattr(distil_run, "learn_offline", interrupting(learn_offline, 5))
        stopped = distil_command("--output", "resumed")
    kept = checkpoints(stopped.left)
    other = distil_command("--output", "other", "--set", "offline.updates=3")
    assert other.code == 0, other.err
    assert checkpoints(other.left) == kept
    assert distil_command("--output", "resumed", "--resume").code == 0
    assert models(tmp_path / "work" / "resumed") == straight


@pytest.mark.parametrize("changed", [("--seed", "1"), ("--set", "offline.updates=3")])
def test_what_was_never_begun_is_not_resumed(distil_command, monkeypatch, changed):
    """A mistyped seed would begin anew, and take hours where minutes are expected."""
    with monkeypatch.context() as patch:
        patch.setattr(distil_run, "learn_offline", interrupting(learn_offline, 5))
        stopped = distil_command("--output", "first")
    (place,) = checkpoints(stopped.left)
    refused = distil_command("--output", "first", "--resume", *changed)
    assert refused.code == 2
    for word in ("no checkpoint", "--resume", place.removesuffix(f"/{CHECKPOINT}")):
        assert word in refused.err
    assert checkpoints(refused.left) == [place]


def test_no_checkpoint_is_promised_where_there_is_none(distil_command, monkeypatch):
    """Ctrl-C while the buffer is filled."""

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(distil_run, "fill_buffer", interrupted)
    stopped = distil_command("--output", "bundles")
    assert stopped.code == 130
    assert "interrupted" in stopped.err
    assert "checkpoint" not in stopped.err
    assert not [path for path in stopped.left if "checkpoint" in path]


# Both phases


@pytest.fixture(scope="module")
def taught():
    """A task, an untrained teacher of clear opinions and its card."""
    task = make_task(TASK)
    return task, *make_teacher(task.spec, width=32)


@pytest.fixture
def make_work(taught, tmp_path):
    """Makes work, small unless told otherwise."""

    def make(network="mlp", seed=0, random_features=None, **changes):
        _, teacher, card = taught
        team = load_team(str(write_team_file(tmp_path, network, random_features)))
        return Work(team, teacher, card, make_recipe(**changes), seed)

    return make


def ignore(*arguments):
    """A report that nobody reads."""


@pytest.mark.parametrize(("updates", "iterations"), [(4, 3), (0, 2), (3, 0)])
def test_both_phases_are_gone_through(make_work, tmp_path, updates, iterations):
    """A count of zero switches a phase off."""
    work = make_work(offline__updates=updates, on_policy__iterations=iterations)
    reports = []

    def report(phase, done, of, terms, mean_return, win_rate):
        reports.append((phase, done, of))
        assert torch.isfinite(torch.stack(list(terms))).all()
        assert (mean_return < 0) == (phase == "on-policy")  # before, nothing was played
        assert not win_rate > 0

    distil(work, report, folder=tmp_path / "run")
    expected = [("offline", i + 1, updates) for i in range(updates)]
    expected += [("on-policy", i + 1, iterations) for i in range(iterations)]
    assert reports == expected
    assert [path.name for path in tmp_path.glob("run/*")] == [CHECKPOINT]


@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_students_learn_to_do_as_the_teacher_does(taught, make_work, network):
    task, teacher, card = taught
    work = make_work(network, offline__updates=150, offline__minibatch=800)
    torch.manual_seed(0)
    students = StudentTeam(work.team)

    def made(seed):
        return fill_buffer(task, teacher, card, plan_buffer(task.spec, card, 1, 3, seed))

    buffer, unseen = made(1), made(2)

    def agreement():
        labels = unseen.labels
        inputs = students.restriction.inputs(unseen.observation.float(), None)
        state = students.initial_state(labels.begins.shape[1])
        with torch.no_grad():
            found = students(inputs, labels.action_mask, labels.begins, state).log_probs
        return (found.argmax(-1) == labels.teacher.argmax(-1)).float().mean((0, 1))

    before = agreement()
    learner = make_learner(students, work.recipe)
    terms = [learn_offline(learner, buffer, work.recipe.offline, i, seed=3) for i in range(150)]
    after = agreement()
    assert float(terms[-1].kl) < 0.5 * float(terms[0].kl)
    assert (after > before + 0.3).all()
    assert (after[:2] > 0.75).all()  # the third does not see everything that the teacher sees


@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_on_policy_the_students_act_and_the_teacher_labels(make_work, network):
    """Bad students of a good teacher: what is sampled is bad, what is learnt is good."""
    task = make_task(TASK)
    teacher, card = load_teacher(find_teacher("mpe_simple_spread"), task.spec)
    phase = make_recipe(on_policy__iterations=12, on_policy__learning_rate=1.0e-2).on_policy
    torch.manual_seed(0)
    learner = make_learner(StudentTeam(make_work(network).team), make_recipe())
    on_policy = OnPolicy(learner, task, teacher, card, phase, torch.zeros(0), seed=0)
    terms, rollouts = zip(*(on_policy.iterate(i) for i in range(12)), strict=True)
    assert rollouts[0].episode_return() < -20 < card.evaluation.mean_return - 5
    assert float(terms[-1].kl) < 0.8 * float(terms[0].kl)
    # Where the students were differs from where the teacher would have been.
    assert not torch.equal(rollouts[0].action, rollouts[1].action)


# Battles: they end early, the dead can do nothing, and whoever tries ends the test


BATTLE = "pymarl/foreign_envs:Battle"


@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_episodes_of_any_length_and_actions_that_are_not_always_legal(tmp_path, network):
    document = {
        "task": BATTLE,
        "teacher": "nobody",
        "defaults": {
            "sensors": ["enemies", "allies", "own"],
            "safe_action": "noop",
            "random_features": [5, 9],
            "student": {"network": network, "width": 12},
        },
        "robots": {f"robot_{i}": {"agent": f"agent_{i}"} for i in range(3)},
    }
    team = load_team(str(write_yaml(tmp_path / "battle.yaml", document)))
    recipe = make_recipe(
        offline__buffer_steps=1,
        offline__updates=10,
        offline__weights=ALL_TERMS,
        on_policy__rollout_steps=12,  # longer than an episode
        on_policy__weights=ALL_TERMS,
    )
    work = Work(team, *make_teacher(team.task.spec, width=32), recipe, 0)
    file, won = tmp_path / "buffer", []
    students = distil(
        work, lambda *r: won.append(r[-1]), folder=tmp_path / "run", buffer_file=file
    )
    assert sum(rate > 0 for rate in won) > 0
    labels = load_buffer(file, work.team.task.spec, work.card, recipe.roles).labels
    assert labels.begins[1:].any()
    assert not labels.action_mask.all()
    assert labels.action_mask.gather(-1, labels.action.long()[..., None]).all()
    exported = distil_run.export(work, students)
    assert all(item.difference < 1e-5 for item in exported)
    played = distil_run.measure(team, work.teacher, exported, 5, seed=0)
    assert played.returns["student"].shape == (5,)


def test_students_whose_rounding_grows_with_time_are_exported(make_work):
    """A recurrent student may be chaotic: each step is compared, not what follows from it."""
    work = make_work("gru")
    torch.manual_seed(0)
    students = StudentTeam(work.team)
    with torch.no_grad():
        students.core.state_weight *= 17
        students.head.weight *= 100
    exported = distil_run.export(work, students)
    assert max(item.difference for item in exported) < 1e-4
    policy = BundlePolicy(exported[0].draft, exported[0].model)
    inputs = torch.randn(60, 1, 3, max(students.restriction.sizes))
    size = policy.manifest.observation_size
    begins = torch.zeros(60, 1, dtype=torch.bool)
    with torch.no_grad():
        expected = students(
            inputs, torch.ones(60, 1, 3, 5, dtype=torch.bool), begins, students.initial_state(1)
        ).logits[:, 0, 0]
    found = np.stack([policy.logits(step[:size].numpy()) for step in inputs[:, 0, 0]])
    assert np.abs(found - expected.numpy()).max() > 1e-3  # or this tests nothing


# Interruption


def small(make_work, network, seed=0):
    """All terms, so that heads and all of the optimiser's state matter."""
    return make_work(
        network,
        seed,
        [4, 6] if network == "gru" else None,
        offline__updates=5,
        offline__weights=ALL_TERMS,
        on_policy__weights=ALL_TERMS,
    )


def weights(students):
    return [student_model(students.layers(index)) for index in range(3)]


def interrupt_at(phase, number):
    """A report during which Ctrl-C is pressed."""

    def report(now, done, *rest):
        if (now, done) == (phase, number):
            signal.raise_signal(signal.SIGINT)

    return report


@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_what_was_interrupted_ends_as_if_it_had_not_been(make_work, tmp_path, network):
    """In either phase, between them, and more than once."""
    work, folder = small(make_work, network), tmp_path / "run"
    expected = weights(distil(work, ignore, folder=tmp_path / "other"))
    for number, (phase, done) in enumerate(
        [("offline", 3), ("offline", 5), ("on-policy", 2)], start=1
    ):
        with pytest.raises(KeyboardInterrupt):
            distil(work, interrupt_at(phase, done), folder=folder, resume=number > 1)
        assert [path.name for path in folder.iterdir()] == [CHECKPOINT]
    reports = []
    found = distil(work, lambda *r: reports.append(r[:2]), folder=folder, resume=True)
    assert weights(found) == expected
    assert reports == [("on-policy", 3)]
    assert weights(distil(work, ignore, folder=folder, resume=True)) == expected  # nothing again
    discard(folder)
    assert not folder.exists()


def test_what_was_killed_goes_on_from_the_last_checkpoint(make_work, tmp_path, monkeypatch):
    """Without any chance to write one more."""
    work, folder = small(make_work, "mlp"), tmp_path / "run"
    expected = weights(distil(work, ignore, folder=folder))
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)

    def kill(phase, done, *rest):
        if (phase, done) == ("on-policy", 2):
            raise SystemExit

    with pytest.raises(SystemExit):
        distil(work, kill, folder=folder)
    reports = []
    found = distil(work, lambda *r: reports.append(r[:2]), folder=folder, resume=True)
    assert weights(found) == expected
    assert reports == [("on-policy", 2), ("on-policy", 3)]


def test_without_resume_it_begins_afresh(make_work, tmp_path):
    work, folder = small(make_work, "mlp"), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        distil(work, interrupt_at("offline", 3), folder=folder)
    reports = []
    distil(work, lambda *r: reports.append(r[:2]), folder=folder)
    assert reports[0] == ("offline", 1)


def another_teacher(work, tmp_path):
    return work._replace(card=dataclasses.replace(work.card, weights_sha256="ab" * 32)), None


def another_team(work, tmp_path):
    document = changed(TEAM_FILE, "robots.robot_2.sensors", ["position", "landmarks"])
    path = write_yaml(tmp_path / "other.yaml", document)  # of other widths
    return work._replace(team=load_team(str(path))), None


def another_recipe(work, tmp_path):
    phase = dataclasses.replace(work.recipe.offline, learning_rate=0.5)
    return work._replace(recipe=dataclasses.replace(work.recipe, offline=phase)), None


def another_seed(work, tmp_path):
    return work._replace(seed=1), None


def another_buffer(work, tmp_path):
    """Read from a file that was made with another seed."""
    file = tmp_path / "buffer"
    with pytest.raises(KeyboardInterrupt):
        distil(
            work._replace(seed=1),
            interrupt_at("offline", 1),
            folder=tmp_path / "elsewhere",
            buffer_file=file,
        )
    return work, file


@pytest.mark.parametrize(
    "change", [another_teacher, another_team, another_recipe, another_seed, another_buffer]
)
def test_a_checkpoint_of_other_work_is_refused(make_work, tmp_path, refusal, change):
    work, folder = small(make_work, "mlp"), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        distil(work, interrupt_at("offline", 2), folder=folder)
    content = (folder / CHECKPOINT).read_bytes()
    other, buffer_file = change(work, tmp_path)
    message = refusal(distil, other, ignore, folder=folder, resume=True, buffer_file=buffer_file)
    assert message.startswith(f"{folder / CHECKPOINT}: ")
    assert "another recipe, seed, team, teacher, opponent or buffer" in message
    assert "without --resume" in message
    assert (folder / CHECKPOINT).read_bytes() == content


def test_more_environments_than_there_may_be_are_refused_before_a_buffer_is_filled(
    make_work, tmp_path, refusal
):
    work = make_work(on_policy__num_envs=9)
    task = work.team.task
    few = dataclasses.replace(task, spec=dataclasses.replace(task.spec, most_envs=8))
    work = work._replace(team=dataclasses.replace(work.team, task=few))
    message = refusal(
        distil, work, ignore, folder=tmp_path / "run", on_buffer=lambda *_: pytest.fail("filled")
    )
    assert message.startswith("on_policy.num_envs: 9 copies of mpe/simple_spread ")
    assert "at most 8" in message


@pytest.mark.parametrize(
    ("phase", "said", "reported", "kept"),
    [("offline", "at update 1; lower", 1, 0), ("on_policy", "at update 6; lower", 5, 4)],
)
def test_a_loss_that_is_not_finite_leaves_what_was_good_last(
    make_work, tmp_path, refusal, monkeypatch, phase, said, reported, kept
):
    """A learning rate beyond all measure spoils the weights with one step; the next one tells.

    What is kept is from before that step, whether a checkpoint was due since or not.
    """
    changes = {f"{phase}__learning_rate": 1.0e30}
    work, folder = make_work(offline__updates=5, **changes), tmp_path / "run"
    reports = []
    message = refusal(distil, work, lambda *r: reports.append(r[:2]), folder=folder)
    assert f"are not finite {said} the learning rate, now " in message
    assert "term kl" in message
    assert message.endswith(f"; {folder / CHECKPOINT} keeps what was good last")
    assert len(reports) == reported
    tensors, metadata = read_tensors(folder / CHECKPOINT)
    assert json.loads(metadata["progress"])["iteration"] == kept
    assert all((tensor.float().abs() < 1e3).all() for tensor in tensors.values())
    if kept:  # what was there after so many iterations
        with pytest.raises(KeyboardInterrupt):
            distil(work, interrupt_at("offline", kept), folder=tmp_path / "other")
        whole, _ = read_tensors(tmp_path / "other" / CHECKPOINT)
        assert set(whole) == set(tensors)
        assert all(torch.equal(whole[name], tensor) for name, tensor in tensors.items())
    assert refusal(distil, work, ignore, folder=folder, resume=True) == message
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    assert refusal(distil, work, ignore, folder=folder) == message
    again, _ = read_tensors(folder / CHECKPOINT)
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def test_the_last_step_of_all_is_looked_at_as_well(make_work, tmp_path, refusal):
    work = make_work(offline__updates=1, offline__learning_rate=1.0e30, on_policy__iterations=0)
    message = refusal(distil, work, ignore, folder=tmp_path)
    assert "are not finite after update 0; lower the learning rate" in message
    tensors, _ = read_tensors(tmp_path / CHECKPOINT)
    assert all((tensor.float().abs() < 1e3).all() for tensor in tensors.values())


def test_recipes_that_build_on_each_other(tmp_path, refusal):
    """What a recipe does not say stands in its base, a shipped one or a file beside it."""
    shipped = load_recipe("distil")
    short = {"base": "distil", "on_policy": {"iterations": 7, "weights": {"role": 0.5}}}
    path = write_yaml(tmp_path / "short.yaml", short)
    shorter = {"base": "short.yaml", "offline": {"updates": 3}}
    recipe = load_recipe(str(write_yaml(tmp_path / "shorter.yaml", shorter)))
    assert (recipe.on_policy.iterations, recipe.offline.updates) == (7, 3)
    assert recipe.on_policy.weights == dataclasses.replace(shipped.on_policy.weights, role=0.5)
    assert recipe.offline.weights == shipped.offline.weights
    write_yaml(path, {"base": "distill"})
    message = refusal(load_recipe, str(path))
    assert message.startswith(f"{path}: base: ")
    assert "did you mean distil" in message
