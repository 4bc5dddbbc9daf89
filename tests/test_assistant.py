"""Students of an assistant: a big policy with memory that senses what they do, or hear."""

import contextlib
import dataclasses

import pytest
import torch
from helpers import (
    DISTILLATION_RECIPE,
    TASK,
    TEAM_FILE,
    TRAINING_RECIPE,
    changed,
    make_learner,
    opinionated,
    write_yaml,
)

from kdmarl_core.bundle import read_bundle
from kdmarl_core.distil.expert_buffer import (
    bytes_per_step,
    fill_buffer,
    load_buffer,
    packed,
    plan_buffer,
    save_buffer,
    unpacked,
)
from kdmarl_core.distil.offline import learn_offline
from kdmarl_core.distil.on_policy import OnPolicy
from kdmarl_core.distil.recipe import Recipe
from kdmarl_core.distil.samples import label
from kdmarl_core.distil.student import StudentTeam
from kdmarl_core.schema import from_mapping
from kdmarl_core.teacher.acting import Acting
from kdmarl_core.teacher.architecture import Architecture
from kdmarl_core.teacher.player import TeacherPlayer
from kdmarl_core.teacher.reads import RestrictedReads
from kdmarl_core.teacher.rollout import Collector
from kdmarl_core.teacher.teacher import Teacher, load_bound, save_teacher
from kdmarl_core.team import load_team
from kdmarl_ros.cli import main

pytestmark = pytest.mark.usefixtures("simulators_made_once")

ROLES = 3


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    """Robots with memory, 4 to 6 features of which are shown in an episode."""
    document = changed(TEAM_FILE, "defaults", {"random_features": [4, 6]})
    for robot in TEAM_FILE["robots"]:
        student = {"network": "gru", "width": 8}
        document = changed(document, f"robots.{robot}.student", student)
    return load_team(str(write_yaml(tmp_path_factory.mktemp("team") / "few.yaml", document)))


@pytest.fixture(scope="module")
def trained(team, tmp_path_factory):
    """The folder of a short-trained policy under the team's restriction."""
    folder = tmp_path_factory.mktemp("assistant")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        recipe = write_yaml(folder / "recipe.yaml", TRAINING_RECIPE)
        arguments = ["train", TASK, "--team", str(team.path), "--recipe", str(recipe)]
        assert main([*arguments, "--episodes", "2", "--threads", "1", "--output", "run"]) == 0
    return folder / "run" / "teacher"


@pytest.fixture(scope="module")
def assistant(trained, team):
    policy, card = load_bound(trained, team)
    return opinionated(policy), card


@pytest.fixture(scope="module")
def buffer(assistant, team):
    policy, card = assistant
    return fill_buffer(team.task, policy, card, plan_buffer(team.task.spec, card, 1, ROLES, 3))


def make_recipe(phase="offline", **changes):
    document = DISTILLATION_RECIPE
    for name, value in changes.items():
        document = changed(document, f"{phase}.{name}", value)
    return from_mapping(Recipe, document, "distil.yaml")


def test_it_judges_by_what_it_saw_and_remembers(assistant, team):
    """Its labels are the log-probabilities that it acted by, step by step."""
    policy, card = assistant
    collector = Collector(team.task.spec, team.task.make_batch(16), 50, 0, anew=True)
    acting = Acting(policy, contextlib.nullcontext)
    acting.begin(1)
    rollout = collector.collect(acting, 0)
    assert rollout.begins.sum() == 2 * 16  # two episodes in each environment
    labels = label(rollout, policy, card, None, acting.visible())
    of_action = labels.teacher.gather(-1, rollout.action[..., None]).squeeze(-1)
    torch.testing.assert_close(of_action, rollout.log_prob, atol=0.1, rtol=0.05)
    # Negative control: what other episodes showed leads to other judgements.
    other = label(rollout, policy, card, None, acting.visible().flip(1)).teacher
    assert (other - labels.teacher).abs().max() > 1.0


def test_one_of_robots_that_talk_reads_what_those_sense_whom_a_robot_hears(team):
    """All of it, and at once; robot_2 tells robot_0 alone, and nobody else tells anything."""
    talking = load_team(str(team.path), ["robots.robot_2.messages={size: 1, to: [robot_0]}"])
    silent, hearing = RestrictedReads(team), RestrictedReads(talking)
    torch.manual_seed(0)
    observation = torch.randn(4, 3, team.task.spec.observation_size)
    visible = hearing.draw(4, torch.Generator().manual_seed(1))
    own = silent(observation, torch.empty(0), visible)
    read = hearing(observation, torch.empty(0), visible)
    sensed, index = own[..., : silent.own_size], own[..., silent.own_size :]
    assert read.shape[-1] == hearing.size == 2 * silent.own_size + 3
    assert torch.equal(read[..., : silent.own_size], sensed)
    assert torch.equal(read[..., -3:], index)
    heard = read[..., silent.own_size : -3]
    assert torch.equal(heard[:, 0], sensed[:, 2])
    assert sensed[:, 2].count_nonzero() > 0
    assert heard[:, 1:].count_nonzero() == 0


def test_one_that_hears_nothing_teaches_robots_that_talk_but_not_the_reverse(
    team, trained, tmp_path, refusal
):
    talking = load_team(str(team.path), ["robots.robot_2.messages={size: 1, to: [robot_0]}"])
    deaf, card = load_bound(trained, talking)
    assert deaf.reads.size == RestrictedReads(team).size
    hearing = Teacher(team.task.spec, card.architecture, talking)
    card = dataclasses.replace(card, restriction=talking.restriction())
    save_teacher(hearing, card, tmp_path / "hearing", overwrite=False)
    loaded, _ = load_bound(tmp_path / "hearing", talking)
    assert loaded.reads.size == RestrictedReads(talking).size > deaf.reads.size
    assert "restriction" in refusal(load_bound, tmp_path / "hearing", team)


@pytest.mark.parametrize("hears", [True, False])
def test_what_another_robot_senses_tells_if_it_is_heard(team, hears):
    """In the reference simulator."""
    changes = ["robots.robot_2.messages={size: 1, to: [robot_0]}"] if hears else []
    of_team = load_team(str(team.path), changes)
    spec = of_team.task.spec
    torch.manual_seed(0)
    player = TeacherPlayer(opinionated(Teacher(spec, Architecture("gru", 16, 1), of_team)), spec)
    env = of_team.task.make_reference()
    differences = [0, 0, 0]
    for seed in range(20):
        view = env.reset(seed)
        *first, third = view.observations
        chosen = []
        for observations in (view.observations, (*first, third + 3.0)):
            player.reset(seed)
            chosen.append(player.act(view._replace(observations=observations)))
        differences = [n + (a != b) for n, a, b in zip(differences, *chosen, strict=True)]
    assert (differences[0] > 0) == hears
    assert differences[1] == 0
    assert differences[2] > 0


def test_the_buffer_keeps_what_was_shown(buffer, team, tmp_path, assistant):
    horizon, episodes = buffer.labels.begins.shape
    assert buffer.shown.nbytes == horizon * episodes * 3 * 3  # a bit for each of 18 features
    visible = unpacked(buffer.shown, team.task.spec.observation_size)
    assert visible.shape == buffer.observation.shape
    assert visible.sum(-1).min() >= 4
    assert visible.sum(-1).max() <= 6
    assert torch.equal(visible, visible[:1].expand_as(visible))  # one episode
    assert torch.equal(packed(visible), buffer.shown)
    save_buffer(buffer, tmp_path / "buffer")
    kept = load_buffer(tmp_path / "buffer", team.task.spec, assistant[1], ROLES)
    assert torch.equal(kept.shown, buffer.shown)
    assert bytes_per_step(team.task.spec, assistant[1], ROLES) == sum(
        tensor.nbytes for tensor in (buffer.observation, *buffer.labels, buffer.shown)
    ) / (horizon * episodes)


def test_bits_are_features_in_their_order():
    visible = torch.tensor([[1, 0, 0, 0, 0, 0, 0, 1, 1, 1], [0, 1, 0, 0, 0, 0, 0, 0, 0, 0]])
    assert packed(visible).tolist() == [[0b10000001, 0b11], [0b10, 0]]
    assert torch.equal(unpacked(packed(visible), 10), visible.float())


def test_students_learn_by_what_it_was_shown(buffer, team):
    """Offline they come to agree with it, which is impossible by features of other episodes."""
    torch.manual_seed(0)
    recipe = make_recipe(updates=150)

    def last_divergence(buffer):
        learner = make_learner(StudentTeam(team), recipe)
        return [
            float(learn_offline(learner, buffer, recipe.offline, i, seed=3).kl) for i in range(150)
        ][-1]

    of_others = buffer._replace(shown=buffer.shown.flip(1))
    assert last_divergence(buffer) < 0.8 * last_divergence(of_others)


def test_on_policy_it_judges_by_what_the_students_are_shown(assistant, team):
    policy, card = assistant
    torch.manual_seed(0)
    learner = make_learner(StudentTeam(team), make_recipe())
    phase = make_recipe("on_policy", learning_rate=1.0e-2, iterations=12).on_policy
    on_policy = OnPolicy(learner, team.task, policy, card, phase, torch.zeros(0), seed=0)
    divergences = [float(on_policy.iterate(i)[0].kl) for i in range(12)]
    assert divergences[-1] < 0.8 * divergences[0]


def test_the_command(kdmarl, trained, team, tmp_path):
    recipe = write_yaml(tmp_path / "distil.yaml", DISTILLATION_RECIPE)
    arguments = ["distil", "--recipe", recipe, "--episodes", "2", "--threads", "1"]
    done = kdmarl(*arguments, "--team", team.path, "--assistant", trained, "--output", "bundles")
    assert done.code == 0, done.err
    manifest, _ = read_bundle(tmp_path / "work" / "bundles" / "robot_0")
    assert manifest.teacher.assistant_sha256 == load_bound(trained, team)[1].weights_sha256
    # One of another restriction has seen what these robots do not see.
    done = kdmarl(*arguments, "--team", "simple_spread", "--assistant", trained)
    assert done.code == 2
    assert "restriction" in done.err
