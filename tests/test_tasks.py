"""One contract for all tasks; and the simulator that trains equals the one that judges."""

import importlib

import numpy as np
import pytest

from kdmarl_core.tasks import block_columns, make_task, select_blocks, select_columns, task_names
from kdmarl_core.tasks.opponent import greedy, load_opponent

ENVS = 6
# Of the families that make a task of any environment that there is, or of any number.
FOREIGN = [
    "mpe/simple_spread_5",
    "pettingzoo/mpe2.simple_reference_v3",
    "pettingzoo/pettingzoo.sisl.pursuit_v5?max_cycles=12&n_pursuers=3",
    "pettingzoo/foreign_envs:Corridors?episode_steps=9",
    "pymarl/foreign_envs:Battle?n_enemies=2",
    "pymarl/foreign_envs:Lamps",
    "pymarl/foreign_envs:Dialect",
]
TASKS = [*task_names(), *FOREIGN]


class Simulated:
    """A task with its simulators, made once: compiling them is what takes time."""

    def __init__(self, name):
        self.task = make_task(name)
        self.spec = self.task.spec
        self.batch = self.task.make_batch(ENVS)
        self.reference = self.task.make_reference()

    def random_actions(self, rng):
        counts = [len(agent.actions) for agent in self.spec.agents]
        return np.stack([rng.integers(count, size=ENVS) for count in counts], -1)

    def random_legal_actions(self, mask, rng):
        return np.where(mask, rng.random(mask.shape), -1.0).argmax(-1)


@pytest.fixture(scope="module", params=TASKS)
def simulated(request):
    return Simulated(request.param)


def batch_episode(simulated, seed, steps=None):
    """What a batch shows from a reset on, under actions that depend on the seed only."""
    rng = np.random.default_rng(1)
    shown = [simulated.batch.reset(seed)]
    for _ in range(steps or simulated.spec.episode_steps):
        actions = simulated.random_legal_actions(shown[-1].action_mask, rng)
        shown.append(simulated.batch.step(actions))
    return shown


def reference_episode(simulated, seed):
    """Views and rewards of one whole episode, under actions that depend on the seed only."""
    rng = np.random.default_rng(1)
    views, rewards, done = [simulated.reference.reset(seed)], [], False
    while not done:
        masks = views[-1].action_masks
        actions = [int(simulated.random_legal_actions(mask, rng)) for mask in masks]
        outcome = simulated.reference.step(actions)
        views.append(outcome.view)
        rewards.append(outcome.reward)
        done = outcome.done
    return views, rewards


def test_description(simulated):
    spec = simulated.spec
    assert spec.name in TASKS
    assert make_task(spec.name).spec == spec
    assert spec.episode_steps > 0
    assert spec.rate_hz > 0
    assert len({agent.name for agent in spec.agents}) == spec.num_agents > 0
    for agent in spec.agents:
        assert len({block.name for block in agent.blocks}) == len(agent.blocks) > 0
        assert len(set(agent.actions)) == len(agent.actions) > 0
        assert agent.observation_size == sum(block.size for block in agent.blocks)
        assert all(block.unit for block in agent.blocks)
    assert spec.action_exists.sum(-1).tolist() == [len(agent.actions) for agent in spec.agents]
    alike = len({(agent.blocks, agent.actions) for agent in spec.agents}) == 1
    assert spec.homogeneous == alike


def test_batch_sizes_and_types(simulated):
    spec = simulated.spec
    sizes = {
        "observation": (np.float32, (ENVS, spec.num_agents, spec.observation_size)),
        "state": (np.float32, (ENVS, spec.state_size)),
        "action_mask": (np.bool_, (ENVS, spec.num_agents, spec.num_actions)),
        "reward": (np.float32, (ENVS,)),
        "done": (np.bool_, (ENVS,)),
        "won": (np.bool_, (ENVS,)),
    }
    for step in batch_episode(simulated, seed=0, steps=2):
        for name, (kind, shape) in sizes.items():
            value = getattr(step, name)
            assert (value.dtype, value.shape) == (kind, shape), name
            assert np.isfinite(value).all()
        for index, agent in enumerate(spec.agents):
            assert (step.observation[:, index, agent.observation_size :] == 0).all()
        assert not (step.action_mask & ~spec.action_exists).any()
        assert step.action_mask.any(-1).all()
        assert not (step.won & ~step.done).any()
        if not spec.legal_actions_vary:
            assert (step.action_mask == spec.action_exists).all()
        if not spec.can_be_won:
            assert not step.won.any()


def test_reference_sizes_and_types(simulated):
    agents = simulated.spec.agents
    views, rewards = reference_episode(simulated, seed=0)
    for view in views:
        assert [o.shape for o in view.observations] == [(a.observation_size,) for a in agents]
        assert [m.shape for m in view.action_masks] == [(len(a.actions),) for a in agents]
        assert {o.dtype for o in view.observations} == {np.dtype(np.float32)}
        assert {m.dtype for m in view.action_masks} == {np.dtype(np.bool_)}
        assert (view.state.shape, view.state.dtype) == ((simulated.spec.state_size,), np.float32)
        assert all(np.isfinite(o).all() for o in (*view.observations, view.state))
        assert all(mask.any() for mask in view.action_masks)
    assert all(type(reward) is float for reward in rewards)
    scene = simulated.reference.scene()
    assert len({entity.name for entity in scene}) == len(scene)
    drawn = [entity.name for entity in scene if entity.kind == "agent"]
    assert drawn == [agent.name for agent in agents] or not scene


def test_episodes_end_in_time(simulated):
    spec = simulated.spec
    _, rewards = reference_episode(simulated, seed=0)
    assert len(rewards) <= spec.episode_steps
    dones = np.stack([s.done for s in batch_episode(simulated, 0, 2 * spec.episode_steps)])
    if spec.ends_early:
        return
    assert len(rewards) == spec.episode_steps
    expected = [step in (spec.episode_steps, 2 * spec.episode_steps) for step in range(len(dones))]
    assert (dones == np.array(expected)[:, None]).all()


def test_after_the_end_comes_another_episode(simulated):
    if simulated.spec.ends_early:
        pytest.skip("ends are not at a known step")
    shown = batch_episode(simulated, seed=0)
    first, last, next_first = shown[0], shown[-2], shown[-1]
    assert next_first.done.all()
    assert not np.allclose(next_first.observation, first.observation)
    # A step moves a little, a new episode goes anywhere.
    moved = np.abs(next_first.observation - last.observation).mean()
    usual = np.abs(shown[2].observation - shown[1].observation).mean()
    assert moved > 2 * usual


def test_a_reset_in_the_middle_begins_anew(simulated):
    whole = batch_episode(simulated, seed=3)
    batch_episode(simulated, seed=4, steps=simulated.spec.episode_steps // 2)
    again = batch_episode(simulated, seed=3)
    for a, b in zip(whole, again, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_seeds(simulated):
    first, again, other = (batch_episode(simulated, seed, 3) for seed in (5, 5, 6))
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a.observation, b.observation)
        assert np.array_equal(a.reward, b.reward)
    assert not np.array_equal(first[0].observation, other[0].observation)
    # Environments of one batch differ from each other, too.
    assert len(np.unique(first[0].observation.reshape(ENVS, -1), axis=0)) == ENVS


def test_reference_seeds(simulated):
    def features(views):
        return np.concatenate([vector for view in views for vector in view.observations])

    (first, rewards), (again, same), (other, _) = (
        reference_episode(simulated, seed) for seed in (5, 5, 6)
    )
    assert np.array_equal(features(first), features(again))
    assert rewards == same
    assert not np.array_equal(features(first[:1]), features(other[:1]))


# MPE: the batch hides its state, but a first observation tells where everything is. The reference
# simulator's own package is put into that state, and both are stepped with the same actions.


def place_simple_spread(world, observations, spec):
    """Put `mpe2`'s world where the first observations say that everything is."""
    columns = block_columns(spec.agents[0].blocks)
    for agent, observation in zip(world.agents, observations, strict=True):
        agent.state.p_pos = observation[columns["position"]].astype(np.float64)
        agent.state.p_vel = observation[columns["velocity"]].astype(np.float64)
    relative = observations[0][columns["landmarks"]].reshape(-1, 2).astype(np.float64)
    for landmark, offset in zip(world.landmarks, relative, strict=True):
        landmark.state.p_pos = world.agents[0].state.p_pos + offset


def place_speaker_listener(world, observations, spec):
    """As above; only distances matter, so the listener stands at the origin."""
    speaker, listener = world.agents
    goal = world.landmarks[int(observations[0][:3].argmax())]
    speaker.goal_a, speaker.goal_b = listener, goal
    columns = block_columns(spec.agents[1].blocks)
    listener.state.p_pos = np.zeros(2)
    listener.state.p_vel = observations[1][columns["velocity"]].astype(np.float64)
    relative = observations[1][columns["landmarks"]].reshape(-1, 2).astype(np.float64)
    for landmark, offset in zip(world.landmarks, relative, strict=True):
        landmark.state.p_pos = offset


def place_simple_adversary(world, observations, spec):
    """As above; only differences matter, so the first robot stands at the origin."""
    columns = block_columns(spec.agents[0].blocks)
    offsets = observations[0].astype(np.float64)
    adversary, first, second = world.agents
    first.state.p_pos = np.zeros(2)
    second.state.p_pos = offsets[columns["teammates"]]
    adversary.state.p_pos = offsets[columns["adversary"]]
    for landmark, offset in zip(
        world.landmarks, offsets[columns["landmarks"]].reshape(2, 2), strict=True
    ):
        landmark.state.p_pos = offset
        if np.array_equal(offset, offsets[columns["goal"]]):
            for agent in world.agents:
                agent.goal_a = landmark


def frozen_opponent(task):
    """What the task's opponent does, as a function of the `mpe2` environment that it plays in."""
    if task.opponent is None:
        return lambda judge: {}
    layers, name = load_opponent(task.opponent, task.spec.name), task.opponent.agent.name

    def act(judge):
        return {name: int(greedy(layers, judge.unwrapped.observe(name).astype(np.float32)))}

    return act


def crowded_actions(observation, rng):
    """Half of the time towards robot 0's side, so that robots bump into each other."""
    x, y = observation[..., 2], observation[..., 3]
    towards = np.where(np.abs(x) > np.abs(y), np.where(x > 0, 1, 2), np.where(y > 0, 3, 4))
    return np.where(rng.random(towards.shape) < 0.5, towards, rng.integers(5, size=towards.shape))


def any_moves(observation, rng):
    return rng.integers(5, size=observation.shape[:2])


def any_words_and_moves(observation, rng):
    """Speaker's words and listener's moves."""
    return np.stack([rng.integers(count, size=len(observation)) for count in (3, 5)], -1)


# Module of `mpe2`, how to place its entities, which actions to take, in how many episodes.
SCENARIOS = {
    "mpe/simple_adversary": ("simple_adversary_v3", place_simple_adversary, any_moves, 50),
    "mpe/simple_spread": ("simple_spread_v3", place_simple_spread, crowded_actions, 12),
    "mpe/simple_speaker_listener": (
        "simple_speaker_listener_v4",
        place_speaker_listener,
        any_words_and_moves,
        12,
    ),
}


def test_every_mpe_task_is_compared():
    assert [name for name in task_names() if name.startswith("mpe/")] == sorted(SCENARIOS)


@pytest.mark.parametrize("name", SCENARIOS)
def test_mpe_batch_equals_mpe2_step_by_step(name):
    module, place, choose, envs = SCENARIOS[name]
    task = make_task(name)
    names = [agent.name for agent in task.spec.agents]
    batch, opponent = task.make_batch(envs), frozen_opponent(task)
    parallel_env = importlib.import_module(f"mpe2.{module}").parallel_env
    judges = [parallel_env(max_cycles=25) for _ in range(envs)]
    now = batch.reset(11)
    for judge, observations in zip(judges, now.observation, strict=True):
        judge.reset(seed=0)
        place(judge.unwrapped.world, observations, task.spec)
    rng, bumps = np.random.default_rng(0), 0
    for step in range(1, 26):
        actions = choose(now.observation, rng)
        now = batch.step(actions)
        for env, judge in enumerate(judges):
            named = dict(zip(names, map(int, actions[env]), strict=True))
            observed, rewards, _, truncated, _ = judge.step(named | opponent(judge))
            rewards = {name: rewards[name] for name in names}
            bumps += len(set(rewards.values())) > 1
            assert now.reward[env] == pytest.approx(np.mean(list(rewards.values())), abs=1e-4)
            assert all(truncated.values()) == now.done[env] == (step == 25)
            if step < 25:  # then the batch shows the next episode already
                for i, name in enumerate(names):
                    shown = now.observation[env, i]
                    size = len(observed[name])
                    np.testing.assert_allclose(shown[:size], observed[name], atol=1e-4)
                    assert (shown[size:] == 0).all()
                joint = [*np.concatenate([observed[name] for name in names]), step / 25]
                np.testing.assert_allclose(now.state[env], joint, atol=1e-4)
    assert bumps > 20 or "spread" not in module  # bumping was part of what was compared


def nearest_first(offsets, count):
    pairs = sorted(offsets.reshape(-1, 2).tolist(), key=lambda pair: np.hypot(*pair))
    return np.array(pairs[:count]).ravel()


def as_one_of_many_sees(observed, robots):
    """By hand, from `mpe2`'s own observation: motion, then the nearest three and two."""
    motion, landmarks, others = np.split(observed[: 4 * robots + 2], [4, 4 + 2 * robots])
    return np.concatenate([motion, nearest_first(landmarks, 3), nearest_first(others, 2)])


def test_many_robots_see_what_is_nearest_in_mpe2():
    robots = 5
    reference = make_task(f"mpe/simple_spread_{robots}").make_reference()
    judge = importlib.import_module("mpe2.simple_spread_v3").parallel_env(N=robots, max_cycles=25)
    rng = np.random.default_rng(0)
    observed, _ = judge.reset(seed=5)
    shown, done = reference.reset(5), False
    while not done:
        for seen, own in zip(shown.observations, observed.values(), strict=True):
            np.testing.assert_allclose(seen, as_one_of_many_sees(own, robots), rtol=1e-6)
        actions = rng.integers(5, size=robots).tolist()
        observed, rewards, *_ = judge.step(dict(zip(judge.agents, actions, strict=True)))
        shown, reward, done, _ = reference.step(actions)
        assert reward == pytest.approx(np.mean(list(rewards.values())), abs=1e-12)


def test_many_robots_in_the_batch_are_those_of_mpe2():
    robots, task = 4, make_task("mpe/simple_spread_4")
    columns = block_columns(task.spec.agents[0].blocks)
    batch, rng, compared = task.make_batch(ENVS), np.random.default_rng(0), 0
    now = batch.reset(11)
    judges = {}
    for env, observations in enumerate(now.observation):
        spots = observations[:, None, columns["position"]] + observations[
            :, columns["landmarks"]
        ].reshape(robots, 3, 2)
        landmarks = np.unique(spots.reshape(-1, 2).round(4), axis=0)
        if len(landmarks) != robots:  # one is nobody's nearest, or rounding tells one twice
            continue
        judges[env] = judge = importlib.import_module("mpe2.simple_spread_v3").parallel_env(
            N=robots, max_cycles=25
        )
        judge.reset(seed=0)
        for agent, observation in zip(judge.unwrapped.world.agents, observations, strict=True):
            agent.state.p_pos = observation[columns["position"]].astype(np.float64)
            agent.state.p_vel = observation[columns["velocity"]].astype(np.float64)
        for landmark, spot in zip(judge.unwrapped.world.landmarks, landmarks, strict=True):
            landmark.state.p_pos = spot.astype(np.float64)
    for _ in range(24):
        actions = crowded_actions(now.observation, rng)
        now = batch.step(actions)
        for env, judge in judges.items():
            named = dict(zip(judge.agents, map(int, actions[env]), strict=True))
            observed, rewards, *_ = judge.step(named)
            assert now.reward[env] == pytest.approx(np.mean(list(rewards.values())), abs=2e-3)
            for seen, own in zip(now.observation[env], observed.values(), strict=True):
                expected = as_one_of_many_sees(own, robots)
                compared += 1
                # Two that are equally near may be told in either order.
                np.testing.assert_allclose(np.sort(seen), np.sort(expected), atol=2e-3)
    assert compared > 24 * robots


@pytest.mark.parametrize("name", SCENARIOS)
def test_mpe_reference_is_mpe2(name):
    task = make_task(name)
    names = [agent.name for agent in task.spec.agents]
    reference, opponent = task.make_reference(), frozen_opponent(task)
    judge = importlib.import_module(f"mpe2.{SCENARIOS[name][0]}").parallel_env(max_cycles=25)
    rng = np.random.default_rng(0)
    observed, _ = judge.reset(seed=77)
    shown, done = reference.reset(77), False
    while not done:
        for agent, seen in zip(names, shown.observations, strict=True):
            np.testing.assert_array_equal(seen, observed[agent].astype(np.float32))
        actions = [int(rng.integers(len(agent.actions))) for agent in task.spec.agents]
        named = dict(zip(names, actions, strict=True)) | opponent(judge)
        observed, rewards, _, truncated, _ = judge.step(named)
        shown, reward, done, label = reference.step(actions)
        assert reward == pytest.approx(np.mean([rewards[agent] for agent in names]), abs=1e-12)
        assert done == all(truncated.values())
        assert label == ""


# Blocks

BLOCKS = make_task("mpe/simple_spread").spec.agents[0].blocks


def test_blocks_lie_one_behind_the_other():
    columns = block_columns(BLOCKS)
    covered = np.concatenate([np.arange(99)[part] for part in columns.values()])
    assert covered.tolist() == list(range(sum(block.size for block in BLOCKS)))


def test_selection_is_in_the_tasks_order():
    kept = select_blocks(BLOCKS, ["landmarks", "velocity"], "here")
    assert [block.name for block in kept] == ["velocity", "landmarks"]
    assert select_columns(BLOCKS, kept).tolist() == [0, 1, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["velocity", "landmark"], "landmarks"),
        (["velocity", "velocity"], "once"),
        ([], "at least one"),
    ],
)
def test_wrong_selections_are_refused(names, said, refusal):
    message = refusal(select_blocks, BLOCKS, names, "team.yaml: sensors")
    assert message.startswith("team.yaml: sensors")
    assert said in message


@pytest.mark.parametrize("name", ["mpe/simple_spred", "mpe", "simple_spread", "", "nowhere/"])
def test_unknown_tasks_are_refused(name, refusal):
    message = refusal(make_task, name, "team.yaml: task")
    assert message.startswith("team.yaml: task")
    assert "mpe/simple_spread" in message
