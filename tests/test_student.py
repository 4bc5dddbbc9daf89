"""The team computed as one equals robots computed each for itself; padding does not exist."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from helpers import (
    DISTILLATION_RECIPE,
    MIXED_TASK,
    OFF,
    make_learner,
    make_manifest,
    mixed_team,
    opinionated,
)
from torch import nn

from kdmarl_core.bundle import BundlePolicy, StudentEntry
from kdmarl_core.distil.losses import Weights
from kdmarl_core.distil.recipe import Recipe, decay
from kdmarl_core.distil.samples import Batch, Labels
from kdmarl_core.distil.student import StudentTeam
from kdmarl_core.export import check_agreement, student_model
from kdmarl_core.schema import from_mapping
from kdmarl_core.tasks import block_columns

STEPS, EPISODES = 7, 12
NETWORKS = ["mlp", "gru"]
ROBOTS = range(MIXED_TASK.num_agents)
EXISTS = torch.from_numpy(MIXED_TASK.action_exists)
RECIPE = from_mapping(Recipe, DISTILLATION_RECIPE, "recipe")


def random_sequences(seed=0):
    """Full observations [T, B, N, D], and where episodes begin [T, B]: not always at the start."""
    generator = torch.Generator().manual_seed(seed)
    shape = (STEPS, EPISODES, MIXED_TASK.num_agents, MIXED_TASK.observation_size)
    begins = torch.rand(STEPS, EPISODES, generator=generator) < 0.25
    begins[[0, 4], 0] = True
    begins[:, 1] = False
    return torch.randn(shape, generator=generator), begins


def random_batch(students, seed=0):
    """Sequences with labels of every kind; a recurrent team remembers what was before them."""
    generator = torch.Generator().manual_seed(seed)
    observation, begins = random_sequences(seed)
    state = run(students, *random_sequences(seed + 100)).state.detach()
    robots, actions = EXISTS.shape

    def noise(*shape):
        return torch.randn(STEPS, EPISODES, *shape, generator=generator)

    labels = Labels(
        action_mask=EXISTS.expand(STEPS, EPISODES, -1, -1),
        action=torch.zeros(STEPS, EPISODES, robots, dtype=torch.uint8),
        behaviour=torch.full((STEPS, EPISODES, robots), -0.5),
        begins=begins,
        advantage=noise(),
        teacher=torch.log_softmax(3 * noise(robots, actions).masked_fill(~EXISTS, -1e9), -1),
        cosines=torch.tanh(noise(robots * (robots - 1) // 2)),
        roles=noise(robots, RECIPE.roles),
    )
    return Batch(students.restriction.inputs(observation, None), state, labels)


def run(students, observation, begins, state=None):
    """The team's output for full observations, all actions legal."""
    steps, episodes = begins.shape
    state = students.initial_state(episodes) if state is None else state
    mask = EXISTS.expand(steps, episodes, -1, -1)
    return students(students.restriction.inputs(observation, None), mask, begins, state)


@pytest.fixture(params=NETWORKS)
def students(request):
    torch.manual_seed(0)
    return opinionated(StudentTeam(mixed_team(request.param)))


@pytest.fixture
def trained(students):
    learner = make_learner(students, RECIPE)
    for seed in range(6):
        learner.update(random_batch(students, seed), Weights(**dict.fromkeys(OFF, 0.5)), 1e-2)
    return students


def own_columns(robot):
    columns = block_columns(robot.agent.blocks)
    return np.concatenate([np.arange(99)[columns[block.name]] for block in robot.sensors])


def network_of(students):
    return "gru" if students.recurrent else "mlp"


def robot_of(students, index):
    return mixed_team(network_of(students)).robots[index]


# Padding


def own_parts(students):
    """By layer and robot, weights and biases in their true sizes."""
    return {
        (name, index): getattr(students, name).of_robot(index)
        for name in ("aligner", "hidden", "core", "head")
        for index in ROBOTS
    }


def test_padding_never_learns(students, trained):
    """All that is not zero belongs to a robot, and that has learnt."""
    torch.manual_seed(0)
    fresh = own_parts(opinionated(StudentTeam(mixed_team(network_of(trained)))))
    parts = own_parts(trained)
    for key, part in parts.items():
        for array, before in zip(part, fresh[key], strict=True):
            # A robot of one action has nothing to choose.
            assert np.array_equal(array, before) == (key == ("head", 2)), key
    size = sum(parameter.numel() for parameter in trained.parameters())
    own = sum(array.size for part in parts.values() for array in part)
    assert own < 0.8 * size  # there is padding
    found = sum(int((parameter != 0).sum()) for parameter in trained.parameters())
    assert found == sum(int((array != 0).sum()) for part in parts.values() for array in part)


# The same, robot by robot


class Alone(nn.Module):
    """One robot's network in its true sizes, written down plainly."""

    def __init__(self, robot):
        super().__init__()
        inputs, width = len(own_columns(robot)), robot.student.width
        self.aligner, self.hidden = nn.Linear(inputs, width), nn.Linear(width, width)
        recurrent = robot.student.network == "gru"
        self.core = nn.GRUCell(width, width) if recurrent else nn.Linear(width, width)
        self.head = nn.Linear(width, len(robot.agent.actions))

    def forward(self, x, begins):
        """Logits [T, B, A] of own features [T, B, D], step by step."""
        logits, state = [], torch.zeros(x.shape[1], self.head.in_features)
        for now, start in zip(x, begins, strict=True):
            hidden = torch.relu(self.hidden(self.aligner(now)))
            if isinstance(self.core, nn.GRUCell):
                state = self.core(hidden, torch.where(start[:, None], 0.0, state))
                logits.append(self.head(state))
            else:
                logits.append(self.head(torch.relu(self.core(hidden))))
        return torch.stack(logits)


def torchs_own(alone):
    """By layer, torch's parameters in the order and orientation of a team's."""
    for name, layer in alone.named_children():
        if isinstance(layer, nn.GRUCell):
            yield name, (layer.weight_ih, layer.bias_ih, layer.weight_hh, layer.bias_hh)
        else:
            yield name, (layer.weight, layer.bias)


def gradients(students):
    """A team that has gradients where the other has weights."""
    copied = copy.deepcopy(students)
    for parameter, origin in zip(copied.parameters(), students.parameters(), strict=True):
        parameter.data = origin.grad.clone()
    return copied


@pytest.mark.parametrize("index", ROBOTS)
def test_equals_a_network_of_the_true_sizes(trained, index):
    """Outputs and gradients alike, through time and resets: what trains is that network."""
    robot = robot_of(trained, index)
    alone = Alone(robot)
    for name, parameters in torchs_own(alone):
        part = getattr(trained, name).of_robot(index)
        for parameter, array in zip(parameters, part, strict=True):
            parameter.data = torch.from_numpy(array.T).float()
    trained.zero_grad()
    observation, begins = random_sequences(9)
    begins[2, :] = False
    # In two parts, the memory of the first handed on.
    first = run(trained, observation[:2], begins[:2])
    second = run(trained, observation[2:], begins[2:], first.state)
    logits = torch.cat([first.logits, second.logits])
    logits[..., EXISTS].square().sum().backward()
    expected = alone(observation[:, :, index, own_columns(robot)], begins)
    expected.square().sum().backward()
    count = len(robot.agent.actions)
    torch.testing.assert_close(logits[:, :, index, :count], expected, atol=1e-5, rtol=1e-5)
    for name, parameters in torchs_own(alone):
        found = getattr(gradients(trained), name).of_robot(index)
        for parameter, array in zip(parameters, found, strict=True):
            assert (parameter.grad != 0).any()
            own = torch.from_numpy(array.T).float()
            torch.testing.assert_close(own, parameter.grad, atol=1e-3, rtol=1e-4)


def test_actions_that_are_not_legal_have_no_probability(trained):
    """Those that a robot does not have, and those that a mask takes away."""
    observation, begins = random_sequences(2)
    inputs = trained.restriction.inputs(observation, None)
    mask = EXISTS.repeat(STEPS, EPISODES, 1, 1)
    mask[3:, :, 0, 1] = False
    output = trained(inputs, mask, begins, trained.initial_state(EPISODES))
    probabilities = output.log_probs.exp()
    assert (probabilities[~mask] == 0).all()
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(STEPS, EPISODES, 3))
    for index in ROBOTS:
        for step in (0, 5):
            legal = mask[step, 0, index]
            expected = torch.log_softmax(output.logits[step, :, index, legal], -1)
            torch.testing.assert_close(output.log_probs[step, :, index, legal], expected)


def test_memory_carries_over_from_one_call_to_the_next(trained):
    """In two parts, the state handed on, as in one; and it matters that it is."""
    observation, begins = random_sequences(4)
    whole = run(trained, observation, begins).logits
    first = run(trained, observation[:3], begins[:3])
    second = run(trained, observation[3:], begins[3:], first.state).logits
    torch.testing.assert_close(torch.cat([first.logits, second]), whole)
    forgetful = run(trained, observation[3:], begins[3:]).logits
    goes_on = ~begins[3]
    same = torch.allclose(forgetful[0, goes_on], whole[3, goes_on], atol=1e-6)
    assert same != trained.recurrent
    torch.testing.assert_close(forgetful[0, ~goes_on], whole[3, ~goes_on])


def test_an_episode_knows_nothing_of_the_one_before(trained):
    observation, begins = random_sequences(6)
    begins[:] = False
    begins[4] = True
    before = run(trained, observation, begins).logits
    observation[:4] += 3.0
    after = run(trained, observation, begins).logits
    assert not torch.equal(after[:4], before[:4])
    assert torch.equal(after[4:], before[4:])


# Restriction


def test_restriction_keeps_the_robots_own_columns(students):
    observation, _ = random_sequences()
    restricted = students.restriction.inputs(observation, None)
    for index in ROBOTS:
        columns = own_columns(robot_of(students, index))
        assert torch.equal(
            restricted[:, :, index, : len(columns)], observation[:, :, index, columns]
        )
        assert (restricted[:, :, index, len(columns) :] == 0).all()


@pytest.mark.parametrize("index", ROBOTS)
def test_only_sensed_blocks_matter(trained, index):
    robot, (observation, begins) = robot_of(trained, index), random_sequences()
    before = run(trained, observation, begins).logits
    sensed = {block.name for block in robot.sensors}
    for name, part in block_columns(robot.agent.blocks).items():
        disturbed = observation.clone()
        disturbed[:, :, index, part] += 10.0
        after = run(trained, disturbed, begins).logits
        same = torch.equal(after[:, :, index], before[:, :, index])
        assert same == (name not in sensed)
        others = [i for i in ROBOTS if i != index]
        assert torch.equal(after[:, :, others], before[:, :, others])


# Deployment


@pytest.mark.parametrize("index", ROBOTS)
def test_what_is_deployed_has_no_padding_and_no_aligner(trained, index):
    robot = robot_of(trained, index)
    layers = trained.layers(index)
    width, inputs = robot.student.width, len(own_columns(robot))
    core = (
        [(width, 3 * width), (3 * width,)] * 2 if trained.recurrent else [(width, width), (width,)]
    )
    actions = len(robot.agent.actions)
    sizes = [[(inputs, width), (width,)], core, [(width, actions), (actions,)]]
    assert [[array.shape for array in layer] for layer in layers] == sizes
    assert {array.dtype for layer in layers for array in layer} == {np.dtype(np.float32)}


def deployed(students, index):
    """One robot's policy as a robot runs it."""
    robot = robot_of(students, index)
    width = robot.student.width
    manifest = make_manifest(
        blocks=[(block.name, block.size) for block in robot.blocks],
        actions=robot.agent.actions,
        student=StudentEntry(
            network_of(students), width, 0, 0, width if students.recurrent else 0
        ),
    )
    return BundlePolicy(manifest, student_model(students.layers(index)))


@pytest.mark.parametrize("index", ROBOTS)
def test_what_is_deployed_equals_what_was_trained(trained, index):
    """ONNX Runtime, one step after the other, reset where an episode begins."""
    robot, policy = robot_of(trained, index), deployed(trained, index)
    observation, begins = random_sequences(5)
    begins[0] = True
    own = observation[:, :, index, own_columns(robot)].numpy()
    expected = run(trained, observation, begins).logits[:, :, index, : len(robot.agent.actions)]
    expected = expected.detach().numpy()
    found = np.empty_like(expected)
    for episode in range(EPISODES):
        for step in range(STEPS):
            if begins[step, episode]:
                policy.reset()
            found[step, episode] = policy.logits(own[step, episode])
    assert check_agreement(robot.name, found, expected) < 1e-4
    # Negative control: a robot that is not reset goes wrong, if it remembers anything.
    policy.reset()
    unreset = np.stack([policy.logits(now) for now in own[:, 0]])
    late = int(begins[1:, 0].nonzero()[0, 0]) + 1
    assert np.allclose(unreset[:late], expected[:late, 0], atol=1e-4)
    assert np.allclose(unreset[late], expected[late, 0], atol=1e-4) != trained.recurrent


# Learning


def test_one_robots_width_does_not_disturb_another(students):
    """A robot's gradient comes from its own samples only."""
    observation, begins = random_sequences()
    run(students, observation, begins).logits[:, :, 0, :2].sum().backward()
    for name, parameter in students.named_parameters():
        assert (parameter.grad[0] != 0).any(), name
        assert (parameter.grad[1:] == 0).all(), name


@pytest.mark.parametrize("praise", [1.0, -1.0])
def test_praised_actions_become_likelier(students, praise):
    """PPO with the teacher's advantage alone, from the policy that acted."""
    learner, batch = make_learner(students, RECIPE), random_batch(students)

    def probability():
        labels = batch.labels
        output = students(batch.inputs, labels.action_mask, labels.begins, batch.state)
        return output.log_probs[..., 0].detach()  # of the action that was taken

    before = probability()
    advantage = torch.full_like(batch.labels.advantage, praise)
    judged = batch._replace(labels=batch.labels._replace(behaviour=before, advantage=advantage))
    for _ in range(3):
        learner.update(judged, Weights(**OFF | {"ppo": 1.0}), 1e-3)
    change = (probability() - before).mean((0, 1))
    assert (praise * change[:2] > 0).all()
    assert change[2] == 0  # it has one action only


def test_terms_without_weight_are_not_computed_and_others_reach_the_students(students):
    """Each term alone moves the students, but the divergences of a lone action cannot.

    Grounding is for those that tell each other something (tests/test_messages.py).
    """
    for name in OFF.keys() - {"grounding"}:
        learner = make_learner(students, RECIPE)
        before = students.hidden.weight.detach().clone()
        terms = learner.update(random_batch(students), Weights(**OFF | {name: 1.0}), 1e-3)
        assert [key for key, term in terms._asdict().items() if term != 0] == [name]
        moved = students.hidden.weight.detach() != before
        assert moved[:2].any(), name
        if name not in ("structure", "role"):
            assert not moved[2].any(), name  # it has one action only


def test_terms_are_of_the_students_and_of_the_recipe(students):
    """Each written out once more, for a temperature and a clip that are unlike all defaults."""
    recipe = dataclasses.replace(RECIPE, temperature=2.0, clip=0.05)
    learner = make_learner(opinionated(students), recipe)
    heads = learner.learned["heads"]
    batch = random_batch(students)
    labels = Labels(*(field.flatten(0, 1) for field in batch.labels))
    with torch.no_grad():
        output = students(batch.inputs, batch.labels.action_mask, batch.labels.begins, batch.state)
        student, embedding = output.log_probs.flatten(0, 1), output.embedding.flatten(0, 1)
        common, scores = heads.structure(embedding), heads.scores(embedding)

    def divergence(teacher, student):
        """KL(teacher || student) of logits at temperature 2, per sample."""
        soft = [torch.log_softmax(logits / 2, -1) for logits in (student, teacher)]
        total = nn.functional.kl_div(*soft, reduction="sum", log_target=True)
        return total / len(student)

    taken = student.gather(-1, labels.action[..., None].long()).squeeze(-1)
    preferred = student.gather(-1, labels.teacher.argmax(-1)[..., None])
    ratio, advantage = torch.exp(taken - labels.behaviour), labels.advantage[:, None]
    assert ((ratio - 1).abs() > 0.05).any()
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.95, 1.05) * advantage)
    pairs = [(1, 0), (2, 0), (2, 1)]
    cosines = [nn.functional.cosine_similarity(common[:, i], common[:, j]) for i, j in pairs]
    expected = {
        "ppo": surrogate.mean(0).sum(),
        "kl": 4 * divergence(labels.teacher, student),
        "cross_entropy": -preferred.mean(0).sum(),
        "soft_cross_entropy": -(labels.teacher.exp() * student).sum((-1, -2)).mean(),
        "structure": (labels.cosines - torch.stack(cosines, -1)).square().sum(-1).mean(),
        "role": divergence(labels.roles, scores),
        "entropy": -(student.exp() * student).sum((-1, -2)).mean(),
        "grounding": torch.zeros(()),  # nobody tells anything
    }
    found = learner.update(batch, Weights(**dict.fromkeys(OFF, 1.0)), 1e-3)
    for name, value in found._asdict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(("done", "expected"), [(0, 0.1), (5, 0.05), (9, 0.01)])
def test_learning_rates_decay_linearly(done, expected):
    assert decay(0.1, done, 10) == pytest.approx(expected)


NAN = float("nan")


@pytest.mark.parametrize(
    ("term", "damage"),
    [
        ("kl and term soft_cross_entropy", {"teacher": NAN}),
        ("structure", {"cosines": NAN}),
        ("role", {"roles": NAN}),
        ("ppo", {"advantage": NAN}),
        ("the gradient", {"behaviour": -200.0, "advantage": 1.0}),  # 0 x infinity
    ],
)
def test_a_loss_that_is_not_finite_is_refused_before_it_does_harm(students, refusal, term, damage):
    learner, batch = make_learner(students, RECIPE), random_batch(students)
    weights = Weights(**dict.fromkeys(OFF, 0.5))
    for _ in range(2):
        learner.update(batch, weights, 1e-3)
    before = {name: value.clone() for name, value in students.state_dict().items()}
    filled = {
        name: torch.full_like(getattr(batch.labels, name), value) for name, value in damage.items()
    }
    broken = batch._replace(labels=batch.labels._replace(**filled))
    message = refusal(learner.update, broken, weights, 1e-2)
    verb = "are" if " and " in term else "is"
    assert f"{term} {verb} not finite at update 2; lower the learning rate" in message
    for name, value in students.state_dict().items():
        assert torch.equal(value, before[name])
    learner.update(batch, weights, 1e-3)  # nothing was lost
