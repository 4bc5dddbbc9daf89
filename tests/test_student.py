"""The team computed as one equals robots computed each for itself; padding does not exist."""

import numpy as np
import pytest
import torch
from helpers import (
    DISTILLATION_RECIPE,
    MIXED_TASK,
    OFF,
    make_learner,
    mixed_team,
    opinionated,
)
from torch import nn

from kdmarl_core.distil.expert_buffer import Samples
from kdmarl_core.distil.learner import Recipe, decay
from kdmarl_core.distil.losses import Weights
from kdmarl_core.distil.student import StudentTeam
from kdmarl_core.schema import from_mapping
from kdmarl_core.tasks import block_columns

SAMPLES = 40
TEAM = mixed_team()
EXISTS = torch.from_numpy(MIXED_TASK.action_exists)


def random_samples(seed=0):
    generator = torch.Generator().manual_seed(seed)
    robots, actions = EXISTS.shape
    observation = torch.randn(SAMPLES, robots, MIXED_TASK.observation_size, generator=generator)
    logits = 3 * torch.randn(SAMPLES, robots, actions, generator=generator)
    return Samples(
        observation=observation,
        action_mask=EXISTS.expand(SAMPLES, -1, -1),
        action=torch.zeros(SAMPLES, robots, dtype=torch.int64),
        behaviour=torch.full((SAMPLES, robots), -0.5),
        advantage=torch.randn(SAMPLES, generator=generator),
        teacher_logits=logits.masked_fill(~EXISTS, -1e9),
    )


@pytest.fixture
def students():
    torch.manual_seed(0)
    return opinionated(StudentTeam(TEAM))


@pytest.fixture
def trained(students):
    learner = make_learner(students, TEAM, from_mapping(Recipe, DISTILLATION_RECIPE, "recipe"))
    for seed in range(6):
        learner.update(random_samples(seed), Weights(**dict.fromkeys(OFF, 0.5)), 1e-2)
    return students


def padding(layer):
    """Where a stacked layer's weights and biases are only there to make robots equally wide."""
    weight = torch.ones_like(layer.weight, dtype=torch.bool)
    bias = torch.ones_like(layer.bias, dtype=torch.bool)
    for robot, (rows, columns) in enumerate(zip(layer.inputs, layer.outputs, strict=True)):
        weight[robot, :rows, :columns] = False
        bias[robot, :, :columns] = False
    return weight, bias


def stacked_layers(students):
    return [students.aligner, *students.hidden, students.head]


def own_columns(robot):
    columns = block_columns(robot.agent.blocks)
    return np.concatenate([np.arange(99)[columns[block.name]] for block in robot.blocks])


def test_padding_never_learns(students, trained):
    fresh = StudentTeam(TEAM)
    for layer, before in zip(stacked_layers(trained), stacked_layers(fresh), strict=True):
        for mask, name in zip(padding(layer), ("weight", "bias"), strict=True):
            assert mask.any()
            assert (getattr(layer, name)[mask] == 0).all()
        real = ~padding(layer)[0]
        assert not torch.equal(layer.weight[real], before.weight[real])  # the others did learn


class Dense(nn.Module):
    """One robot's network in its true sizes, written down plainly."""

    def __init__(self, robot):
        super().__init__()
        inputs, width = sum(block.size for block in robot.blocks), robot.student.width
        self.align = nn.Linear(inputs, width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.head = nn.Linear(width, len(robot.agent.actions))

    def forward(self, x):
        x = torch.relu(self.first(self.align(x)))
        return self.head(torch.relu(self.second(x)))

    def all(self):
        return [self.align, self.first, self.second, self.head]


def dense_copy(students, index, robot):
    dense = Dense(robot)
    for stacked, linear in zip(stacked_layers(students), dense.all(), strict=True):
        outputs, inputs = linear.weight.shape
        linear.weight.data = stacked.weight[index, :inputs, :outputs].detach().T.clone()
        linear.bias.data = stacked.bias[index, 0, :outputs].detach().clone()
    return dense


def squares_of_real_logits(students, observation):
    logits = students(students.restrict(observation), EXISTS.expand(SAMPLES, -1, -1)).logits
    return (logits[:, EXISTS] ** 2).sum(), logits


@pytest.mark.parametrize("index", range(len(TEAM.robots)))
def test_equals_a_dense_network_of_the_true_sizes(trained, index):
    """Outputs and gradients alike: what trains is that network."""
    robot, observation = TEAM.robots[index], random_samples(9).observation
    dense = dense_copy(trained, index, robot)
    expected = dense(observation[:, index, own_columns(robot)])
    trained.zero_grad()
    loss, logits = squares_of_real_logits(trained, observation)
    loss.backward()
    (expected**2).sum().backward()
    count = len(robot.agent.actions)
    torch.testing.assert_close(logits[:, index, :count], expected, atol=1e-5, rtol=1e-5)
    assert (torch.softmax(logits[:, index], -1)[:, count:] == 0).all()
    for stacked, linear in zip(stacked_layers(trained), dense.all(), strict=True):
        outputs, inputs = linear.weight.shape
        gradient = stacked.weight.grad[index, :inputs, :outputs].T
        torch.testing.assert_close(gradient, linear.weight.grad, atol=1e-3, rtol=1e-4)


def test_restriction_keeps_the_robots_own_columns(students):
    observation = random_samples().observation
    restricted = students.restrict(observation)
    for index, robot in enumerate(TEAM.robots):
        size = sum(block.size for block in robot.blocks)
        own = observation[:, index, own_columns(robot)]
        assert torch.equal(restricted[:, index, :size], own)
        assert (restricted[:, index, size:] == 0).all()


@pytest.mark.parametrize("index", range(len(TEAM.robots)))
def test_only_sensed_blocks_matter(trained, index):
    robot, observation = TEAM.robots[index], random_samples().observation
    mask = EXISTS.expand(SAMPLES, -1, -1)
    before = trained.policy(observation, mask)
    sensed = {block.name for block in robot.blocks}
    for name, part in block_columns(robot.agent.blocks).items():
        disturbed = observation.clone()
        disturbed[:, index, part] += 10.0
        after = trained.policy(disturbed, mask)
        same = torch.equal(after[:, index], before[:, index])
        assert same == (name not in sensed)
        others = [i for i in range(len(TEAM.robots)) if i != index]
        assert torch.equal(after[:, others], before[:, others])


@pytest.mark.parametrize("index", range(len(TEAM.robots)))
def test_what_is_deployed_equals_what_was_trained(trained, index):
    """The aligner is folded away, padding is cut off, and nothing else changes."""
    robot, observation = TEAM.robots[index], random_samples(5).observation
    layers = trained.layers(index)
    width, actions = robot.student.width, len(robot.agent.actions)
    inputs = sum(block.size for block in robot.blocks)
    sizes = [(inputs, width), (width, width), (width, actions)]
    assert [weight.shape for weight, _ in layers] == sizes
    x = observation[:, index, own_columns(robot)].numpy()
    for weight, bias in layers[:-1]:
        x = np.maximum(x @ weight + bias, 0)
    x = x @ layers[-1][0] + layers[-1][1]
    expected = trained.policy(observation, EXISTS.expand(SAMPLES, -1, -1))
    np.testing.assert_allclose(x, expected[:, index, :actions].numpy(), atol=1e-4, rtol=1e-4)


def test_one_robots_width_does_not_disturb_another():
    """The same draws, another neighbour: a robot's gradient comes from its own samples only."""
    torch.manual_seed(1)
    students = StudentTeam(TEAM)
    observation = random_samples().observation
    logits = students(students.restrict(observation), EXISTS.expand(SAMPLES, -1, -1)).logits
    logits[:, 0, :2].sum().backward()
    for layer in stacked_layers(students):
        assert (layer.weight.grad[0] != 0).any() or layer is students.aligner
        assert (layer.weight.grad[1:] == 0).all()


@pytest.mark.parametrize("praise", [1.0, -1.0])
def test_praised_actions_become_likelier(students, praise):
    """PPO with the teacher's advantage alone, from the policy that acted."""
    learner = make_learner(students, TEAM, from_mapping(Recipe, DISTILLATION_RECIPE, "recipe"))
    samples = random_samples()

    def probability():
        logits = students.policy(samples.observation, samples.action_mask)
        return torch.log_softmax(logits, -1).gather(-1, samples.action[..., None]).squeeze(-1)

    before = probability()
    samples = samples._replace(behaviour=before, advantage=torch.full((SAMPLES,), praise))
    for _ in range(3):
        learner.update(samples, Weights(**OFF | {"ppo": 1.0}), 1e-3)
    change = (probability() - before).mean(0)
    assert (praise * change[:2] > 0).all()
    assert change[2] == 0  # it has one action only


@pytest.mark.parametrize(("done", "expected"), [(0, 0.1), (5, 0.05), (9, 0.01)])
def test_learning_rates_decay_linearly(done, expected):
    assert decay(0.1, done, 10) == pytest.approx(expected)


def test_a_loss_that_is_not_finite_is_refused_before_it_does_harm(students, refusal):
    learner = make_learner(students, TEAM, from_mapping(Recipe, DISTILLATION_RECIPE, "recipe"))
    before = {name: value.clone() for name, value in students.state_dict().items()}
    samples = random_samples()
    broken = samples._replace(teacher_logits=torch.full_like(samples.teacher_logits, float("nan")))
    message = refusal(learner.update, broken, Weights(**OFF | {"kl": 1.0}), 1e-2)
    assert "kl" in message
    for name, value in students.state_dict().items():
        assert torch.equal(value, before[name])
