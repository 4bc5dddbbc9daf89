"""Training a teacher: repeatable, interruptible, and better than nothing; and its files."""

import contextlib
import dataclasses
import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import (
    MIXED_TASK,
    TASK,
    TEAM_FILE,
    TRAINING_RECIPE,
    changed,
    make_teacher,
    mixed_team,
    opinionated,
    write_teacher,
    write_yaml,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from kdmarl_core.evaluate import RandomPlayer, play, returns
from kdmarl_core.nets.gru import Gru
from kdmarl_core.schema import from_mapping
from kdmarl_core.seeding import derive_seed
from kdmarl_core.tasks import AgentSpec, BatchStep, Block, TaskSpec, View, make_task
from kdmarl_core.teacher.acting import Acting
from kdmarl_core.teacher.architecture import Architecture
from kdmarl_core.teacher.checkpoint import CHECKPOINT
from kdmarl_core.teacher.mappo import Mappo, Recipe
from kdmarl_core.teacher.player import TeacherPlayer
from kdmarl_core.teacher.rollout import Collector, sample
from kdmarl_core.teacher.self_play import self_play
from kdmarl_core.teacher.teacher import (
    CARD,
    WEIGHTS,
    Teacher,
    load_bound,
    load_teacher,
    read_card,
    save_teacher,
)
from kdmarl_core.teacher.train import train
from kdmarl_core.team import load_team

pytestmark = pytest.mark.usefixtures("simulators_made_once")

ITERATIONS = 4  # of TRAINING_RECIPE


def recipe_of(**changes):
    return from_mapping(Recipe, TRAINING_RECIPE | changes, "recipe")


def acting(teacher):
    """The teacher as the policy of rollouts, in single precision."""
    return Acting(teacher, contextlib.nullcontext)


def recurrent(**changes):
    """TRAINING_RECIPE with a recurrent actor."""
    architecture = {"network": "gru", "width": 16, "layers": 2}
    return recipe_of(architecture=architecture, **changes)


def train_quietly(task, recipe, seed, folder, **options):
    """A trained teacher."""
    options = {"resume": False, "report": lambda *_: None} | options
    return train(task, recipe, seed, folder, **options)[0]


def weights(folder):
    return load_teacher(folder, make_task(TASK).spec)[0].state_dict()


def assert_equal_weights(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A teacher of TRAINING_RECIPE, seed 5, trained without a break."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    torch.set_num_threads(1)
    return train_quietly(make_task(TASK), recipe_of(), 5, folder).state_dict()


@pytest.fixture
def train_command(kdmarl, tmp_path):
    """Runs `kdmarl train` with TRAINING_RECIPE on one thread."""
    recipe = write_yaml(tmp_path / "recipe.yaml", TRAINING_RECIPE)
    common = ["--recipe", recipe, "--episodes", "2", "--threads", "1", "--output", "run"]

    def run(*arguments):
        return kdmarl("train", TASK, *common, *arguments)

    return run


def test_command_trains_and_reports(train_command, uninterrupted, tmp_path):
    done = train_command("--seed", "5", "--json")
    assert done.code == 0, done.err
    figures = json.loads(done.out)
    assert figures["env_steps"] == TRAINING_RECIPE["env_steps"]
    folder = tmp_path / "work" / "run"
    assert_equal_weights(weights(folder / "teacher"), uninterrupted)
    card = read_card(folder / "teacher")
    assert (card.task, card.seed, card.env_steps) == (TASK, 5, 1600)
    assert card.evaluation.mean_return == figures["return"]
    assert card.command.startswith(f"kdmarl train {TASK} --seed 5 --threads 1 --recipe ")
    events = EventAccumulator(str(folder)).Reload()
    steps = [event.step for event in events.Scalars("train/return")]
    assert steps == [400, 800, 1200, 1600]
    assert "train/entropy" in events.Tags()["scalars"]


def test_another_seed_gives_another_teacher(uninterrupted, tmp_path):
    other = train_quietly(make_task(TASK), recipe_of(), 6, tmp_path)
    head = "actor.head.weight"
    assert not torch.allclose(other.state_dict()[head], uninterrupted[head], atol=1e-3)


def test_ctrl_c_keeps_a_checkpoint_and_resume_goes_on(
    train_command, uninterrupted, tmp_path, monkeypatch
):
    """Interrupted after two of four iterations, it ends with exactly the same weights."""
    add_scalar = SummaryWriter.add_scalar

    def interrupt(writer, name, value, step):
        add_scalar(writer, name, value, step)
        if name == "train/return" and step == 800:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(SummaryWriter, "add_scalar", interrupt)
    stopped = train_command("--seed", "5")
    assert stopped.code == 130
    assert "--resume" in stopped.err
    assert "Traceback" not in stopped.err
    folder = tmp_path / "work" / "run"
    assert (folder / CHECKPOINT).is_file()
    assert not (folder / "teacher").exists()

    monkeypatch.setattr(SummaryWriter, "add_scalar", add_scalar)
    assert train_command("--seed", "5", "--resume").code == 0
    assert_equal_weights(weights(folder / "teacher"), uninterrupted)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_learning_beats_random(tmp_path):
    """A few seconds of training are worth much more than random actions."""
    task = make_task(TASK)
    recipe = recipe_of(
        architecture={"network": "mlp", "width": 64, "layers": 2},
        env_steps=64_000,
        num_envs=64,
        epochs=5,
    )
    teacher = train_quietly(task, recipe, 0, tmp_path)
    env = task.make_reference()
    learned, random = (
        returns(list(play(env, player, 60, 1))).mean()
        for player in (TeacherPlayer(teacher, task.spec), RandomPlayer())
    )
    assert learned > random + 4.0


# Rollouts


@pytest.fixture(scope="module")
def spread():
    task = make_task(TASK)
    return task.spec, task.make_batch(4)


def test_a_rollout_does_not_depend_on_those_before(spread):
    spec, env = spread
    teacher, _ = make_teacher(spec)
    fresh, busy = (Collector(spec, env, spec.episode_steps, seed=3) for _ in range(2))
    policy = acting(teacher)
    busy.collect(policy, 0)
    for a, b in zip(fresh.collect(policy, 1), busy.collect(policy, 1), strict=True):
        assert torch.equal(a, b)


def test_a_rollout_says_what_happened(spread):
    spec, env = spread
    teacher, _ = make_teacher(spec)
    rollout = Collector(spec, env, 2 * spec.episode_steps, seed=3).collect(acting(teacher), 0)
    logits = teacher.logits(rollout.observation, rollout.state[:-1], rollout.action_mask)
    log_probs = torch.log_softmax(logits, -1)
    expected = log_probs.gather(-1, rollout.action[..., None]).squeeze(-1)
    torch.testing.assert_close(rollout.log_prob, expected)
    assert rollout.done.sum(0).tolist() == [2] * 4
    # The same simulator, stepped by hand with the same actions.
    shown = [env.reset(derive_seed(3, 0))]
    shown += [env.step(actions) for actions in rollout.action.numpy()]
    for name, first, last in (
        ("observation", 0, -1),
        ("action_mask", 0, -1),
        ("state", 0, None),
        ("reward", 1, None),
        ("done", 1, None),
    ):
        expected = np.stack([getattr(step, name) for step in shown[first:last]])
        assert np.array_equal(getattr(rollout, name).numpy(), expected), name
    assert rollout.episode_return() == pytest.approx(float(rollout.reward.sum()) / 8, rel=1e-5)
    unfinished = rollout._replace(done=rollout.done.clone())
    unfinished.done[-1, 0] = False  # a tail whose episode's end was not seen
    whole = float(rollout.reward.sum() - rollout.reward[len(rollout.reward) // 2 :, 0].sum())
    assert unfinished.episode_return() == pytest.approx(whole / 7, rel=1e-5)


def test_actions_are_drawn_with_their_probabilities():
    logits = torch.tensor([0.0, 1.0, -1e9, 2.0]).expand(20_000, 4)
    action, log_prob = sample(logits, torch.Generator().manual_seed(0))
    frequency = np.bincount(action.numpy(), minlength=4) / len(action)
    expected = torch.softmax(logits[0], -1).numpy()
    np.testing.assert_allclose(frequency, expected, atol=0.01)
    assert frequency[2] == 0
    assert log_prob.exp().numpy() == pytest.approx(expected[action.numpy()])


# Networks


def test_agents_that_are_alike_are_not_told_apart():
    spec = make_task(TASK).spec
    teacher, _ = make_teacher(spec)
    observation = torch.randn(1, 1, spec.observation_size).expand(2, spec.num_agents, -1)
    state = torch.randn(2, spec.state_size)
    logits = teacher.logits(observation, state, torch.from_numpy(spec.action_exists))
    assert torch.equal(logits[:, :1].expand_as(logits), logits)


def test_agents_that_differ_are_told_apart():
    teacher, _ = make_teacher(MIXED_TASK)
    observation = torch.ones(2, MIXED_TASK.num_agents, MIXED_TASK.observation_size)
    state = torch.ones(2, MIXED_TASK.state_size)
    embedding = teacher.actor.embed(teacher.reads(observation, state, None))
    assert embedding.shape == (2, MIXED_TASK.num_agents, 16)
    assert not torch.equal(embedding[:, 0], embedding[:, 1])
    exists = torch.from_numpy(MIXED_TASK.action_exists)
    probabilities = torch.softmax(teacher.logits(observation, state, exists), -1)
    assert (probabilities[:, ~exists] == 0).all()


def test_value_is_of_the_joint_state():
    teacher, _ = make_teacher(MIXED_TASK)
    state = torch.randn(7, 2, MIXED_TASK.state_size)
    assert teacher.value(state).shape == (7, 2)


def test_the_player_takes_the_most_probable_actions(spread):
    spec, _ = spread
    teacher, _ = make_teacher(spec)
    player = TeacherPlayer(teacher, spec)
    rng = np.random.default_rng(0)
    for _ in range(5):
        seen = rng.normal(size=(spec.num_agents, spec.observation_size)).astype(np.float32)
        state = rng.normal(size=spec.state_size).astype(np.float32)
        logits = teacher.logits(
            torch.from_numpy(seen),
            torch.from_numpy(state),
            torch.from_numpy(spec.action_exists),
        )
        shown = View(tuple(seen), state, tuple(spec.action_exists))
        assert player.act(shown) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_cost_by_hand(network):
    """Two hidden layers of 16; in a GRU, the second has three gates with two products each."""
    actor = make_actor(network)
    inputs, actions = actor.reads.size, MIXED_TASK.num_actions
    second, biases = {"mlp": (16 * 16, 16), "gru": (6 * 16 * 16, 6 * 16)}[network]
    macs = inputs * 16 + second + 16 * actions
    parameters = macs + 16 + biases + actions
    assert actor.cost() == (parameters, 2 * macs, 4 * parameters)


# Recurrence

WIDTH = 5


def make_gru(seed=0):
    torch.manual_seed(seed)
    gru = Gru(3, WIDTH)
    for parameter in gru.parameters():
        torch.nn.init.normal_(parameter)
    return gru


def test_the_gru_is_torchs():
    """States and gradients over 6 steps of 4 sequences, from a state that is not zero."""
    own, torchs = make_gru(), torch.nn.GRU(3, WIDTH)
    pairs = {
        "weight_ih_l0": own.input.weight,
        "weight_hh_l0": own.state.weight,
        "bias_ih_l0": own.input.bias,
        "bias_hh_l0": own.state.bias,
    }
    torchs.load_state_dict(pairs)
    x, state, weight = torch.randn(6, 4, 3), torch.randn(4, WIDTH), torch.randn(6, 4, WIDTH)
    found = own(x, torch.zeros(6, 4, dtype=torch.bool), state)
    expected, _ = torchs(x, state[None])
    torch.testing.assert_close(found, expected)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for name, parameter in pairs.items():
        torch.testing.assert_close(parameter.grad, getattr(torchs, name).grad, msg=name)


def test_an_episode_end_inside_a_sequence_makes_two_sequences():
    gru, x, state = make_gru(), torch.randn(7, 2, 3), torch.randn(2, WIDTH)
    none = torch.zeros(7, 2, dtype=torch.bool)
    begins = none.clone()
    begins[4, 1] = True
    states = gru(x, begins, state)
    torch.testing.assert_close(states[:, 0], gru(x, none, state)[:, 0])
    torch.testing.assert_close(states[:4, 1], gru(x[:4], none[:4], state)[:, 1])
    anew = gru(x[4:], none[4:], torch.zeros_like(state))
    torch.testing.assert_close(states[4:, 1], anew[:, 1])


def test_gradients_through_episode_ends_are_right():
    """Against finite differences, in double precision."""
    gru = make_gru().double()
    begins = torch.tensor([[True, False], [False, False], [False, True], [False, False]])
    x = torch.randn(4, 2, 3, dtype=torch.double, requires_grad=True)
    state = torch.randn(2, WIDTH, dtype=torch.double)
    names, parameters = zip(*gru.named_parameters(), strict=True)

    def run(x, *values):
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(gru, given, (x, begins, state))

    assert torch.autograd.gradcheck(run, (x, *parameters))


# What is seen alone tells nothing of what must be answered two steps later. Observed are whether
# it is time to answer, and the cue in the first step.
RECALL = TaskSpec(
    name="test/recall",
    agents=tuple(
        AgentSpec(name, (Block("clock", 1, "1"), Block("cue", 1, "1")), ("left", "right"))
        for name in ("alpha", "beta")
    ),
    episode_steps=3,
    ends_early=False,
    state_size=2,
    rate_hz=1.0,
)


class Recall:
    """Each agent is paid for answering with its own cue; environments are out of step."""

    def __init__(self, num_envs):
        self.time = np.arange(num_envs) % RECALL.episode_steps
        self.cue = np.zeros((num_envs, 2), np.int64)

    def reset(self, seed):
        self.rng = np.random.default_rng(seed)
        self.cue[:] = self.rng.integers(2, size=self.cue.shape)
        self.reward, self.done = np.zeros(len(self.time), np.float32), self.time < 0
        return self.show()

    def step(self, actions):
        self.done = self.time == RECALL.episode_steps - 1
        self.reward = (self.done * (actions == self.cue).mean(-1)).astype(np.float32)
        drawn = self.rng.integers(2, size=self.cue.shape)
        self.cue = np.where(self.done[:, None], drawn, self.cue)
        self.time = np.where(self.done, 0, self.time + 1)
        return self.show()

    def show(self):
        answer = np.repeat(self.time[:, None] == RECALL.episode_steps - 1, 2, 1)
        cue = np.where(self.time[:, None] == 0, 2 * self.cue - 1, 0)
        observation = np.stack([answer, cue], -1).astype(np.float32)
        mask = np.ones((len(self.time), 2, 2), np.bool_)
        state, won = self.cue.astype(np.float32), np.zeros_like(self.done)
        return BatchStep(observation, state, mask, self.reward, self.done.copy(), won)


RECALL_TASK = SimpleNamespace(spec=RECALL, make_batch=Recall)


@pytest.mark.parametrize(("network", "low", "high"), [("gru", 0.95, 1.0), ("mlp", 0.0, 0.6)])
def test_only_a_recurrent_actor_remembers(network, low, high, tmp_path):
    """Rollouts begin and end in the middle of episodes."""
    recipe = recipe_of(
        task=RECALL.name,
        architecture={"network": network, "width": 16, "layers": 2},
        env_steps=24_000,
        num_envs=48,
        rollout_steps=10,
        epochs=4,
        learning_rate=1e-2,
        reward_scale=1.0,
    )
    means = []
    train_quietly(RECALL_TASK, recipe, 0, tmp_path, report=lambda _, f: means.append(f["return"]))
    assert low <= np.mean(means[-5:]) <= high


# What an actor reads

RANDOM = ((1, 2), (1, 2), (2, 5))
TEAMS = {"everything": None, "restricted": mixed_team(), "random": mixed_team("mlp", RANDOM)}


def make_actor(network, team=None, seed=0):
    """An untrained policy on MIXED_TASK with clear opinions."""
    torch.manual_seed(seed)
    return opinionated(Teacher(MIXED_TASK, Architecture(network, 16, 2), team), seed)


def mixed_steps(steps, envs=6, seed=0):
    """Made-up steps of MIXED_TASK, and which begin an episode: all at first, then a few."""
    rng = np.random.default_rng(seed)
    agents, actions = MIXED_TASK.num_agents, MIXED_TASK.num_actions
    begins = rng.random((steps, envs)) < 0.3
    begins[0] = True
    shown = [
        BatchStep(
            observation=rng.normal(size=(envs, agents, MIXED_TASK.observation_size)),
            state=rng.normal(size=(envs, MIXED_TASK.state_size)),
            action_mask=np.broadcast_to(MIXED_TASK.action_exists, (envs, agents, actions)).copy(),
            reward=rng.normal(size=envs),
            done=begin,
            won=np.zeros(envs, np.bool_),
        )
        for begin in begins
    ]
    singles = [
        BatchStep(*(x.astype(np.float32) if x.dtype == float else x for x in step))
        for step in shown
    ]
    return singles, begins


class Replayed:
    """An environment that shows made-up steps, whatever is done."""

    def __init__(self, steps):
        self.steps = steps

    def reset(self, seed):
        self.left = iter(self.steps)
        return next(self.left)

    def step(self, actions):
        return next(self.left)


@pytest.mark.parametrize("network", ["mlp", "gru"])
@pytest.mark.parametrize("team", TEAMS.values(), ids=TEAMS)
def test_an_update_sees_what_acting_saw(network, team):
    """Before the first step of an update, its policy is the one that acted.

    Then all ratios are 1, and the objective is the mean of normalised advantages, zero; where
    ratios differ at random, it is not. In the second rollout, begun in the middle of episodes.
    """
    recipe = recipe_of(
        task=MIXED_TASK.name,
        architecture={"network": network, "width": 16, "layers": 2},
        num_envs=6,
        rollout_steps=8,
        epochs=1,
        learning_rate=1e-12,
    )
    learner = Mappo(make_actor(network, team), recipe)
    steps, _ = mixed_steps(17)
    collector = Collector(MIXED_TASK, Replayed(steps), 8, seed=1)
    for index in range(2):
        learner.policy.begin(index)
        rollout = collector.collect(learner.policy, index)
        with torch.no_grad():
            thoughts = learner.teacher.through_time(
                learner.policy.inputs(),
                rollout.begins,
                learner.policy.past_at_begin if network == "gru" else torch.empty(0),
            )
        logits = thoughts.logits.masked_fill(~rollout.action_mask, -1e9)
        log_prob = torch.log_softmax(logits, -1).gather(-1, rollout.action[..., None])[..., 0]
        torch.testing.assert_close(log_prob, rollout.log_prob, atol=1e-4, rtol=0)
        figures = learner.update(rollout, 0, torch.Generator().manual_seed(0))
        assert figures["policy"] == pytest.approx(0, abs=1e-4)
    assert not rollout.begins[0].all()
    assert rollout.begins[1:].any()


@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_what_is_hidden_has_no_influence(network):
    """The scout senses its map only, features 2 to 6 of its observation; nobody the state."""
    teacher = make_actor(network, TEAMS["restricted"])
    (step,), begins = mixed_steps(1)
    hidden, seen = step.observation.copy(), step.observation.copy()
    hidden[:, 0, :2] += 1.0
    seen[:, 0, 2:7] += 1.0
    plain, without, with_seen = (
        acting(teacher)(changed_step, begins[0])
        for changed_step in (
            step,
            step._replace(observation=hidden, state=step.state + 1.0),
            step._replace(observation=seen),
        )
    )
    assert torch.equal(plain, without)
    assert not torch.allclose(plain[:, 0], with_seen[:, 0])
    assert torch.equal(plain[:, 1:], with_seen[:, 1:])


def test_what_an_episode_hides_changes_with_episodes_only():
    policy = acting(make_actor("mlp", TEAMS["random"]))
    (step,), _ = mixed_steps(1, envs=64)
    step = step._replace(observation=np.ones_like(step.observation))
    some = np.arange(64) % 2 == 0
    policy.begin(3)
    for begins in (np.ones(64, np.bool_), np.zeros(64, np.bool_), some):
        policy(step, begins)
    first, second, third = policy.inputs()
    assert torch.equal(first, second)
    differ = (second != third).flatten(1).any(-1).numpy()
    assert not differ[~some].any()
    assert differ[some].mean() > 0.9
    again, other = [], []
    for seed, kept in ((3, again), (4, other)):
        policy.begin(seed)
        policy(step, np.ones(64, np.bool_))
        kept.append(policy.inputs())
    assert torch.equal(again[0][0], first)
    assert not torch.equal(other[0][0], first)


ALL_LIVE = ((9, 9),) * 3  # more than there are: all that can change is shown, and told so


@pytest.mark.parametrize("network", ["mlp", "gru"])
@pytest.mark.parametrize(
    "team",
    [None, mixed_team(), mixed_team("mlp", ALL_LIVE)],
    ids=["everything", "restricted", "told"],
)
def test_the_player_acts_as_in_rollouts(network, team):
    teacher = make_actor(network, team)
    player, policy = TeacherPlayer(teacher, MIXED_TASK), acting(teacher)
    steps, begins = mixed_steps(20, envs=1)
    assert 2 < begins.sum() < 15
    for number, (step, begin) in enumerate(zip(steps, begins, strict=True)):
        if begin[0]:
            player.reset(number)
        view = View(
            tuple(
                observation[: agent.observation_size]
                for observation, agent in zip(step.observation[0], MIXED_TASK.agents, strict=True)
            ),
            step.state[0],
            tuple(
                mask[: len(agent.actions)]
                for mask, agent in zip(step.action_mask[0], MIXED_TASK.agents, strict=True)
            ),
        )
        for observation, agent in zip(step.observation[0], MIXED_TASK.agents, strict=True):
            observation[agent.observation_size :] = 0.0
        assert player.act(view) == policy(step, begin)[0].argmax(-1).tolist()


# The bound of a restriction


@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_a_bound_resumes_where_it_was_interrupted(network, tmp_path):
    """With recurrence, and with what episodes hide drawn at random."""
    task, team = make_task(TASK), load_team("simple_spread_random")
    recipe = recipe_of(architecture={"network": network, "width": 16, "layers": 2})
    whole = train_quietly(task, recipe, 2, tmp_path / "whole", team=team)

    def interrupt(iteration, figures):
        if iteration == 2:
            os.kill(os.getpid(), signal.SIGINT)

    folder = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        train_quietly(task, recipe, 2, folder, team=team, report=interrupt)
    resumed = train_quietly(task, recipe, 2, folder, team=team, resume=True)
    assert_equal_weights(resumed.state_dict(), whole.state_dict())


def test_a_bound_is_not_resumed_under_another_restriction(tmp_path, refusal):
    """Though the network would fit: with both teams it reads as many features."""
    document = TEAM_FILE | {"robots": {name: dict(r) for name, r in TEAM_FILE["robots"].items()}}
    teams = []
    for block in ("velocity", "position"):
        for robot in document["robots"].values():
            robot["sensors"] = [block]
        teams.append(load_team(str(write_yaml(tmp_path / f"{block}.yaml", document))))
    task, recipe, folder = make_task(TASK), recurrent(env_steps=400), tmp_path / "run"
    train_quietly(task, recipe, 2, folder, team=teams[0])
    message = refusal(train_quietly, task, recipe, 2, folder, team=teams[1], resume=True)
    assert message.startswith(str(folder / CHECKPOINT))
    assert "--resume" in message


def test_the_command_trains_a_bound(kdmarl, tmp_path, refusal):
    recipe = write_yaml(tmp_path / "recipe.yaml", TRAINING_RECIPE)
    done = kdmarl(
        "train", TASK, "--team", "simple_spread_lh", "--recipe", recipe, "--seed", "3",
        "--episodes", "2", "--threads", "1",
    )  # fmt: skip
    assert done.code == 0, done.err
    folder = tmp_path / "work" / "runs" / "train" / "mpe_simple_spread-simple_spread_lh-3"
    card = read_card(folder / "teacher")
    assert card.architecture == Architecture("gru", 16, 2)
    assert card.restriction["agent_1"].sensors == ("velocity", "position")
    assert card.command.startswith(
        f"kdmarl train {TASK} --seed 3 --threads 1 --team simple_spread_lh "
    )
    # A team that only computes otherwise has the same bound, another has not.
    bound, _ = load_bound(folder / "teacher", load_team("simple_spread_lha"))
    assert bound.recurrent
    message = refusal(load_bound, folder / "teacher", load_team("simple_spread"))
    assert message.startswith(str(folder / "teacher" / CARD))
    assert "--team simple_spread" in message
    message = refusal(load_teacher, folder / "teacher", make_task(TASK).spec)
    assert message.startswith(str(folder / "teacher" / CARD))
    assert "restriction" in message


def test_the_network_is_a_choice(train_command, tmp_path):
    done = train_command("--network", "gru", "--env-steps", "400")
    assert done.code == 0, done.err
    teacher, card = load_teacher(tmp_path / "work" / "run" / "teacher", make_task(TASK).spec)
    assert card.architecture.network == "gru"
    assert teacher.recurrent


def test_a_team_of_another_task_is_refused(train_command):
    done = train_command("--team", "smax_3m_lh")
    assert done.code == 2
    assert "smax/3m" in done.err
    assert done.left == []


def test_recurrence_needs_whole_sequences(refusal):
    message = refusal(recurrent, num_envs=25, rollout_steps=16, minibatches=2)
    assert "minibatches" in message
    assert "25" in message


def test_an_opponent_is_feed_forward(refusal):
    assert "mlp" in refusal(self_play, None, recurrent(), 0, lambda *_: None)


# Files


def test_save_and_load_round_trip(tmp_path):
    spec = make_task(TASK).spec
    teacher, card = make_teacher(spec)
    save_teacher(teacher, card, tmp_path / "teacher", overwrite=False)
    loaded, read = load_teacher(tmp_path / "teacher", spec)
    assert_equal_weights(loaded.state_dict(), teacher.state_dict())
    assert dataclasses.replace(read, weights_sha256="") == card
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert sorted(p.name for p in (tmp_path / "teacher").iterdir()) == [CARD, WEIGHTS]


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_short, flip_a_bit, lambda path: path.write_bytes(b"")])
def test_damaged_weights_are_refused(damage, tmp_path, refusal):
    folder = write_teacher(tmp_path / "teacher")
    damage(folder / WEIGHTS)
    message = refusal(load_teacher, folder, make_task(TASK).spec)
    assert message.startswith(str(folder / WEIGHTS))
    assert "copy it again" in message


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("task", "mpe/simple_tag", "mpe/simple_tag"),
        ("observation_sizes", [18, 18, 14], "14"),
        ("num_actions", 9, "9"),
        ("state_size", 54, "54"),
        ("seed", None, "seed"),
        ("seed", "zero", "zero"),
        ("architecture.network", "lstm", "lstm"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(path, value, named, tmp_path, refusal):
    folder = write_teacher(tmp_path / "teacher")
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(changed(card, path, value)))
    message = refusal(load_teacher, folder, make_task(TASK).spec)
    assert message.startswith(str(folder / CARD))
    assert named in message


def test_weights_of_another_width_are_refused(tmp_path, refusal):
    folder = write_teacher(tmp_path / "teacher", width=16)
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(changed(card, "architecture.width", 32)))
    message = refusal(load_teacher, folder, make_task(TASK).spec)
    assert message.startswith(str(folder / WEIGHTS))
    assert "does not fit" in message


def test_missing_weights_are_named(tmp_path, refusal):
    folder = write_teacher(tmp_path / "teacher")
    (folder / WEIGHTS).unlink()
    assert refusal(load_teacher, folder, make_task(TASK).spec).startswith(str(folder / WEIGHTS))
