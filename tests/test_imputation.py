"""What students put in the place of hidden features: as defined, as trained, as deployed."""

import json

import numpy as np
import pytest
import torch
from helpers import (
    DISTILLATION_RECIPE,
    changed,
    make_learner,
    make_teacher,
    opinionated,
    unrolled_plainly,
)

from kdmarl_core.bundle import BundlePolicy
from kdmarl_core.distil import student as distil_student
from kdmarl_core.distil.messages import draw_delivery
from kdmarl_core.distil.on_policy import StudentsActing
from kdmarl_core.distil.recipe import Recipe
from kdmarl_core.distil.run import Work, distil, export, measure, write_team
from kdmarl_core.distil.samples import label
from kdmarl_core.distil.student import StudentTeam
from kdmarl_core.evaluate import BundlePlayer, play
from kdmarl_core.schema import from_mapping
from kdmarl_core.teacher.rollout import Collector
from kdmarl_core.team import load_team
from kdmarl_core.team_bundles import load_bundles

pytestmark = pytest.mark.usefixtures("simulators_made_once")

# Widths, sensors and peers differ; robot_2 imputes nothing. All but velocity and position can be
# hidden from robot_1; four features of its block `messages` never change, and are never drawn.
SILENT = {
    "base": "simple_spread_random",
    "defaults": {"student": {"network": "gru", "width": 8, "impute": True}},
    "robots": {
        "robot_0": {"student": {"width": 12}, "random_features": [2, 9]},
        "robot_1": {"sensors": ["landmarks", "others", "messages"], "random_features": [3, 7]},
        "robot_2": {"student": {"width": 16, "impute": False}},
    },
}
TALKING = SILENT | {
    "robots": {
        "robot_0": SILENT["robots"]["robot_0"] | {"messages": {"size": 3, "to": ["robot_1"]}},
        "robot_1": SILENT["robots"]["robot_1"] | {"messages": {"size": 2, "to": "all"}},
        "robot_2": SILENT["robots"]["robot_2"],
    }
}
FEED_FORWARD = changed(TALKING, "defaults.student.network", "mlp")
TEAMS = {"silent": SILENT, "talking": TALKING, "feed-forward": FEED_FORWARD}
LIVE = (14, 10, 14)  # features that can be hidden of each robot
STEPS, EPISODES = 9, 6


@pytest.fixture(params=TEAMS)
def team(request, load):
    return load(TEAMS[request.param])


def make_students(team, *, opinions=True):
    """Students; with opinions, they impute something, which they do not at the beginning."""
    torch.manual_seed(0)
    students = opinionated(StudentTeam(team))
    if opinions:
        of_robots = students.imputation
        with torch.no_grad():
            for index, robot in enumerate(team.robots):
                live, past = LIVE[index], own_past(students, index, robot)
                of_robots.weight[index, :live, past] = torch.randn(live, len(past)) / 3
                of_robots.bias[index, :live] = torch.randn(live, 1)
    return students


def own_past(students, index, robot):
    """Which numbers, of all that the widest robots impute from, are a robot's own."""
    wiring = students.wiring
    values, peers = (max(wiring.values), max(wiring.peers)) if wiring else (0, 0)
    own_values, own_peers = (wiring.values[index], wiring.peers[index]) if wiring else (0, 0)
    state = robot.student.width if students.recurrent else 0
    return [
        *range(own_values),
        *range(values, values + own_peers),
        *range(values + peers, values + peers + state),
    ]


def sequences(students, seed=0):
    """Inputs of students, where episodes begin, what becomes of messages, and observations."""
    generator = torch.Generator().manual_seed(seed)
    begins = torch.rand(STEPS, EPISODES, generator=generator) < 0.2
    begins[0] = True
    observation = torch.randn(STEPS, EPISODES, 3, 18, generator=generator)
    observation[..., 14:] = 0.0  # as in the task
    visible = students.restriction.draw(STEPS * EPISODES, generator).view(STEPS, EPISODES, 3, 18)
    delivery = students.wiring and draw_delivery(students.wiring, begins, generator)
    return students.restriction.inputs(observation, visible), begins, delivery


def run(students, inputs, begins, delivery):
    episodes = begins.shape[1]
    mask = torch.ones(*begins.shape, 3, 5, dtype=torch.bool)
    state, mail = students.initial_state(episodes), students.initial_mail(episodes)
    return students(inputs, mask, begins, state, delivery, mail)


def recipe():
    return from_mapping(Recipe, DISTILLATION_RECIPE, "recipe")


# Team files


def test_a_team_that_imputes_nothing_has_the_record_that_it_had(load):
    assert "impute" not in json.dumps(load_team("simple_spread_random").record())
    robots = load(SILENT).record()["robots"]
    assert [robot["student"].get("impute") for robot in robots.values()] == [True, True, None]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (
            {"base": "simple_spread_lh", "defaults": {"student": {"impute": True}}},
            ["robot_0: student: impute", "random_features", "leave it out"],
        ),
        (
            changed(SILENT, "defaults.student.network", "mlp"),
            ["robot_0: student: impute", "hears nobody", "network: gru"],
        ),
        (
            changed(SILENT, "defaults.student.impute", "maybe"),
            ["student: impute", "maybe"],
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(load, refusal, document, words):
    message = refusal(load, document)
    for word in words:
        assert word in message


# What is hidden


def test_hidden_is_what_could_be_seen_and_is_not(team):
    """Counted per robot, in episodes of known bounds; never what cannot change."""
    restriction = StudentTeam(team).restriction
    generator = torch.Generator().manual_seed(0)
    visible = restriction.draw(200, generator)
    inputs = restriction.inputs(torch.ones(200, 3, 18), visible)
    hidden = restriction.hidden(inputs)
    for index, (bounds, live) in enumerate(zip([(2, 9), (3, 7), (8, 10)], LIVE, strict=True)):
        sensed = restriction.sensed[index]
        shown = inputs[:, index, :sensed]
        assert (shown * hidden[:, index, :sensed] == 0).all()
        assert (hidden[:, index, sensed:] == 0).all()
        assert (hidden[:, index, live:] == 0).all()
        numbers = live - hidden[:, index].sum(-1)
        assert (int(numbers.min()), int(numbers.max())) == bounds


def test_nothing_is_hidden_where_nothing_is_drawn():
    restriction = StudentTeam(load_team("simple_spread_lh")).restriction
    inputs = restriction.inputs(torch.zeros(4, 3, 18), None)
    assert restriction.hidden(inputs).abs().max() == 0


# What students make of it


def test_at_first_they_are_as_if_nothing_was_imputed(team):
    students = make_students(team, opinions=False)
    inputs, begins, delivery = sequences(students)
    found = run(students, inputs, begins, delivery).logits
    students.imputation = None
    torch.testing.assert_close(found, run(students, inputs, begins, delivery).logits)


def test_imputing_is_worked_out_by_hand(load):
    """One unit, one hidden feature, from a message and its age; no other weights."""
    document = {
        "base": "simple_spread_random",
        "defaults": {"student": {"network": "mlp", "width": 1}},
        "robots": {
            "robot_0": {"messages": {"size": 1, "to": ["robot_1"]}},
            "robot_1": {"student": {"impute": True}},
        },
    }
    students = StudentTeam(load(document))
    with torch.no_grad():
        for parameter in students.parameters():
            parameter.zero_()
        students.message_head.bias[0] = 10.0  # tanh of it is 1
        students.aligner.weight[1, 0, 2] = 3.0  # reads feature 2
        students.hidden.weight[1, 0, 0] = students.core.weight[1, 0, 0] = 1.0
        students.head.weight[1, 0, 0] = 1.0
        students.imputation.weight[1, 2] = torch.tensor([0.5, 2.2])  # of the value and its age
        students.imputation.bias[1, 2] = 0.25
    observation = torch.full((3, 2, 3, 18), 0.7)
    visible = torch.ones(3, 2, 3, 18)
    visible[:, 1, 1, 2] = 0.0  # hidden in the second episode
    visible[..., 14:] = 0.0
    begins = torch.tensor([[True, True], [False, False], [False, False]])
    delivery = draw_delivery(students.wiring, begins, torch.Generator().manual_seed(0))
    inputs = students.restriction.inputs(observation, visible)
    logits = run(students, inputs, begins, delivery).logits[:, :, 1, 0].detach()
    np.testing.assert_allclose(logits[:, 0], [2.1, 2.1, 2.1], rtol=1e-6)
    # Ages are 11 of 11, then 1 of 11: 3 * (0.25 + 2.2), 3 * (0.25 + 0.5 + 0.2).
    np.testing.assert_allclose(logits[:, 1], [7.35, 2.85, 2.85], rtol=1e-6)


def test_nothing_is_imputed_from_what_was_before_the_episode(load):
    students = make_students(load(SILENT))
    inputs, begins, _ = sequences(students)
    begins[:] = False
    begins[[0, 4]] = True
    before = run(students, inputs, begins, None).logits
    inputs[:4, :, :, 0] += 1.0
    assert torch.equal(run(students, inputs, begins, None).logits[4:], before[4:])
    begins[4] = False
    assert not torch.equal(run(students, inputs, begins, None).logits[4:], before[4:])


@pytest.mark.parametrize("name", TEAMS)
def test_the_backward_by_hand_is_autograds(load, monkeypatch, name):
    team = load(TEAMS[name])
    students = make_students(team)
    inputs, begins, delivery = sequences(students)
    weight = torch.randn(STEPS, EPISODES, 3, 5)
    found = {}
    for way in ("by hand", "plainly"):
        if way == "plainly":
            monkeypatch.setattr(distil_student, "unroll", unrolled_plainly)
        students.zero_grad()
        output = run(students, inputs, begins, delivery)
        (output.logits * weight).sum().backward()
        gradients = {k: v.grad.clone() for k, v in students.named_parameters()}
        found[way] = output.logits.detach(), gradients
    torch.testing.assert_close(found["by hand"][0], found["plainly"][0])
    for key, gradient in found["plainly"][1].items():
        assert gradient.abs().max() > 0, key
        torch.testing.assert_close(found["by hand"][1][key], gradient, atol=1e-4, rtol=1e-4)


def test_what_does_not_impute_and_what_cannot_be_hidden_learns_nothing(team):
    """Padding, and features that never change, stay zero: nothing of them is ever deployed."""
    students = make_students(team, opinions=False)
    learned = students.imputation
    task = team.task
    teacher, card = make_teacher(task.spec)
    learner = make_learner(students, recipe())
    for seed in range(3):
        acting = StudentsActing(students, seed)
        rollout = Collector(task.spec, task.make_batch(6), 25, seed, anew=True).collect(acting, 0)
        batch = acting.batch(label(rollout, teacher, card, None))
        learner.update(batch, recipe().on_policy.weights, 1e-2)
    for index, robot in enumerate(team.robots):
        past = own_past(students, index, robot)
        own = torch.zeros(learned.weight.shape[1:], dtype=torch.bool)
        if robot.student.impute:
            own[: LIVE[index], past] = True
        assert (learned.weight[index][~own] == 0).all()
        assert (learned.weight[index][own] != 0).float().mean() > 0.9 or not own.any()
        learnt = learned.bias[index, : LIVE[index]] != 0
        assert (learnt == robot.student.impute).all()
        assert (learned.bias[index, LIVE[index] :] == 0).all()


# Deployment


def test_bundles_play_as_the_students_were_trained(team):
    """Whole episodes in torch and in ONNX Runtime, hidden features, inboxes, memory and all."""
    students = make_students(team)
    work = Work(team, *make_teacher(team.task.spec), recipe(), 0)
    policies = [BundlePolicy(item.draft, item.model) for item in export(work, students)]
    player = BundlePlayer(policies, team)
    read = []
    for policy in policies:
        own = policy.logits
        policy.logits = lambda observation, *more, own=own: (
            read.append(observation.copy()) or own(observation, *more)
        )
    env, done, actions = team.task.make_reference(), False, []
    view = env.reset(0)
    player.reset(0)
    while not done:
        actions.append(player.act(view))
        view, _, done, _ = env.step(actions[-1])
    inputs = torch.zeros(25, 1, 3, max(students.restriction.sizes))
    for step in range(25):
        for index in range(3):
            vector = torch.from_numpy(read[3 * step + index])
            inputs[step, 0, index, : len(vector)] = vector
    begins = torch.arange(25)[:, None] == 0
    delivery = students.wiring and draw_delivery(
        students.wiring, begins, torch.Generator().manual_seed(0)
    )
    assert students.restriction.hidden(inputs).sum((0, 1, 3)).min() > 0
    output = run(students, inputs, begins, delivery)
    assert output.logits[:, 0].argmax(-1).tolist() == actions


def test_from_teacher_to_bundles_that_play(team, tmp_path):
    work = Work(team, *make_teacher(team.task.spec), recipe(), 0)
    students = distil(work, lambda *_: None, folder=tmp_path / "run")
    assert students.imputation.weight.abs().max() > 0
    exported = export(work, students)
    played = measure(team, work.teacher, exported, 3, seed=0)
    write_team(exported, played.measured, tmp_path / "bundles", overwrite=False)
    policies = load_bundles(team, tmp_path / "bundles")
    again = list(play(team.task.make_reference(), BundlePlayer(policies, team), 3, 0))
    assert [episode.team_return for episode in again] == list(played.returns["student"])


def test_what_imputing_costs_is_counted(load):
    """Maps to 14 features each: of 12 and 8 numbers remembered, of 2 and 3 values and an age."""
    plain = load(TALKING, *[f"robots.robot_{i}.student.impute=false" for i in range(3)])
    flops = []
    for team in (plain, load(TALKING)):
        work = Work(team, *make_teacher(team.task.spec), recipe(), 0)
        students = make_students(team, opinions=team is not plain)
        flops.append([item.draft.student.flops_per_decision for item in export(work, students)])
    more = [b - a for a, b in zip(*flops, strict=True)]
    assert more == [2 * (12 + 3) * 14, 2 * (8 + 4) * 14, 0]
