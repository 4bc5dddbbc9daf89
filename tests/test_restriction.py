"""What an episode hides: one robot and step after the other, or in batches, it is the same."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import DISTILLATION_RECIPE, MIXED_TASK, mixed_team

from kdmarl_core.distil.expert_buffer import ExpertBuffer, Origin
from kdmarl_core.distil.offline import learn_offline
from kdmarl_core.distil.on_policy import StudentsActing
from kdmarl_core.distil.recipe import Recipe
from kdmarl_core.distil.samples import Labels
from kdmarl_core.distil.student import StudentTeam
from kdmarl_core.restriction import Restriction
from kdmarl_core.schema import from_mapping
from kdmarl_core.sensors import draw_visible, team_sensors
from kdmarl_core.tasks import BatchStep, live_columns, select_columns

# The scout senses 5 features, of which 4 can change; the guard all its 3, always; the cook 7, of
# which 6 can change.
BOUNDS = ((2, 3), None, (1, 4))
SENSED, LIVE = (5, 3, 7), (4, 3, 6)
DRAWING = (0, 2)
SPEC = MIXED_TASK


def team(network="mlp"):
    return mixed_team(network, BOUNDS)


def columns(robot):
    return select_columns(robot.agent.blocks, robot.sensors)


def random_observation(seed, *shape):
    """Full observations, zero beyond an agent's own features."""
    shown = np.random.default_rng(seed).normal(
        size=(*shape, SPEC.num_agents, SPEC.observation_size)
    )
    for index, agent in enumerate(SPEC.agents):
        shown[..., index, agent.observation_size :] = 0
    return shown.astype(np.float32)


def own_observations(shown):
    """[N, D] as the reference simulator shows it: one vector per agent."""
    return [row[: agent.observation_size] for row, agent in zip(shown, SPEC.agents, strict=True)]


def visible_of(inputs, index):
    """Which of its features a robot was told to be visible, from its inputs [..., I]."""
    size = SENSED[index]
    return inputs[..., size : 2 * size]


# One draw


def test_names_of_what_a_student_reads():
    for robot, sensed, bounds in zip(team().robots, SENSED, BOUNDS, strict=True):
        *sensors, last = robot.blocks
        if bounds is None:
            assert robot.blocks == robot.sensors
        else:
            assert tuple(sensors) == robot.sensors
            assert (last.name, last.size) == ("visible", sensed)


@pytest.mark.parametrize("seed", range(5))
def test_both_read_the_same_where_the_same_is_visible(seed):
    """What the sensors of an episode show, given to the batch as its draw."""
    robots, sensors = team().robots, team_sensors(team())
    shown = random_observation(seed)
    visible = torch.zeros(1, SPEC.num_agents, SPEC.observation_size)
    read = []
    for index, (robot, own, vector) in enumerate(
        zip(robots, sensors, own_observations(shown), strict=True)
    ):
        own.begin(seed)
        read.append(own.read(vector))
        told = visible_of(read[-1], index) if index in DRAWING else np.ones(SENSED[index])
        visible[0, index, columns(robot)] = torch.from_numpy(np.float32(told))
    restriction = Restriction(team())
    inputs = restriction.inputs(torch.from_numpy(shown)[None], visible)[0].numpy()
    for index, vector in enumerate(read):
        assert vector.dtype == np.float32
        assert len(vector) == restriction.sizes[index]
        assert np.array_equal(inputs[index, : len(vector)], vector)
        assert (inputs[index, len(vector) :] == 0).all()


def test_what_a_batch_draws_reads_as_a_robot_would():
    """The other way round: by hand from a draw of the batch."""
    restriction, generator = Restriction(team()), torch.Generator().manual_seed(0)
    shown = random_observation(1, 50)
    visible = restriction.draw(50, generator)
    inputs = restriction.inputs(torch.from_numpy(shown), visible).numpy()
    for index, robot in enumerate(team().robots):
        own, kept = shown[:, index, columns(robot)], visible[:, index, columns(robot)].numpy()
        expected = np.concatenate([own * kept, kept], 1) if index in DRAWING else own
        assert np.array_equal(inputs[:, index, : expected.shape[1]], expected)
    # Beyond a robot's sensors nothing is ever visible.
    for index, robot in enumerate(team().robots):
        others = np.delete(np.arange(SPEC.observation_size), columns(robot))
        assert (visible[:, index, others] == 0).all()


def test_the_parts_of_what_is_read():
    for own, robot in zip(team_sensors(team()), team().robots, strict=True):
        own.begin(3)
        read = own.read(np.arange(1.0, 1 + robot.agent.observation_size, dtype=np.float32))
        for block in robot.blocks:
            assert len(read[own.parts[block.name]]) == block.size
        if "visible" in own.parts:
            visible = read[own.parts["visible"]]
            assert np.array_equal(read[: len(visible)] != 0, visible == 1)


# Many draws


def sensors_draws(index, episodes):
    """[episodes, features] by the rule of one robot's sensors."""
    robot = team().robots[index]
    rng, live = np.random.default_rng(0), live_columns(robot.sensors)
    return np.stack(
        [draw_visible(SENSED[index], live, robot.random_features, rng) for _ in range(episodes)]
    )


def batch_draws(index, episodes):
    """The same by the rule for batches."""
    visible = Restriction(team()).draw(episodes, torch.Generator().manual_seed(0))
    return visible[:, index, columns(team().robots[index])].numpy().astype(bool)


@pytest.mark.parametrize("index", DRAWING)
@pytest.mark.parametrize("draws", [sensors_draws, batch_draws])
def test_draws_are_uniform(draws, index):
    """Every number equally often, and every feature, pair of features that can change."""
    episodes = 6000
    drawn, live = draws(index, episodes), live_columns(team().robots[index].sensors)
    low, high = BOUNDS[index]
    numbers = np.arange(low, high + 1)
    found = np.array([(drawn.sum(1) == number).mean() for number in numbers])
    assert found.sum() == 1.0
    # Five standard deviations of a share of one half among so many draws.
    slack = 5 * 0.5 / np.sqrt(episodes)
    assert np.abs(found - 1 / len(numbers)).max() < slack
    idle = np.delete(np.arange(SENSED[index]), live)
    assert len(idle) == 1
    assert not drawn[:, idle].any()
    some = drawn[:, live].astype(float)
    count = LIVE[index]
    assert np.abs(some.mean(0) - numbers.mean() / count).max() < slack
    together = some.T @ some / episodes
    expected = (numbers * (numbers - 1)).mean() / (count * (count - 1))
    assert np.abs(together[~np.eye(count, dtype=bool)] - expected).max() < slack


@pytest.mark.parametrize(("bounds", "expected"), [((4, 9), 4), ((9, 9), 4), ((1, 1), 1)])
def test_never_more_are_visible_than_can_change(bounds, expected):
    crowded = mixed_team(random_features=(bounds, None, None))
    restriction = Restriction(crowded)
    visible = restriction.draw(50, torch.Generator().manual_seed(0))[:, 0]
    assert set(visible.sum(-1).tolist()) == {expected}
    live = live_columns(crowded.robots[0].sensors)
    rng = np.random.default_rng(0)
    assert {int(draw_visible(5, live, bounds, rng).sum()) for _ in range(50)} == {expected}


def test_nothing_is_drawn_for_robots_that_see_all():
    """A team without random restriction reads its sensors and nothing else."""
    restriction = Restriction(mixed_team())
    assert not restriction.random
    shown = random_observation(2, 4)
    inputs = restriction.inputs(torch.from_numpy(shown), None).numpy()
    assert inputs.shape[-1] == max(SENSED)
    for index, (own, robot) in enumerate(
        zip(team_sensors(mixed_team()), mixed_team().robots, strict=True)
    ):
        own.begin(0)
        for row, read in zip(shown, inputs, strict=True):
            expected = own.read(row[index, : robot.agent.observation_size])
            assert np.array_equal(read[index, : SENSED[index]], expected)


# Episodes


def test_an_episodes_seed_decides_what_it_hides():
    """Whatever was played before, and for each robot by itself."""
    shown = own_observations(random_observation(0))

    def read(sensors):
        return [own.read(vector) for own, vector in zip(sensors, shown, strict=True)]

    fresh, used = team_sensors(team()), team_sensors(team())
    seen = set()
    for seed in range(20):
        for own in fresh:
            own.begin(seed)
        for own in used:
            own.begin(seed + 1000)
            own.begin(seed)
        first = read(fresh)
        assert all(map(np.array_equal, first, read(used)))
        assert all(map(np.array_equal, first, read(fresh)))  # constant within the episode
        seen.add(tuple(visible_of(first[2], 2)))
    assert len(seen) > 10
    # Robots with the same sensors do not hide the same.
    twins = [mixed_team(random_features=((1, 4),) * 3).robots[0]] * 2
    pair = team_sensors(SimpleNamespace(robots=twins))
    drawn = []
    for seed in range(20):
        for own in pair:
            own.begin(seed)
        drawn.append([tuple(visible_of(own.read(shown[0]), 0)) for own in pair])
    assert any(one != other for one, other in drawn)


STEPS, ENVS = 8, 6


def known_ends():
    """Where episodes begin [T, E]; every environment has a pattern of its own."""
    begins = np.zeros((STEPS, ENVS), np.bool_)
    begins[0] = True
    begins[[3, 6], 0] = True
    begins[[1, 2], 1] = True
    begins[5, 2:4] = True
    return begins


def check_hidden_by_episode(inputs, begins, shown):
    """Of inputs [T, E, N, I]: one draw for each episode, and its features shown truly."""
    for index in DRAWING:
        robot = team().robots[index]
        visible = visible_of(inputs[:, :, index], index)
        own = shown[:, :, index, columns(robot)] * visible
        np.testing.assert_allclose(inputs[:, :, index, : SENSED[index]], own, atol=2e-3)
        changes = (visible[1:] != visible[:-1]).any(-1)
        assert not changes[~begins[1:]].any()
        if index == 2 and len(begins) > 1:  # of 56 draws hardly two in a row are the same
            assert changes[begins[1:]].mean() > 0.6
        # Environments draw for themselves.
        assert len({tuple(row) for row in visible[0]}) > 1


@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_students_that_act_keep_a_draw_for_an_episode(network):
    students, begins = StudentTeam(team(network)), known_ends()
    shown = random_observation(4, STEPS, ENVS)
    exists = np.broadcast_to(SPEC.action_exists, (ENVS, *SPEC.action_exists.shape)).copy()

    def act(seed):
        acting = StudentsActing(students, seed)
        nothing = np.zeros(ENVS, np.float32)
        for now, start in zip(shown, begins, strict=True):
            step = BatchStep(now, nothing[:, None], exists, nothing, start, start)
            logits = acting(step, start)
            assert (logits[:, torch.from_numpy(~SPEC.action_exists)] < -1e8).all()
        return acting.inputs().numpy()

    inputs = act(0)
    check_hidden_by_episode(inputs, begins, shown)
    assert np.array_equal(act(0), inputs)
    assert not np.array_equal(act(1), inputs)


class NotingLearner:
    """Notes what it is given to learn from."""

    def __init__(self, students):
        self.students, self.batches = students, []

    def update(self, batch, weights, learning_rate):
        self.batches.append(batch)


@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_what_the_buffer_shows_is_hidden_anew_each_time(network):
    """Sequences as episodes, for recurrent students; else every step by itself."""
    recipe = from_mapping(Recipe, DISTILLATION_RECIPE, "recipe")
    begins = torch.from_numpy(known_ends())
    shown = torch.from_numpy(random_observation(5, STEPS, ENVS))
    steps = torch.arange(STEPS * ENVS, dtype=torch.float32).view(STEPS, ENVS)
    nothing = torch.zeros(STEPS, ENVS, 0)
    # Steps are told apart by their advantage.
    labels = Labels(*(nothing,) * 3, begins, steps, nothing, nothing, nothing)
    buffer = ExpertBuffer(Origin("", "", 0, 2, 0), torch.zeros(2, 2), shown.half(), labels)
    learner = NotingLearner(StudentTeam(team(network)))
    for update in (0, 1, 0):
        learn_offline(learner, buffer, recipe.offline, update, seed=7)
    first, second, again = learner.batches
    assert torch.equal(first.inputs, again.inputs)
    assert not torch.equal(first.inputs, second.inputs)
    drawn = first.labels.advantage.long()
    time, env = drawn // ENVS, drawn % ENVS
    assert torch.equal(first.labels.begins, begins[time, env])
    origin = shown[time, env].numpy()
    if network == "gru":
        assert drawn.shape == (STEPS, recipe.offline.minibatch // STEPS)
        assert torch.equal(time, torch.arange(STEPS)[:, None].expand_as(time))
        assert torch.equal(first.state, learner.students.initial_state(drawn.shape[1]))
        check_hidden_by_episode(first.inputs.numpy(), begins[time, env].numpy(), origin)
    else:
        assert drawn.shape == (1, recipe.offline.minibatch)
        assert len(drawn.unique()) > 0.9 * STEPS * ENVS
        check_hidden_by_episode(first.inputs.numpy(), begins[time, env].numpy(), origin)
