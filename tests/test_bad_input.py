"""Bad input to the commands: one line with file, key, value and remedy, exit code 2, no traces.

Every case begins with files that are all in order, and spoils one thing.
"""

import hashlib
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import (
    DISTILLATION_RECIPE,
    TASK,
    TEAM_FILE,
    TRAINING_RECIPE,
    changed,
    make_manifest,
    make_model,
    name_of_case,
    renamed,
    write_teacher,
    write_yaml,
)

from kdmarl_core.bundle import MANIFEST, MODEL, write_bundle
from kdmarl_core.teacher.teacher import CARD, WEIGHTS, read_tensors
from kdmarl_ros.deployment import plan_swarm

pytestmark = pytest.mark.usefixtures("simulators_made_once")

BLOCKS = [("velocity", 2), ("position", 2), ("landmarks", 6), ("others", 4)]
NODE = "/robot_1/policy"
PARAMETERS = {"ros__parameters": {"mode": "lock_step", "timeout_s": 0.5}}


@dataclass(frozen=True)
class Workshop:
    """Everything that the commands need, small and valid."""

    root: Path

    def file(self, name):
        return self.root / name

    def __getattr__(self, name):
        return self.root / name

    def train(self, *arguments):
        recipe = self.root / "recipe.yaml"
        return ["train", TASK, "--recipe", recipe, "--output", "out", *arguments]

    def distil(self, *arguments):
        return [
            *["distil", "--team", self.root / "team.yaml", "--teacher", self.root / "teacher"],
            *["--recipe", self.root / "distil.yaml", "--output", "out", *arguments],
        ]

    def evaluate(self, *arguments):
        return [
            *["evaluate", "--team", self.root / "team.yaml", "--teacher", self.root / "teacher"],
            *["--bundles", self.root / "bundles", "--episodes", "2", *arguments],
        ]

    def swarm(self, *arguments):
        return [
            *["swarm", "--team", self.root / "team.yaml", "--bundles", self.root / "bundles"],
            *["--robots", self.root / "robots", "--output", "out", *arguments],
        ]

    def hashes(self):
        """Every file with its content: what must not change."""
        return {
            path: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            for path in self.root.rglob("*")
        }


def write_files(root):
    write_yaml(root / "team.yaml", TEAM_FILE)
    write_yaml(root / "recipe.yaml", TRAINING_RECIPE)
    write_yaml(root / "distil.yaml", DISTILLATION_RECIPE)
    write_teacher(root / "teacher")
    (root / "robots").mkdir()
    write_yaml(root / "robots" / "all.yaml", {"/**/policy": {"ros__parameters": {}}})
    for index in range(3):
        robot = f"robot_{index}"
        write_yaml(root / "robots" / f"{robot}.yaml", {f"/{robot}/policy": PARAMETERS})
        folder = root / "bundles" / robot
        folder.mkdir(parents=True)
        manifest = make_manifest(BLOCKS, robot=robot, agent=f"agent_{index}")
        write_bundle(folder, manifest, make_model(manifest, index))


@pytest.fixture
def workshop(tmp_path):
    root = tmp_path / "workshop"
    root.mkdir()
    write_files(root)
    return Workshop(root)


@pytest.fixture
def refused(kdmarl, workshop):
    """Runs a command that must refuse; returns its one line."""

    def run(arguments):
        before = workshop.hashes()
        done = kdmarl(*arguments)
        assert done.code == 2, done
        assert done.out == ""
        assert done.err.startswith("kdmarl: ")
        assert done.err.endswith("\n")
        assert len(done.err.splitlines()) == 1, done.err
        assert done.left == []
        assert workshop.hashes() == before
        return done.err

    return run


def spoil(document, change, *arguments):
    """Spoils a YAML document of the workshop."""
    return lambda workshop, name: write_yaml(workshop.file(name), change(document, *arguments))


def test_the_workshop_is_in_order(kdmarl, workshop):
    """Negative control: what the cases below spoil works as long as it is not spoilt."""
    done = kdmarl(*workshop.evaluate("--json"))
    assert done.code == 0, done.err
    assert set(json.loads(done.out)["players"]) == {"students", "teacher", "random"}
    deployment = plan_swarm(
        str(workshop.file("team.yaml")),
        bundles=str(workshop.bundles),
        robots=str(workshop.robots),
        episodes=1,
        seed=0,
        results=workshop.file("episodes.jsonl"),
    )
    assert [process.label for process in deployment.processes] == [
        *["robot_0", "robot_1", "robot_2"],
        "bridge",
    ]


# Names on the command line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "mpe/simple_sprea"], ["'mpe/simple_sprea'", "did you mean mpe/simple_spread"]),
        (["train", "chess"], ["'chess'", "mpe/simple_spread"]),
        (["train", TASK, "--recipe", "none.yaml"], ["none.yaml", "no such file"]),
        (["train", TASK, "--recipe", "mpe_simple_spred"], ["did you mean mpe_simple_spread"]),
        (["train", TASK, "--recipe", "my/recipe"], ["recipe 'my/recipe'", "must end in .yaml"]),
        (["train", TASK, "--recipe", "smax_3m"], ["smax_3m.yaml: task: 'smax/3m' is not"]),
        (
            ["train", TASK, "--network", "units"],
            ["mpe_simple_spread.yaml with --network units: architecture: network: 'units'"],
        ),
        (
            ["train", "smax/5m_vs_6m", "--recipe", "smax_5m_vs_6m_followed", "--env-steps", "9"],
            ["smax_5m_vs_6m_followed.yaml with --env-steps 9: followers: iterations_alone: 40"],
        ),
        (["keygen", "."], ["'.'", "name"]),
        (["keygen", ".."], ["'..'", "name"]),
        (["distil", "--team", "simple_spred"], ["'simple_spred'", "did you mean simple_spread"]),
        (["distil", "--team", "none.yaml"], ["none.yaml", "no such file"]),
        (["distil", "--team", "simple_spread", "--teacher", "nobody"], ["unknown teacher"]),
        (["distil", "--team", "simple_spread", "--teacher", "a" * 300], ["a" * 300]),
        (
            ["distil", "--team", "simple_spread", "--teacher", "runs/train/mine"],
            ["runs/train/mine: holds no card.json", "kdmarl train", "mpe_simple_spread"],
        ),
        (["distil", "--team", "simple_spread", "--recipe", "."], ["unknown recipe '.'", "distil"]),
        (["distil", "--team", "simple_spread", "--recipe", "distl"], ["did you mean distil"]),
        (["distil", "--team", "simple_spread", "--recipe", "none.yaml"], ["none.yaml", "no such"]),
        (["evaluate", "--team", "spread"], ["'spread'", "did you mean simple_spread"]),
        (["evaluate", "--team", "a\nb"], ["unknown team", "simple_spread"]),
        (["evaluate", "--team", "teams/mine"], ["team 'teams/mine'", "must end in .yaml"]),
        (
            ["distil", "--team", "simple_spread", "--recipe", "my/recipe"],
            ["recipe 'my/recipe'", "must end in .yaml"],
        ),
        (
            ["distil", "--team", "simple_spread", "--set", f"on_policy.num_envs={10**20}"],
            ["on_policy", "num_envs", "at most"],
        ),
        (
            ["distil", "--team", "simple_spread", "--set", f"common_width={10**20}"],
            ["common_width", "at most"],
        ),
        (
            ["distil", "--team", "simple_spread", "--set", f"offline.minibatch={10**20}"],
            ["offline", "minibatch", "at most"],
        ),
        (
            [
                "evaluate",
                "--team",
                "simple_spread_lh_messages",
                "--players",
                "random",
                "--message-loss",
                "0.3",
            ],
            ["--message-loss", "students"],
        ),
        (["evaluate", "--team", "simple_spread"], ["runs/bundles/simple_spread", "kdmarl distil"]),
        (["evaluate", "--team", "simple_spread", "--bundles", "b" * 300], ["b" * 300]),
        (["swarm", "--team", "simple_spred"], ["did you mean simple_spread"]),
        (["swarm", "--team", "simple_spread"], ["runs/bundles/simple_spread", "kdmarl distil"]),
    ],
)
def test_unknown_names(refused, arguments, words):
    line = refused(arguments)
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["train"], ["evaluate", "--team", "x", "--episodes", "0"]]
)
def test_wrong_usage(arguments, kdmarl, capfd):
    """argparse's own: usage and one line, the same exit code."""
    with pytest.raises(SystemExit) as ended:
        kdmarl(*arguments)
    assert ended.value.code == 2
    assert "error: " in capfd.readouterr().err.splitlines()[-1]


# Team files


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((changed, "task", "mpe/simple_tag"), ["task", "'mpe/simple_tag'", "mpe/simple_spread"]),
        ((changed, "task", None), ["missing key 'task'"]),
        ((changed, "robots", None), ["missing key 'robots'"]),
        (
            (renamed, "robots.robot_0.safe_action", "safe_acton"),
            ["'safe_acton'", "did you mean safe_action"],
        ),
        ((changed, "robots.robot_0.safe_action", "hover"), ["safe_action", "'hover'", "stay"]),
        ((changed, "task", 7), ["task", "7"]),
        ((changed, "robots", []), ["robots", "a mapping"]),
        ((changed, "robots", {}), ["robots", "agent_0"]),
        ((changed, "robots.robot_1", None), ["robots", "agent_1"]),
        ((changed, "robots.robot_1.agent", "agent_7"), ["robot_1", "'agent_7'", "did you mean"]),
        ((changed, "robots.robot_1.agent", "agent_0"), ["robots", "agent_1", "once"]),
        ((renamed, "robots.robot_1.agent", "agnet"), ["robot_1", "'agnet'", "did you mean agent"]),
        ((changed, "robots.robot_1.sensors", ["positon"]), ["robot_1: sensors", "'positon'"]),
        ((changed, "robots.robot_1.sensors", ["position"] * 2), ["robot_1: sensors", "once"]),
        ((changed, "robots.robot_1.sensors", []), ["robot_1: sensors", "at least one"]),
        ((changed, "robots.robot_1.sensors", "position"), ["robot_1: sensors", "a list"]),
        ((changed, "robots.robot_1.student.width", 0), ["robot_1: student: width", "0", "1"]),
        ((changed, "robots.robot_1.student.width", 3.5), ["student: width", "3.5", "whole"]),
        ((changed, "robots.robot_1.student.network", "lstm"), ["network", "'lstm'", "mlp", "gru"]),
        ((changed, "robots.robot_1.student.network", "gru"), ["network", "'gru', 'mlp'", "mixed"]),
        ((changed, "robots.robot_1.random_features", [9]), ["robot_1: random_features", "[9]"]),
        ((changed, "robots.robot_1.random_features", [2, 3, 4]), ["[2, 3, 4]", "two numbers"]),
        ((changed, "robots.robot_1.random_features", [0, 3]), ["random_features", "[0, 3]"]),
        (
            (changed, "robots.robot_1.random_features", [4, 3]),
            ["[4, 3]", "the least and the most"],
        ),
        ((changed, "robots.robot_1.random_features", 8), ["random_features", "a list", "8"]),
        ((changed, "robots.robot_1.random_features", [8.5, 9]), ["random_features", "8.5"]),
        ((changed, "robots.robot_1.random_features", [True, 9]), ["random_features", "True"]),
        ((changed, "base", "simple_spred"), ["base", "'simple_spred'", "did you mean simple_spr"]),
        ((changed, "base", 7), ["base", "unknown team '7'"]),
        ((changed, "defaults", ["mlp"]), ["defaults", "a mapping", "['mlp']"]),
        ((changed, "defaults", {"widht": 8}), ["robot_0", "'widht'"]),
        ((changed, "recipe", 5), ["recipe", "a text", "5"]),
        ((renamed, "robots.robot_1", "Robot 1"), ["robots: Robot 1", "namespace"]),
        ((renamed, "robots.robot_1", "robot_é"), ["robots: robot_é", "namespace"]),
        ((renamed, "robots.robot_1", 1), ["robots", "a text", "1"]),
    ],
    ids=name_of_case,
)
@pytest.mark.parametrize("command", ["distil", "swarm"])
def test_team_files(workshop, refused, command, change, words):
    spoil(TEAM_FILE, *change)(workshop, "team.yaml")
    line = refused(getattr(workshop, command)())
    assert line.startswith(f"kdmarl: {workshop.file('team.yaml')}: ")
    for word in words:
        assert word in line


def test_teams_that_build_on_each_other(workshop, refused):
    """A base that is not there, is broken, or leads back."""
    path, base = workshop.file("team.yaml"), workshop.file("base.yaml")
    document = changed(TEAM_FILE, "base", str(base))
    write_yaml(path, document)
    assert f"{base}: no such file" in refused(workshop.distil())
    base.write_bytes(b"robots: [")
    assert refused(workshop.distil()).startswith(f"kdmarl: {base}: not valid YAML")
    for leads_back in (str(path), str(base)):
        write_yaml(base, changed(TEAM_FILE, "base", leads_back))
        line = refused(workshop.distil())
        assert line.startswith(f"kdmarl: {base}: base: '{leads_back}' leads back")
    write_yaml(base, TEAM_FILE)
    write_yaml(path, {"base": str(base), "robots": {"robot_1": {"agent": "agent_0"}}})
    line = refused(workshop.distil())
    assert line.startswith(f"kdmarl: {path}: robots: agents ['agent_0', 'agent_0', 'agent_2']")


@pytest.mark.parametrize("name", ["team.yaml", "distil.yaml", "recipe.yaml"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"robots: [", ["not valid YAML"]),
        (b"- just a list", ["expected a mapping"]),
        (b"", ["expected a mapping"]),
        (b"\x89PNG\r\n", ["cannot be read"]),
    ],
)
def test_files_that_are_not_what_they_should_be(workshop, refused, name, content, words):
    workshop.file(name).write_bytes(content)
    line = refused(workshop.train() if name == "recipe.yaml" else workshop.distil())
    assert line.startswith(f"kdmarl: {workshop.file(name)}: ")
    for word in words:
        assert word in line


# Recipes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((changed, "clip", None), ["missing key 'clip'"]),
        ((renamed, "epochs", "epoch"), ["'epoch'", "did you mean epochs"]),
        ((changed, "task", "mpe/simple_tag"), ["task", "'mpe/simple_tag'", TASK]),
        ((changed, "env_steps", 0), ["env_steps", "0"]),
        ((changed, "num_envs", -4), ["num_envs", "-4"]),
        ((changed, "minibatches", 3), ["minibatches", "3", "400"]),
        ((changed, "learning_rate", -0.5), ["learning_rate", "-0.5"]),
        ((changed, "learning_rate", float("nan")), ["learning_rate", "nan"]),
        ((changed, "final_learning_rate", -0.5), ["final_learning_rate", "-0.5"]),
        ((changed, "clip", 0.0), ["clip", "0.0"]),
        ((changed, "max_grad_norm", 0.0), ["max_grad_norm", "0.0"]),
        ((changed, "gamma", 1.5), ["gamma", "1.5"]),
        ((changed, "gae_lambda", -0.1), ["gae_lambda", "-0.1"]),
        ((changed, "precision", "float16"), ["precision", "'float16'", "bfloat16"]),
        ((changed, "architecture.width", 0), ["architecture", "width", "0"]),
        ((changed, "architecture", 256), ["architecture", "256"]),
    ],
    ids=name_of_case,
)
def test_training_recipes(workshop, refused, change, words):
    spoil(TRAINING_RECIPE, *change)(workshop, "recipe.yaml")
    line = refused(workshop.train())
    assert line.startswith(f"kdmarl: {workshop.file('recipe.yaml')}: ")
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((changed, "temperature", 0.0), ["temperature", "0.0"]),
        ((changed, "temperature", "warm"), ["temperature", "'warm'"]),
        ((changed, "offline", None), ["missing key 'offline'"]),
        ((changed, "offline.minibatch", 0), ["offline", "minibatch", "0"]),
        ((changed, "offline.buffer_steps", 0), ["offline", "buffer_steps", "0"]),
        ((changed, "offline.updates", -1), ["offline", "updates", "-1"]),
        ((changed, "offline.weights.kl", -1.0), ["offline", "weights", "kl", "-1.0"]),
        ((renamed, "offline.weights.ppo", "pppo"), ["weights", "'pppo'", "did you mean ppo"]),
        ((changed, "on_policy.minibatches", 0), ["on_policy", "minibatches", "0"]),
        ((changed, "on_policy.num_envs", 0), ["on_policy", "num_envs", "0"]),
        ((changed, "on_policy.rollout_steps", 0), ["on_policy", "rollout_steps", "0"]),
        ((changed, "on_policy.epochs", 0), ["on_policy", "epochs", "0"]),
        ((changed, "on_policy.learning_rate", 0.0), ["on_policy", "learning_rate", "0.0"]),
    ],
    ids=name_of_case,
)
def test_distillation_recipes(workshop, refused, change, words):
    spoil(DISTILLATION_RECIPE, *change)(workshop, "distil.yaml")
    line = refused(workshop.distil())
    assert line.startswith(f"kdmarl: {workshop.file('distil.yaml')}: ")
    for word in words:
        assert word in line


# Teachers and checkpoints


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-200])


def edit_json(path, change, *arguments):
    path.write_text(json.dumps(change(json.loads(path.read_text()), *arguments)))


@pytest.mark.parametrize(
    ("damage", "file", "words"),
    [
        (lambda t: cut_short(t / WEIGHTS), WEIGHTS, ["copy it again"]),
        (lambda t: (t / WEIGHTS).unlink(), WEIGHTS, ["no such file"]),
        (lambda t: cut_short(t / CARD), CARD, ["not valid JSON"]),
        (
            lambda t: edit_json(t / CARD, changed, "task", "mpe/simple_tag"),
            CARD,
            ["mpe/simple_ta"],
        ),
        (lambda t: edit_json(t / CARD, changed, "state_size", 99), CARD, ["99", "55"]),
        (lambda t: edit_json(t / CARD, changed, "architecture.width", 8), WEIGHTS, ["not fit"]),
        (lambda t: edit_json(t / CARD, renamed, "gamma", "gama"), CARD, ["did you mean gamma"]),
    ],
    ids=["weights cut", "no weights", "card cut", "task", "sizes", "width", "key"],
)
@pytest.mark.parametrize("command", ["distil", "evaluate"])
def test_teachers(workshop, refused, command, damage, file, words):
    damage(workshop.teacher)
    line = refused(getattr(workshop, command)())
    assert line.startswith(f"kdmarl: {workshop.teacher / file}: ")
    for word in words:
        assert word in line


@pytest.fixture
def trained(kdmarl, workshop):
    """A finished run with its checkpoint, in the workshop."""
    folder = workshop.file("run")
    done = kdmarl(*workshop.train("--output", folder, "--episodes", 1, "--threads", 1))
    assert done.code == 0, done.err
    return folder / "checkpoint.safetensors"


def test_checkpoints(workshop, refused, trained):
    """Resuming needs the whole checkpoint of the same recipe and seed."""
    resume = workshop.train("--resume", "--output", trained.parent)
    line = refused([*resume, "--seed", "1"])
    assert line.startswith(f"kdmarl: {trained}: ")
    assert "seed 0, now 1" in line
    line = refused([*resume, "--env-steps", "800"])
    assert line.startswith(f"kdmarl: {trained}: ")
    assert "recipe" in line
    whole = trained.read_bytes()
    for broken in (whole[:-100], whole[:50], b"", b"\xff" * 1000):
        trained.write_bytes(broken)
        line = refused(resume)
        assert line.startswith(f"kdmarl: {trained}: ")
        assert "cut short" in line


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--set", "offline.updtes=3"], ["offline", "'updtes'", "did you mean updates"]),
        (["--set", "offline.updates=-3"], ["offline", "updates", "-3"]),
        (["--set", "temperature.kl=3"], ["'temperature.kl=3'", "'temperature' holds no keys"]),
        (["--set", "temperature"], ["'temperature'", "KEY=VALUE"]),
        (["--set", "temperature=[1"], ["'[1' is not a YAML value"]),
        (["--set", "temperature=2024-13-45"], ["'2024-13-45' is not a YAML value"]),
        (["--set", "temperature=-1e-3"], ["temperature", "-0.001 must be above 0"]),
        (["--set", "roles=10000"], ["roles: 10000 is above 1000"]),
        (["--set", "offline.updates=0", "on_policy.iterations=0"], ["offline.updates and", "0"]),
        (["--set", "on_policy.num_envs=1", "on_policy.rollout_steps=1"], ["rollout_steps: 1 in"]),
        (["--set", "roles=10000", "--set", "offline.updates=3"], ["roles: 10000 is above 1000"]),
        (["--without", "kll"], ["unknown term 'kll'", "did you mean kl"]),
        (["--without", "kl", "ppo", "cross_entropy"], ["all weights are 0"]),
        (["--without", "kl", "--without", "ppo", "cross_entropy"], ["all weights are 0"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else None,
)
def test_changes_of_the_distillation_recipe(workshop, refused, option, words):
    line = refused(workshop.distil(*option))
    for word in words:
        assert word in line


def test_expert_buffers(workshop, refused):
    """What is named as a buffer and is none."""
    file = workshop.file("team.yaml")
    line = refused(workshop.distil("--buffer", file))
    assert line.startswith(f"kdmarl: {file}: damaged or cut short")
    file = workshop.teacher / WEIGHTS
    line = refused(workshop.distil("--buffer", file))
    assert line == f"kdmarl: {file}: not an expert buffer; name another --buffer file\n"
    line = refused(workshop.distil("--buffer", workshop.teacher))
    assert line.startswith(f"kdmarl: {workshop.teacher}: ")


def test_the_folder_of_a_run_is_not_its_teacher(workshop, refused):
    """`kdmarl train` leaves a checkpoint, and beside it the teacher."""
    line = refused(workshop.distil("--teacher", workshop.root))
    teacher = workshop.file("teacher")
    assert line == f"kdmarl: {workshop.root}: holds no card.json; give {teacher}\n"


def test_an_expert_buffer_of_another_teacher(kdmarl, workshop, refused):
    file = workshop.file("buffer")
    made = workshop.distil("--buffer", file, "--output", workshop.file("out"), "--episodes", 1)
    done = kdmarl(*made)
    assert (done.code, done.left) == (0, [])
    line = refused(workshop.distil("--buffer", file, "--teacher", "mpe_simple_spread"))
    assert line.startswith(f"kdmarl: {file}: teacher: the expert buffer was made with '")
    assert line.endswith("; name another --buffer file, or remove this one\n")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("offline.buffer_steps=100000000000000", ["offline.buffer_steps: ", "GB", "at most"]),
        ("offline.minibatch=1000000000000000", ["not enough memory (", "choose smaller"]),
    ],
)
def test_more_than_the_machine_holds(workshop, refused, change, words):
    line = refused(workshop.distil("--set", change))
    for word in words:
        assert word in line


def test_a_teacher_of_another_task(workshop, refused):
    """Also one whose network this task cannot have."""
    for teacher in ("smax_3m", "smax_3m_plain"):
        line = refused(workshop.distil("--teacher", teacher))
        assert f"{teacher}/{CARD}: task is 'smax/3m'" in line


def test_a_loss_that_is_not_finite_in_training(kdmarl, workshop):
    """The last good checkpoint stays, and no teacher is written."""
    recipe = write_yaml(workshop.file("wild.yaml"), TRAINING_RECIPE | {"learning_rate": 1.0e30})
    folder = workshop.file("wild")
    done = kdmarl(*workshop.train("--recipe", recipe, "--output", folder, "--threads", 1))
    assert done.code == 2
    assert re.search(r"loss: .* not finite at iteration \d+; lower the learning rate", done.err)
    assert f"{folder / 'checkpoint.safetensors'} keeps what was good last" in done.err
    tensors, _ = read_tensors(folder / "checkpoint.safetensors")
    assert all((tensor.float().abs() < 1e3).all() for tensor in tensors.values())
    assert not (folder / "teacher").exists()


def test_a_task_without_a_recipe_of_its_own(refused):
    line = refused(["train", "mpe/simple_spread_30"])
    assert line.startswith("kdmarl: mpe/simple_spread_30: no recipe ships for this task")
    assert "--recipe FILE" in line


def test_what_is_refused_replaces_nothing(workshop, refused, trained):
    """Neither the event files nor the teacher of the run before."""
    arguments = ["--output", trained.parent, "--overwrite", "--network", "units"]
    before = {path: path.read_bytes() for path in trained.parent.rglob("*") if path.is_file()}
    assert "'units'" in refused(workshop.train(*arguments))
    assert before == {p: p.read_bytes() for p in trained.parent.rglob("*") if p.is_file()}
    assert any("tfevents" in path.name for path in before)


def test_messages_that_no_gradient_would_follow(workshop, refused):
    """A rollout whose length has no divisor above the delay."""
    talking = changed(TEAM_FILE, "defaults", {"messages": {"size": 1, "to": "all"}})
    write_yaml(workshop.file("team.yaml"), talking)
    line = refused(workshop.distil("--set", "on_policy.rollout_steps=29"))
    assert "rollout_steps: 29 can be cut into parts of 1 steps" in line
    assert line.endswith("give 50\n")


def test_messages_of_those_who_are_silent(workshop, refused):
    line = refused(workshop.evaluate("--message-loss", "0.5"))
    assert line.startswith(f"kdmarl: {workshop.file('team.yaml')}: robots: nobody has 'messages'")


def test_resuming_what_was_never_begun(workshop, refused):
    line = refused(workshop.train("--resume"))
    assert "out/checkpoint.safetensors" in line
    assert "no such file" in line


# Bundles


def swap(bundles, name):
    """Exchanges one file, or the whole bundle, of two robots."""
    first, second = (bundles / robot / name for robot in ("robot_0", "robot_1"))
    aside = bundles / "aside"
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


@pytest.mark.parametrize(
    ("damage", "place", "words"),
    [
        (lambda b: cut_short(b / "robot_1" / MODEL), f"robot_1/{MODEL}", ["bytes", "copy"]),
        (lambda b: (b / "robot_1" / MODEL).unlink(), f"robot_1/{MODEL}", ["cannot be read"]),
        (lambda b: cut_short(b / "robot_1" / MANIFEST), f"robot_1/{MANIFEST}", ["JSON", "again"]),
        (lambda b: swap(b, MODEL), f"robot_0/{MODEL}", ["SHA-256", "copy"]),
        (lambda b: swap(b, ""), f"robot_0/{MANIFEST}", ["agent", "agent_1", "agent_0", "distil"]),
        (
            lambda b: edit_json(b / "robot_1" / MANIFEST, changed, "schema_version", 99),
            f"robot_1/{MANIFEST}",
            ["schema_version", "99"],
        ),
        (
            lambda b: edit_json(b / "robot_1" / MANIFEST, changed, "task", "mpe/simple_tag"),
            f"robot_1/{MANIFEST}",
            ["task", "mpe/simple_tag", TASK],
        ),
    ],
    ids=[
        "model cut",
        "no model",
        "manifest cut",
        "models swapped",
        "robots swapped",
        "version",
        "task",
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "swarm"])
def test_bundles(workshop, refused, command, damage, place, words):
    damage(workshop.bundles)
    line = refused(getattr(workshop, command)())
    assert line.startswith(f"kdmarl: {workshop.bundles / place}: ")
    for word in words:
        assert word in line


@pytest.mark.parametrize("command", ["evaluate", "swarm"])
def test_robots_without_a_bundle(workshop, refused, command):
    """Its name was misspelt in the team file, or its bundle was not copied."""
    spoil(TEAM_FILE, renamed, "robots.robot_1", "robbot_1")(workshop, "team.yaml")
    line = refused(getattr(workshop, command)())
    assert line.startswith(f"kdmarl: {workshop.bundles}: ")
    assert "'robbot_1'; did you mean robot_1" in line
    spoil(TEAM_FILE, renamed, "task", "task")(workshop, "team.yaml")
    (workshop.bundles / "robot_2" / MANIFEST).unlink()
    line = refused(getattr(workshop, command)())
    assert line.startswith(f"kdmarl: {workshop.bundles}: ")
    assert "robot_2" in line


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("sensors", ["velocity", "position", "others"], "blocks: "),
        ("safe_action", "left", "safe_action: stay is not the team's left "),
        ("student.width", 9, "student: mlp of "),
    ],
)
def test_bundles_of_other_robots(workshop, refused, key, value, named):
    """The team was changed after it was distilled."""
    spoil(TEAM_FILE, changed, f"robots.robot_1.{key}", value)(workshop, "team.yaml")
    line = refused(workshop.evaluate())
    assert line.startswith(f"kdmarl: {workshop.bundles / 'robot_1' / MANIFEST}: {named}")
    assert "distil the team again" in line


# Parameter files


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"/robot_2/policy": PARAMETERS}, ["'/robot_2/policy'", NODE]),
        ({"policy": PARAMETERS}, ["'policy'", NODE]),
        ({"robot_1/policy": PARAMETERS}, ["'robot_1/policy'", NODE]),
        ({NODE: PARAMETERS, "other": PARAMETERS}, ["'other'"]),
        ({NODE: {"mode": "lock_step"}}, [NODE, "ros__parameters"]),
        ({NODE: None}, [NODE, "ros__parameters"]),
        ({}, [NODE, "ros__parameters"]),
        ({NODE: {"ros__parameters": {"timeot_s": 1.0}}}, [NODE, "'timeot_s'", "timeout_s"]),
        ({NODE: {"ros__parameters": {5: 1.0}}}, [NODE, "'5'"]),
        ({NODE: {"ros__parameters": ["mode"]}}, [NODE, "ros__parameters", "a mapping"]),
        ({NODE: {"ros__parameters": 5}}, [NODE, "ros__parameters", "5"]),
    ],
    ids=name_of_case,
)
def test_parameter_files(workshop, refused, document, words):
    path = write_yaml(workshop.robots / "robot_1.yaml", document)
    line = refused(workshop.swarm())
    assert line.startswith(f"kdmarl: {path}: ")
    for word in words:
        assert word in line


def test_missing_parameter_file(workshop, refused):
    (workshop.robots / "robot_1.yaml").unlink()
    assert f"{workshop.robots / 'robot_1.yaml'}: no such file" in refused(workshop.swarm())


# Where to write


@pytest.mark.parametrize("command", ["train", "distil"])
def test_output_that_exists(workshop, refused, command):
    folder = workshop.file("mine")
    folder.mkdir()
    (folder / "note").write_text("precious")
    line = refused(getattr(workshop, command)("--output", folder))
    assert line.startswith(f"kdmarl: {folder}: exists already; ")
    assert "--overwrite" in line


def unwritable_places(workshop):
    """Places where nobody may write, not even the superuser; and one for everybody else."""
    file = workshop.file("team.yaml")
    places = [file / "out", workshop.file("long" * 100)]
    if sys.platform == "linux":
        places.append(Path("/proc/kdmarl"))
    if os.geteuid() != 0:
        locked = workshop.file("locked")
        locked.mkdir()
        locked.chmod(0o555)
        places.append(locked / "out")
    return places


@pytest.mark.parametrize("command", ["train", "distil", "swarm"])
def test_output_that_cannot_be_written(workshop, refused, command):
    for place in unwritable_places(workshop):
        assert str(place) in refused(getattr(workshop, command)("--output", place))


@pytest.mark.parametrize("command", ["train", "distil"])
def test_output_that_is_a_file(workshop, refused, command):
    file = workshop.file("team.yaml")
    line = refused(getattr(workshop, command)("--output", file, "--overwrite"))
    assert line.startswith(f"kdmarl: {file}: is not a folder")
