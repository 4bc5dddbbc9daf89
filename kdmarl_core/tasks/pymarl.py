"""Any environment with PyMARL's `MultiAgentEnv` interface, such as smacv2, SMAC and SMAClite's.

`pymarl/<module>:<class>[?<option>=<value>&...]` with the constructor's options, for example
`pymarl/smacv2.env:StarCraft2Env?map_name=3m&difficulty=8`. `smac/<map>[?...]` is `StarCraft2Env`
on a map of SMAC, from smacv2 or, if only that is installed, from SMAC. `smaclite/<map>[?...]` is
SMAClite on one of its own maps: it lacks the interface's `get_env_info` and a longest episode.

EPyMARL's dialect is understood, too: `reset` with a seed, `step` with five results.

Seeds: where `reset` takes a seed, it gets the episode's. Other environments draw from `random` and
`numpy.random`; each copy has streams of its own there, which every episode's seed begins anew. A
constructor that takes a seed gets that of the copy's first episode. StarCraft II, and whatever
draws from yet another generator, goes on drawing from episode to episode: there the same seeds
give the same run at best, not the same episode.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kdmarl_core.errors import UserError, unknown
from kdmarl_core.tasks.blocks import Block
from kdmarl_core.tasks.imported import (
    construct,
    first_use,
    import_callable,
    import_module,
    legal_action,
    legal_mask,
    split_options,
    takes,
)
from kdmarl_core.tasks.looped import LoopedTask
from kdmarl_core.tasks.task import (
    AgentSpec,
    Booleans,
    Entity,
    Outcome,
    Task,
    TaskSpec,
    View,
)

METHODS = ("reset", "step", "get_obs", "get_state", "get_avail_actions", "get_env_info", "close")
SIZES = ("n_agents", "n_actions", "obs_shape", "state_shape", "episode_limit")  # in get_env_info
RATE_HZ = 10.0  # the interface has no notion of time
STARCRAFT_PACKAGES = ("smacv2", "smac")  # the index's package `smac` is another project's
STARCRAFT_GAMES = 16  # at once: each is a process of half a gigabyte and more
STARCRAFT_RATE_HZ = 2.0  # a decision lasts 8 of the 16 game steps of a second
# SMAC's observations are these, one behind the other, each with a method that tells its size.
FEATURES = {
    "move": ("get_obs_move_feats_size", "which moves are possible, and the terrain around"),
    "enemies": ("get_obs_enemy_feats_size", "enemies in sight, in shares of the sight range"),
    "allies": ("get_obs_ally_feats_size", "allies in sight, in shares of the sight range"),
    "own": ("get_obs_own_feats_size", "own health, shield, unit type"),
}
SMACLITE_STEPS = 150  # of its longest episode, as EPyMARL's examples have it
SMACLITE_DIRECTIONS = 4
TARGET = "target_"
MOVES = ("noop", "stop", "north", "south", "east", "west")  # SMAC's first actions


def make(name: str, where: str) -> Task:
    """The task `pymarl/...` of that name.

    Raises:
        UserError: the environment cannot be imported or made, or lacks the interface.
    """
    path, options = split_options(name.partition("/")[2], where)
    return _task(name, import_callable(path, "MultiAgentEnv", where), options, where)


def make_smac(name: str, where: str) -> Task:
    """The task `smac/<map>` of that name.

    Raises:
        UserError: no such map, or smacv2, StarCraft II or its maps are missing.
    """
    map_name, options = split_options(name.partition("/")[2], where)
    package = _starcraft_package(where)
    maps = import_module(f"{package}.env.starcraft2.maps.smac_maps", where)
    if map_name not in maps.get_smac_map_registry():
        raise unknown("map", map_name, maps.get_smac_map_registry(), where)
    factory = import_callable(f"{package}.env", "StarCraft2Env", where)
    return _task(name, factory, {"map_name": map_name} | options, where)


def make_smaclite(name: str, where: str) -> Task:
    """The task `smaclite/<map>` of that name; the option `episode_limit` is in steps.

    Raises:
        UserError: SMAClite is missing, or there is no such map or option.
    """
    map_name, options = split_options(name.partition("/")[2], where)
    try:
        maps = importlib.import_module("smaclite.env.maps.map")
    except ImportError as error:
        raise UserError(
            f"{where}: SMAClite cannot be imported ({error}); pip install it from its repository, "
            "uoe-agents/smaclite, or choose a task of smax/, which needs nothing more"
        ) from None
    presets = {preset.value.name: preset.value for preset in maps.MapPreset}
    if map_name not in presets:
        raise unknown("map", map_name, presets, where)
    limit = options.pop("episode_limit", SMACLITE_STEPS)
    if not (isinstance(limit, int) and limit > 0):
        raise UserError(
            f"{where}: option 'episode_limit': {limit} is no number of steps; give one"
        )
    make_env = import_callable("smaclite.env:SMACliteEnv", "", where)

    def factory(seed: int, **given: Any) -> Any:
        env = make_env(map_info=presets[map_name], seed=seed, **given)
        return _with_sizes(env, limit)

    return _task(name, factory, options, where)


def _with_sizes(env: Any, episode_limit: int) -> Any:
    """SMAClite's environment with what it lacks of the interface; its features are SMAC's."""
    info = {
        "n_agents": env.n_agents,
        "n_actions": env.n_actions,
        "obs_shape": env.obs_size,
        "state_shape": env.state_size,
        "episode_limit": episode_limit,
    }
    parts = {
        "move": (SMACLITE_DIRECTIONS,),
        "enemies": (env.n_enemies, env.enemy_feat_size),
        "allies": (env.n_agents - 1, env.ally_feat_size),
    }
    parts["own"] = (env.obs_size - sum(map(math.prod, parts.values())),)
    for part, shape in parts.items():
        setattr(env, FEATURES[part][0], partial(tuple, shape))
    env.n_actions_no_attack = len(MOVES)
    env.get_env_info = lambda: info
    return env


def _starcraft_package(where: str) -> str:
    for package in STARCRAFT_PACKAGES:
        with contextlib.suppress(ModuleNotFoundError):
            if importlib.util.find_spec(f"{package}.env"):
                return package
    raise UserError(
        f"{where}: needs the package smacv2, which is not installed; pip install it from its "
        "repository, oxwhirl/smacv2, or choose a task of smax/, which needs no StarCraft II"
    )


def _check_starcraft(where: str) -> None:
    """The environments only look for the game when the first episode begins."""
    game = Path(os.environ.get("SC2PATH", "~/StarCraftII")).expanduser()
    if not (game / "Versions").is_dir():
        raise UserError(
            f"{where}: no StarCraft II in {game}; install it there, or set SC2PATH to its folder"
        )
    maps = game / "Maps" / "SMAC_Maps"
    if not maps.is_dir():
        raise UserError(f"{where}: no {maps}; unpack the SMAC_Maps of oxwhirl/smac there")


def _task(
    name: str, factory: Callable[..., Any], options: Mapping[str, Any], where: str
) -> LoopedTask:
    starcraft = str(factory.__module__).partition(".")[0] in STARCRAFT_PACKAGES
    if starcraft:
        _check_starcraft(where)
    takes_seed = takes("seed", factory)

    def make_env(seed: int) -> Any:
        return construct(factory, options, where, **({"seed": seed} if takes_seed else {}))

    env = make_env(0)
    lacking = [method for method in METHODS if not callable(getattr(env, method, None))]
    if lacking:
        raise UserError(
            f"{where}: {type(env).__name__} lacks {', '.join(lacking)} of PyMARL's MultiAgentEnv; "
            "choose another class, or add them"
        )
    info = first_use(env.get_env_info, where)
    lacking = [size for size in SIZES if size not in info]
    if lacking:
        raise UserError(f"{where}: get_env_info() lacks {', '.join(lacking)}; add them")
    actions = _actions(env, info["n_actions"])
    blocks = _blocks(env, int(np.prod(info["obs_shape"])), actions)
    # SMAC's count `battles_won`; a look at an episode would launch the game. Others tell after a
    # step.
    can_be_won = hasattr(env, "battles_won") or "battle_won" in first_use(
        lambda: _first_step(env), where
    )
    env.close()
    spec = TaskSpec(
        name=name,
        agents=tuple(AgentSpec(f"agent_{i}", blocks, actions) for i in range(info["n_agents"])),
        episode_steps=info["episode_limit"],
        ends_early=True,
        state_size=int(np.prod(info["state_shape"])) + 1,  # how much of the episode has passed
        rate_hz=STARCRAFT_RATE_HZ if starcraft else RATE_HZ,
        partially_observable=True,
        legal_actions_vary=True,
        can_be_won=can_be_won,
        most_envs=STARCRAFT_GAMES if starcraft else 0,
    )
    return LoopedTask(spec, lambda: _Episode(make_env, spec))


def _blocks(env: Any, size: int, actions: Sequence[str]) -> tuple[Block, ...]:
    """SMAC's blocks where an environment tells their sizes, otherwise the observation as one."""
    methods = {name: getattr(env, method, None) for name, (method, _) in FEATURES.items()}
    if all(map(callable, methods.values())):
        shapes = {name: np.atleast_1d(method()) for name, method in methods.items() if method}
        targets = tuple(action for action in actions if action.startswith(TARGET))
        blocks = [
            _block(name, text, shapes[name], targets if name == "enemies" else ())
            for name, (_, text) in FEATURES.items()
        ]
        rest = size - sum(block.size for block in blocks)
        if rest == 1:  # smacv2's option obs_timestep_number
            blocks.append(Block("time", 1, "1", "share of the episode that has passed"))
        if rest in (0, 1):
            return tuple(block for block in blocks if block.size)
    return (Block("observation", size, "1"),)


def _block(name: str, text: str, shape: np.ndarray, targets: tuple[str, ...]) -> Block:
    """Of so many features, or of rows of so many, at which as many targets aim."""
    size = int(np.prod(shape))
    rows = int(shape[0]) if size and len(shape) == 2 else 1
    return Block(name, size, "1", text, rows=rows, aims=targets if len(targets) == rows else ())


def _actions(env: Any, number: int) -> tuple[str, ...]:
    """SMAC's actions by name: moves, directions to look in, and units to attack or heal."""
    untargeted = getattr(env, "n_actions_no_attack", 0)
    if untargeted < len(MOVES):
        return tuple(f"action_{i}" for i in range(number))
    looks = [f"look_{i}" for i in range(untargeted - len(MOVES))]
    return (*MOVES, *looks, *(f"{TARGET}{i}" for i in range(number - untargeted)))


def _first_step(env: Any) -> Mapping[str, Any]:
    """What the environment tells about a step, other than its reward."""
    env.reset()
    result = env.step([int(legal_mask(flags).argmax()) for flags in env.get_avail_actions()])
    return _unpacked(result)[2]


def _unpacked(result: Sequence[Any]) -> tuple[float, bool, Mapping[str, Any]]:
    """Team reward, whether the episode ended, and further information.

    PyMARL's `step` returns just these; EPyMARL's observations, reward, terminated, truncated and
    information. Rewards of the agents, if there are several, become their mean.
    """
    if len(result) == 3:
        reward, done, info = result
    else:
        _, reward, terminated, truncated, info = result
        done = terminated or truncated
    return float(np.mean(reward)), bool(done), info


class _Episode:
    def __init__(self, make_env: Callable[[int], Any], spec: TaskSpec) -> None:
        self._make_env, self._spec = make_env, spec
        self._env: Any = None  # made with the first episode's seed
        self._draws = _Draws(0)
        self._masks: tuple[Booleans, ...] = ()
        self._steps = 0

    def reset(self, seed: int) -> View:
        self._draws = _Draws(seed)
        self._steps = 0
        with self._draws.lent():
            if self._env is None:
                self._env = self._make_env(seed)
            if takes("seed", self._env.reset):
                self._env.reset(seed=seed)
            else:
                self._env.reset()
            return self._view()

    def step(self, actions: Sequence[int]) -> Outcome:
        chosen = [legal_action(int(a), mask) for a, mask in zip(actions, self._masks, strict=True)]
        with self._draws.lent():
            reward, done, info = _unpacked(self._env.step(chosen))
            self._steps += 1
            view = self._view()
        done = done or self._steps == self._spec.episode_steps
        label = ""
        if done and self._spec.can_be_won:
            label = "won" if info.get("battle_won") else "lost"
        return Outcome(view, reward, done, label)

    def scene(self) -> list[Entity]:
        return []

    def _view(self) -> View:
        """All that is seen; the joint state ends with the share of the episode that has passed."""
        self._masks = tuple(legal_mask(flags) for flags in self._env.get_avail_actions())
        observations = tuple(np.array(o, np.float32).ravel() for o in self._env.get_obs())
        clock = self._steps / self._spec.episode_steps
        state = np.append(np.array(self._env.get_state(), np.float32).ravel(), np.float32(clock))
        return View(observations, state, self._masks)


class _Draws:
    """The streams of `random` and `numpy.random` as one environment sees them."""

    def __init__(self, seed: int) -> None:
        self._python = random.Random(seed).getstate()
        self._numpy = np.random.RandomState(seed).get_state()

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Draw from these streams within the block, and from the usual ones after it."""
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002
        try:
            yield
        finally:
            self._python, self._numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
