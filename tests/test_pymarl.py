"""Environments with PyMARL's interface, and SMAC's, whose game is nowhere to be had for tests."""

import random
import sys

import numpy as np
import pytest
from foreign_envs import Battle

from kdmarl_core.tasks import block_columns, make_task
from kdmarl_core.tasks.pymarl import STARCRAFT_GAMES

BATTLE = "pymarl/foreign_envs:Battle"
LAMPS = "pymarl/foreign_envs:Lamps"
DIALECT = "pymarl/foreign_envs:Dialect"
STOP, FIRE = 1, 6  # and the enemies from there on


def begun(name, seed=0):
    task = make_task(name)
    reference = task.make_reference()
    return task.spec, reference, reference.reset(seed)


def masks(view):
    return [mask.astype(int).tolist() for mask in view.action_masks]


# What environments say of themselves


def test_plain_pymarl():
    spec = make_task(f"{LAMPS}?lamps=3&steps=5").spec
    assert [agent.name for agent in spec.agents] == ["agent_0", "agent_1", "agent_2"]
    assert [(block.name, block.size) for block in spec.agents[0].blocks] == [("observation", 2)]
    assert spec.agents[0].actions == ("action_0", "action_1")
    assert (spec.episode_steps, spec.state_size, spec.homogeneous) == (5, 7, True)
    assert spec.partially_observable
    assert spec.legal_actions_vary
    assert not spec.can_be_won


@pytest.mark.parametrize("timed", [False, True])
def test_smacs_blocks_are_where_smac_puts_them(timed):
    spec, reference, view = begun(f"{BATTLE}?n_enemies=2&obs_timestep_number={timed}")
    assert spec.can_be_won
    sizes = {"move": 4, "enemies": 2 * 5, "allies": 2 * 5, "own": 1} | (
        {"time": 1} if timed else {}
    )
    assert {block.name: block.size for block in spec.agents[1].blocks} == sizes
    rows = {block.name: block.rows for block in spec.agents[1].blocks if block.lists}
    assert rows == {"enemies": 2, "allies": 2}
    aims = {block.name: block.aims for block in spec.agents[1].blocks if block.aims}
    assert aims == {"enemies": ("target_0", "target_1")}
    moves = ("noop", "stop", "north", "south", "east", "west")
    assert spec.agents[1].actions == (*moves, "target_0", "target_1")
    view = reference.step([FIRE, STOP, STOP]).view
    columns = block_columns(spec.agents[1].blocks)
    shown = {name: view.observations[1][part] for name, part in columns.items()}
    # The state is the health of the three allies, then of the two enemies.
    health = view.state[:-1]
    assert view.state[-1] == np.float32(1 / 8)
    assert shown["move"].tolist() == [1, 1, 1, 1]
    assert shown["enemies"].reshape(2, 5)[:, 4].tolist() == health[3:].tolist()
    assert shown["allies"].reshape(2, 5)[:, 4].tolist() == health[[0, 2]].tolist()
    assert shown["own"].tolist() == health[[1]].tolist()
    if timed:
        assert shown["time"].tolist() == [1 / 8]


# Stepping


def test_masks_and_agents_that_die():
    """The first ally dies at step 3, the second one at step 6, and the episode ends at step 8."""
    _, reference, view = begun(f"{BATTLE}?n_enemies=1")
    alive, dead = [0, 1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0, 0]
    assert masks(view) == [alive] * 3
    outcomes = [reference.step([STOP] * 3) for _ in range(8)]
    assert masks(outcomes[1].view) == [alive] * 3
    assert masks(outcomes[2].view) == [dead, alive, alive]
    assert masks(outcomes[5].view) == [dead, dead, alive]
    assert not outcomes[2].view.observations[0].any()
    assert [outcome.done for outcome in outcomes] == [False] * 7 + [True]
    assert [outcome.label for outcome in outcomes] == [""] * 7 + ["lost"]


def test_a_battle_that_is_won():
    """Three allies that fire at the only enemy take 0.75 of its health at once, then the rest."""
    _, reference, view = begun(f"{BATTLE}?n_enemies=1", seed=2)
    health = float(view.state[3])
    rewards, outcome = [], None
    while outcome is None or not outcome.done:
        outcome = reference.step([FIRE] * 3)
        rewards.append(outcome.reward)
    assert outcome.label == "won"
    assert len(rewards) == (1 if health <= 0.75 else 2)
    assert sum(rewards) == pytest.approx(health + 10, abs=1e-6)


def test_an_illegal_action_becomes_the_first_legal_one():
    """The environment fails at others, as SMAC does; a lost robot's safe action may be one."""
    _, reference, _ = begun(f"{BATTLE}?n_enemies=1")
    for _ in range(8):
        outcome = reference.step([STOP, 0, STOP])  # no-op is for the dead, stop for the living
    assert outcome.done


def test_a_batch_tells_who_won():
    task = make_task(f"{BATTLE}?n_enemies=1")
    batch = task.make_batch(2)
    now = batch.reset(0)
    fires, waits = [FIRE] * 3, [STOP] * 3
    ended = {}
    for step in range(1, 9):
        before, now = now, batch.step(np.array([fires, waits]))
        for env in np.flatnonzero(now.done):
            ended.setdefault(int(env), (step, bool(now.won[env])))
            # what is shown is the next episode, with everybody alive again
            assert now.state[env, :3].all()
            assert not np.array_equal(now.state[env], before.state[env])
    assert ended[1] == (8, False)
    assert ended[0][1]
    assert ended[0][0] <= 2


def test_epymarls_dialect():
    """Rewards of several agents become their mean; whoever never ends is ended at the limit."""
    spec, reference, view = begun(DIALECT, seed=9)
    assert spec.can_be_won
    assert view.state[[0, 2]].tolist() == pytest.approx(np.random.default_rng(9).random(2))
    outcomes = [reference.step([1, 0]) for _ in range(3)]
    assert [outcome.reward for outcome in outcomes] == [0.5] * 3
    assert masks(outcomes[2].view) == [[1, 0], [1, 1]]
    outcomes += [reference.step([0, 1]) for _ in range(3)]
    assert [(o.done, o.label) for o in outcomes[4:]] == [(False, ""), (True, "won")]
    reference.reset(9)
    outcomes = [reference.step([0, 0]) for _ in range(7)]
    assert [(o.done, o.label) for o in outcomes[5:]] == [(False, ""), (True, "lost")]


# Seeds


def test_an_environment_draws_from_streams_of_its_own():
    """Nobody else's draws change an episode, and an episode changes nobody else's draws."""

    def episode(reference, disturb):
        views = [reference.reset(5)]
        for _ in range(4):
            disturb()
            views.append(reference.step([0, 0]).view)
        return np.stack([view.state for view in views])

    def disturb():
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        other.step([1, 1])

    task = make_task(LAMPS)
    first, second, other = (task.make_reference() for _ in range(3))
    quiet = episode(first, lambda: None)
    other.reset(1)
    assert np.array_equal(episode(second, disturb), quiet)
    assert np.array_equal(episode(first, lambda: None), quiet)
    assert len(np.unique(quiet[:, 0])) == 5

    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    expected = random.random(), np.random.random()  # noqa: NPY002
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    episode(first, lambda: None)
    assert (random.random(), np.random.random()) == expected  # noqa: NPY002


def test_seeds_of_constructors(monkeypatch):
    """Each copy is made with the seed of its first episode, unless the name gives one."""
    given = []
    made = Battle.__init__

    def noted(self, map_name="3m", n_enemies=3, seed=None):
        made(self, map_name, n_enemies, seed)
        given.append(seed)

    monkeypatch.setattr(Battle, "__init__", noted)
    reference = make_task(BATTLE).make_reference()
    given.clear()
    for seed in (11, 12):
        reference.reset(seed)
    assert given == [11]
    make_task(BATTLE).make_batch(3).reset(0)
    assert len(set(given[-3:])) == 3
    make_task(f"{BATTLE}?seed=7").make_batch(2).reset(0)
    assert given[-3:] == [7, 7, 7]


# What cannot be played


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pymarl/", ["pymarl/<module>:<class>"]),
        ("pymarl/foreign_envs", ["foreign_envs:<callable>"]),
        ("pymarl/foreign_envs:Lamp", ["'Lamp'", "foreign_envs"]),
        ("pymarl/nowhere:Env", ["'nowhere'", "pip install"]),
        ("pymarl/foreign_envs:Corridors", ["Corridors lacks", "get_avail_actions", "MultiAgent"]),
        ("pymarl/foreign_envs:Lamps?lamp=3", ["lamp", "options"]),
    ],
)
def test_what_cannot_be_played(name, words, refusal):
    message = refusal(make_task, name, "team.yaml: task")
    assert message.startswith(f"team.yaml: task: {name}: ")
    for word in words:
        assert word in message


def test_env_info_that_lacks_something(refusal, monkeypatch):
    monkeypatch.setattr(Battle, "get_env_info", lambda self: {"n_agents": 3, "n_actions": 9})
    message = refusal(make_task, BATTLE)
    for word in ("obs_shape", "state_shape", "episode_limit"):
        assert word in message


# StarCraft II


@pytest.fixture
def smacv2(tmp_path, monkeypatch):
    """A package that is laid out as smacv2 is, and an empty place for the game."""
    maps = tmp_path / "smacv2" / "env" / "starcraft2" / "maps"
    maps.mkdir(parents=True)
    for folder in (maps, *list(maps.parents)[:3]):
        (folder / "__init__.py").write_text("")
    (maps.parents[1] / "__init__.py").write_text(
        "from foreign_envs import Battle\n\n\nclass StarCraft2Env(Battle):\n    pass\n"
    )
    (maps / "smac_maps.py").write_text(
        "def get_smac_map_registry():\n    return {'3m': {}, '8m': {}}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    game = tmp_path / "game"
    monkeypatch.setenv("SC2PATH", str(game))
    yield game
    for name in [name for name in sys.modules if name.partition(".")[0] == "smacv2"]:
        del sys.modules[name]


def test_smac_without_smacv2(refusal, tmp_path, monkeypatch):
    """Nor is the package index's `smac`, which tunes hyperparameters, taken for it."""
    monkeypatch.setitem(sys.modules, "smacv2", None)
    (tmp_path / "smac").mkdir()
    (tmp_path / "smac" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "smac", raising=False)
    message = refusal(make_task, "smac/3m", "team.yaml: task")
    sys.modules.pop("smac")
    assert message.startswith("team.yaml: task: smac/3m: ")
    for word in ("smacv2", "not installed", "oxwhirl/smacv2", "smax/"):
        assert word in message


@pytest.mark.parametrize("name", ["smac/3m", "pymarl/smacv2.env:StarCraft2Env?map_name=3m"])
def test_smac_without_the_game(smacv2, refusal, name):
    for word, missing in (("SC2PATH", smacv2), ("SMAC_Maps", smacv2 / "Maps" / "SMAC_Maps")):
        message = refusal(make_task, name)
        assert message.startswith(f"{name}: ")
        assert str(missing) in message
        assert word in message
        (smacv2 / "Versions").mkdir(parents=True, exist_ok=True)


def test_smac_with_everything(smacv2, refusal):
    (smacv2 / "Versions").mkdir(parents=True)
    (smacv2 / "Maps" / "SMAC_Maps").mkdir(parents=True)
    message = refusal(make_task, "smac/3n")
    assert message.startswith("smac/3n: unknown map '3n'; did you mean 3m?")
    task = make_task("smac/8m?n_enemies=2")
    assert (task.spec.name, task.spec.rate_hz, task.spec.can_be_won) == (
        "smac/8m?n_enemies=2",
        2.0,
        True,
    )
    reference = task.make_reference()
    reference.reset(0)
    assert not reference.step([STOP] * 3).done
    task.make_batch(STARCRAFT_GAMES)
    message = refusal(task.make_batch, STARCRAFT_GAMES + 1)
    assert "num_envs: 17" in message
    assert "at most 16" in message


# SMAClite

SMACLITE_ENV = '''
import numpy as np


class SMACliteEnv:
    """What SMAClite's class has, and no more."""

    def __init__(self, map_info, seed=None, use_cpp_rvo2=False):
        self.n_agents, self.n_enemies = map_info.allies, 2
        self.n_actions, self.enemy_feat_size, self.ally_feat_size = 8, 6, 5
        self.obs_size = 4 + 2 * 6 + (self.n_agents - 1) * 5 + 3
        self.state_size = 9

    def reset(self, seed=None, options=None):
        self.steps = 0
        return self.get_obs(), {}

    def step(self, actions):
        assert all(type(action) is int for action in actions)
        self.steps += 1
        won = actions == [6] * self.n_agents
        return self.get_obs(), float(won), won, False, {"battle_won": won}

    def get_obs(self):
        return tuple(np.arange(self.obs_size, dtype=np.float32) for _ in range(self.n_agents))

    def get_state(self):
        return np.zeros(self.state_size, np.float32)

    def get_avail_actions(self):
        return [np.eye(self.n_actions)[1] + np.eye(self.n_actions)[6]] * self.n_agents

    def close(self):
        pass
'''
SMACLITE_MAPS = """
from enum import Enum
from types import SimpleNamespace


class MapPreset(Enum):
    SMALL = SimpleNamespace(name="2s3z", allies=3)
"""


@pytest.fixture
def smaclite(tmp_path, monkeypatch):
    """A package that is laid out as SMAClite is."""
    maps = tmp_path / "smaclite" / "env" / "maps"
    maps.mkdir(parents=True)
    for folder in (maps, *list(maps.parents)[:2]):
        (folder / "__init__.py").write_text("")
    (maps.parent / "__init__.py").write_text(SMACLITE_ENV)
    (maps / "map.py").write_text(SMACLITE_MAPS)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "smaclite"]:
        del sys.modules[name]


def test_smaclite(smaclite, refusal):
    """Its features are SMAC's; what it does not tell of itself follows from them."""
    task = make_task("smaclite/2s3z?episode_limit=4")
    blocks = task.spec.agents[0].blocks
    assert [(block.name, block.size, block.rows) for block in blocks] == [
        ("move", 4, 1),
        ("enemies", 12, 2),
        ("allies", 10, 2),
        ("own", 3, 1),
    ]
    assert task.spec.agents[0].actions[-3:] == ("west", "target_0", "target_1")
    assert (task.spec.num_agents, task.spec.episode_steps, task.spec.can_be_won) == (3, 4, True)
    reference = task.make_reference()
    reference.reset(0)
    assert [reference.step([STOP] * 3).done for _ in range(4)] == [False] * 3 + [True]
    reference.reset(1)
    ended = reference.step([6] * 3)
    assert (ended.done, ended.label, ended.reward) == (True, "won", 1.0)
    assert make_task("smaclite/2s3z").spec.episode_steps == 150
    for name, words in (
        ("smaclite/2s3x", "unknown map '2s3x'; did you mean 2s3z?"),
        ("smaclite/2s3z?episode_limit=0", "option 'episode_limit': 0 is no number of steps"),
        ("smaclite/2s3z?speed=2", "speed"),
    ):
        message = refusal(make_task, name, "team.yaml: task")
        assert message.startswith(f"team.yaml: task: {name}: ")
        assert words in message


def test_smaclite_that_is_not_installed(refusal, monkeypatch):
    monkeypatch.setitem(sys.modules, "smaclite", None)
    message = refusal(make_task, "smaclite/2s3z", "team.yaml: task")
    for word in ("SMAClite", "cannot be imported", "uoe-agents/smaclite", "smax/"):
        assert word in message
