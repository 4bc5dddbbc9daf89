"""SMAX: what is shown, forbidden and rewarded follows from the joint state by SMAX's rules."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from kdmarl_core.tasks import block_columns, live_columns, make_task, smax

ENVS = 6
STEPS = 400
MAPS = sorted(smax.tasks())
MAP_SIZE_M = 32.0
# By unit type, in the order of the type bits: marine, marauder, stalker, zealot, ...
SIGHT_M = np.array([9, 10, 10, 9, 8, 9])
ATTACK_RANGE_M = np.array([5, 6, 6, 2, 2, 5])
NORTH, STOP, ATTACK = 0, 4, 5  # actions; the first attack


def fight(mask, rng):
    """Mostly shoot where possible, else advance; the second half of a batch plays randomly."""
    wish = rng.random(mask.shape)
    brave = np.arange(len(mask)) < (len(mask) + 1) // 2
    wish[brave, :, ATTACK:] += 3
    wish[brave, :, 1] += 0.5
    return np.where(mask, wish, -1).argmax(-1)


def stand(mask, rng):
    """Never do anything."""
    return np.full(mask.shape[:-1], STOP)


@dataclass
class Played:
    """A batch's history: `shown[t + 1]` is what followed upon `actions[t]`."""

    spec: Any
    shown: list
    actions: list


def play(task, choose, steps=STEPS, seed=0):
    batch, rng = task.make_batch(ENVS), np.random.default_rng(0)
    shown, actions = [batch.reset(seed)], []
    for _ in range(steps):
        actions.append(choose(shown[-1].action_mask, rng))
        shown.append(batch.step(actions[-1]))
    return Played(task.spec, shown, actions)


@pytest.fixture(scope="module")
def played():
    """Plays each map only once for all tests."""
    kept = {}

    def of(name):
        if name not in kept:
            kept[name] = play(make_task(f"smax/{name}"), fight)
        return kept[name]

    return of


class Units:
    """The joint state taken apart; arrays [..., U] over all units, allies first."""

    def __init__(self, state):
        units = state[..., :-1].reshape(*state.shape[:-1], -1, 10)
        self.health = units[..., 0]
        self.alive = self.health > 0
        self.position_m = units[..., 1:3] * MAP_SIZE_M
        self.cooldown = units[..., 3]
        self.types = units[..., 4:].argmax(-1)
        self.step = np.rint(state[..., -1] * 100).astype(int)

    def relative_m(self, observer, other):
        return self.position_m[..., other, :] - self.position_m[..., observer, :]


def each_step(played):
    return zip(played.shown, played.actions, played.shown[1:], strict=False)


@pytest.mark.parametrize("name", MAPS)
def test_units_are_those_of_jaxmarl(name):
    from jaxmarl.environments import smax as jaxmarl_smax

    theirs, ours = jaxmarl_smax.map_name_to_scenario(name), smax.scenarios()[name]
    assert (theirs.num_allies, theirs.num_enemies) == (len(ours.allies), len(ours.enemies))
    env = jaxmarl_smax.HeuristicEnemySMAX(scenario=theirs)
    assert tuple(env.unit_type_names) == smax.UNIT_TYPES
    assert env.world_steps_per_env_step * env.time_per_step == 1 / smax.RATE_HZ
    if theirs.smacv2_unit_type_generation:
        expected = [frozenset(range(6))] * (theirs.num_allies + theirs.num_enemies)
    else:
        expected = [frozenset([int(unit)]) for unit in theirs.unit_types]
    assert [*ours.allies, *ours.enemies] == expected


def test_sizes():
    spec = make_task("smax/5m_vs_6m").spec
    assert [(block.name, block.size) for block in spec.agents[0].blocks] == [
        ("allies", 4 * 13),
        ("enemies", 6 * 13),
        ("own", 10),
    ]
    assert spec.agents[4].name == "ally_4"
    assert spec.agents[0].actions[3:7] == ("west", "stop", "attack_0", "attack_1")
    assert spec.num_actions == 5 + 6
    assert spec.state_size == 11 * 10 + 1
    assert spec.partially_observable
    assert spec.legal_actions_vary
    assert spec.can_be_won


@pytest.mark.parametrize("name", MAPS)
def test_idle_features_are_those_that_never_change(name, played):
    history = played(name)
    seen = np.concatenate([step.observation for step in history.shown])
    changing = np.flatnonzero(seen.max((0, 1)) != seen.min((0, 1)))
    assert changing.tolist() == live_columns(history.spec.agents[0].blocks).tolist()


@pytest.mark.parametrize("name", MAPS)
def test_an_attack_aims_at_the_enemy_of_its_row(name, played):
    """Where it is legal, that row shows somebody who is alive."""
    history = played(name)
    agent = history.spec.agents[0]
    allies, enemies, _ = agent.blocks
    assert (allies.rows, allies.aims) == (history.spec.num_agents - 1, ())
    assert enemies.aims == agent.actions[ATTACK:]
    columns = block_columns(agent.blocks)["enemies"]
    legal = np.concatenate([step.action_mask[..., ATTACK:] for step in history.shown])
    seen = np.concatenate([step.observation[..., columns] for step in history.shown])
    health = seen.reshape(*legal.shape, -1)[..., 0]
    assert (health[legal] > 0).all()
    assert min(legal.sum(), (health == 0).sum()) > 100


@pytest.mark.parametrize("name", ["5m_vs_6m", "3s5z", "smacv2_5_units"])
def test_observations_follow_from_the_joint_state(name, played):
    history = played(name)
    allies = history.spec.num_agents
    columns = block_columns(history.spec.agents[0].blocks)
    hidden = shown = 0
    for _, actions, now in each_step(history):
        units = Units(now.state)
        for i in range(allies):
            sight_m = SIGHT_M[units.types[:, i]]
            seen = now.observation[:, i]
            own = now.state[:, 10 * i : 10 * (i + 1)]
            assert np.array_equal(seen[:, columns["own"]], own)
            others = [j for j in range(units.alive.shape[-1]) if j != i]
            blocks = np.concatenate([seen[:, columns["allies"]], seen[:, columns["enemies"]]], -1)
            for j, features in zip(others, np.split(blocks, len(others), -1), strict=True):
                relative_m = units.relative_m(i, j)
                distance_m = np.linalg.norm(relative_m, axis=-1)
                visible = (distance_m < sight_m) & units.alive[:, i] & units.alive[:, j]
                unsure = np.abs(distance_m - sight_m) < 1e-3
                expected = np.concatenate(
                    [
                        units.health[:, [j]],
                        relative_m / sight_m[:, None],
                        features[:, 3:6],  # what it did: below
                        units.cooldown[:, [j]],
                        np.eye(6)[units.types[:, j]],
                    ],
                    -1,
                )
                expected = np.where(visible[:, None], expected, 0)
                np.testing.assert_allclose(features[~unsure], expected[~unsure], atol=1e-4)
                old = visible & ~unsure & ~now.done
                if j < allies:
                    last = actions[old, j]
                    moves = np.array([[0, 1], [1, 0], [0, -1], [-1, 0]] + [[0, 0]] * 20)[last]
                    attack = np.where(last >= ATTACK, last, 0) / (history.spec.num_actions - 1)
                    did = np.concatenate([moves, attack[:, None]], -1)
                    np.testing.assert_allclose(features[old, 3:6], did, atol=1e-5)
                shown += visible.sum()
                hidden += (~visible & units.alive[:, i] & units.alive[:, j]).sum()
    assert min(shown, hidden) > 1000  # both were part of what was compared


@pytest.mark.parametrize("name", ["5m_vs_6m", "3s5z", "smacv2_5_units"])
def test_attacks_are_legal_within_range_and_the_dead_stand_still(name, played):
    history = played(name)
    allies, dead_seen, attacks_seen = history.spec.num_agents, 0, 0
    for step in history.shown:
        units = Units(step.state)
        for i in range(allies):
            mask, alive = step.action_mask[:, i], units.alive[:, i]
            assert mask[:, STOP].all()
            assert (mask[:, :STOP] == alive[:, None]).all()
            distance_m = np.linalg.norm(
                units.position_m[:, allies:] - units.position_m[:, [i]], axis=-1
            )
            range_m = ATTACK_RANGE_M[units.types[:, [i]]]
            legal = (distance_m < range_m) & units.alive[:, allies:] & alive[:, None]
            unsure = np.abs(distance_m - range_m) < 1e-3
            assert ((mask[:, ATTACK:] == legal) | unsure).all()
            dead_seen += (~alive).sum()
            attacks_seen += legal.sum()
    assert min(dead_seen, attacks_seen) > 100


def test_directions():
    """A marine runs 3.15 m/s for half a second."""
    batch = make_task("smax/3m").make_batch(ENVS)
    for action, name in enumerate(make_task("smax/3m").spec.agents[0].actions[:5]):
        before = Units(batch.reset(0).state)
        after = Units(batch.step(np.full((ENVS, 3), action)).state)
        moved_m = np.median((after.position_m - before.position_m)[:, :3], axis=(0, 1))
        way = {"north": (0, 1), "east": (1, 0), "south": (0, -1), "west": (-1, 0), "stop": (0, 0)}
        np.testing.assert_allclose(moved_m, np.array(way[name]) * 3.15 / 2, atol=1e-3)


@pytest.mark.parametrize("name", ["3m", "5m_vs_6m"])
def test_reward_is_the_enemies_lost_health_and_one_for_a_win(name, played):
    history = played(name)
    allies = history.spec.num_agents
    for before, _, now in each_step(history):
        lost = (Units(before.state).health - Units(now.state).health)[:, allies:].mean(-1)
        going = ~now.done
        np.testing.assert_allclose(now.reward[going], lost[going], atol=1e-5)
        assert (now.won == (now.reward > 1)).all()
        assert not now.won[going].any()
        # A win takes all health that the enemies had left.
        left = Units(before.state).health[:, allies:].mean(-1)
        np.testing.assert_allclose(now.reward[now.won], 1 + left[now.won], atol=1e-5)


def test_some_are_won_and_some_are_lost(played):
    won = np.concatenate([step.won[step.done] for step in played("3m").shown])
    assert won.sum() > 5
    assert (~won).sum() > 5


def test_new_episodes_begin_where_the_old_ones_end(played):
    starts = []
    for before, _, now in each_step(played("3m")):
        earlier, units = Units(before.state), Units(now.state)
        assert (units.step == np.where(now.done, 0, earlier.step + 1)).all()
        assert (units.health[now.done] == 1).all()
        assert (units.cooldown[now.done] == 0).all()
        # Each team begins within 2 m of its own point, and is pushed apart a little.
        centres = np.array([[8, 16]] * 3 + [[24, 16]] * 3)
        assert (np.abs(units.position_m[now.done] - centres) < 3).all()
        starts.extend(units.position_m[now.done])
    assert len(starts) > ENVS * smax.POOLED_EPISODES  # more than one making of new episodes
    assert len(np.unique(np.array(starts).reshape(len(starts), -1), axis=0)) == len(starts)


def test_time_runs_out_after_the_episodes_steps():
    """Some of SMACv2's formations never meet if nobody moves."""
    history = play(make_task("smax/smacv2_5_units"), stand)
    clocks = np.array([Units(step.state).step for step in history.shown])
    ended = np.array([step.done for step in history.shown[1:]])
    lengths = clocks[:-1][ended] + 1
    assert lengths.max() == 100
    assert not any(step.won.any() for step in history.shown)


@pytest.mark.parametrize("name", ["3m", "3s5z"])
def test_reference_equals_the_batch_step_by_step(name):
    """The batch's first environment begins with the episode of the same seed."""
    task = make_task(f"smax/{name}")
    batch, reference, rng = task.make_batch(ENVS), task.make_reference(), np.random.default_rng(0)
    ends = set()
    for seed in range(6):
        now, view, done = batch.reset(seed), reference.reset(seed), False
        while not done:
            for ours, theirs in zip(
                view, (now.observation, now.state, now.action_mask), strict=True
            ):
                np.testing.assert_allclose(np.array(ours), theirs[0], atol=1e-4)
            actions = fight(now.action_mask, rng)
            now = batch.step(actions)
            view, reward, done, label = reference.step(list(actions[0]))
            assert reward == pytest.approx(float(now.reward[0]), abs=1e-5)
            assert done == now.done[0]
            assert label == ("" if not done else "won" if now.won[0] else "lost")
            health = Units(view.state).health
            assert (label == "won") == (health[task.spec.num_agents :] == 0).all()
        ends.add(label)
        last = Units(view.state)
        assert last.step == 100 or last.alive.reshape(2, -1).any(-1).sum() <= 1  # a team is gone
    assert ends == {"won", "lost"} or name != "3m"


def test_scene():
    reference = make_task("smax/3s5z").make_reference()
    view = reference.reset(3)
    units, scene = Units(view.state), reference.scene()
    assert [entity.name for entity in scene[7:10]] == ["ally_7", "enemy_0", "enemy_1"]
    assert [entity.kind for entity in scene] == ["agent"] * 8 + ["enemy"] * 8
    drawn_m = [(entity.x_m, entity.y_m) for entity in scene]
    np.testing.assert_allclose(drawn_m, units.position_m, atol=1e-4)
    stalker_m, zealot_m = 0.625, 0.5
    assert [entity.radius_m for entity in scene] == ([stalker_m] * 3 + [zealot_m] * 5) * 2


def test_simulators_of_one_map_do_not_disturb_each_other():
    """What they share is compiled, and does not change: two take turns as each does alone."""
    task = make_task("smax/3m")

    def turns(*seeds):
        batches = [task.make_batch(ENVS) for _ in seeds]
        shown = [[batch.reset(seed)] for batch, seed in zip(batches, seeds, strict=True)]
        for _ in range(40):
            for batch, history in zip(batches, shown, strict=True):
                rng = np.random.default_rng(len(history))
                history.append(batch.step(fight(history[-1].action_mask, rng)))
        return shown

    for together, alone in zip(turns(0, 1), [*turns(0), *turns(1)], strict=True):
        for ours, expected in zip(together, alone, strict=True):
            for field, value in zip(ours, expected, strict=True):
                np.testing.assert_array_equal(field, value)


def test_reference_simulators_of_one_map_do_not_disturb_each_other():
    task = make_task("smax/3m")
    rng, (first, second) = np.random.default_rng(0), (task.make_reference() for _ in range(2))
    view, _ = first.reset(0), second.reset(1)
    expected, found = [], []
    for _ in range(10):
        masks = np.stack(view.action_masks)
        actions = [int(a) for a in fight(masks[None], rng)[0]]
        second.step([STOP] * 3)
        view, *_ = first.step(actions)
        found.append((actions, view.state))
    alone = task.make_reference()
    alone.reset(0)
    for actions, _ in found:
        expected.append(alone.step(actions)[0].state)
    np.testing.assert_array_equal([state for _, state in found], expected)
