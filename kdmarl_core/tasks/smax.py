"""SMAX, JaxMARL's StarCraft-like battles against enemies that follow a fixed heuristic.

The same simulator trains in batches and judges one episode at a time. JaxMARL is imported when a
simulator is made, so that a task's description costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from kdmarl_core.tasks.blocks import Block
from kdmarl_core.tasks.jaxmarl import import_quietly
from kdmarl_core.tasks.task import (
    AgentSpec,
    BatchEnv,
    BatchStep,
    Entity,
    Integers,
    Outcome,
    ReferenceEnv,
    Task,
    TaskSpec,
    Units,
    View,
)

EPISODE_STEPS = 100
RATE_HZ = 2.0  # SMAX's default: one decision lasts 8 world steps of 1/16 s
MOVES = ("north", "east", "south", "west", "stop")
UNIT_TYPES = ("marine", "marauder", "stalker", "zealot", "zergling", "hydralisk")
OWN = ("health", "x", "y", "weapon cooldown")
SEEN = ("health", "x", "y", "last move x", "last move y", "last attack", "weapon cooldown")
# New episodes are made in bulk, so many per environment: making one for every environment at every
# step, as most episodes end at other times, would lengthen a step by 10 to 25 %.
POOLED_EPISODES = 16

MARINE, STALKER, ZEALOT = (UNIT_TYPES.index(name) for name in ("marine", "stalker", "zealot"))
THREE_STALKERS_FIVE_ZEALOTS = (STALKER,) * 3 + (ZEALOT,) * 5


class Scenario(NamedTuple):
    """Which unit types each slot of the two teams can hold."""

    allies: tuple[frozenset[int], ...]
    enemies: tuple[frozenset[int], ...]


def scenarios() -> Mapping[str, Scenario]:
    """The maps of this family, under JaxMARL's names."""
    any_type = frozenset(range(len(UNIT_TYPES)))
    return {
        "3m": _fixed((MARINE,) * 3, (MARINE,) * 3),
        "8m": _fixed((MARINE,) * 8, (MARINE,) * 8),
        "5m_vs_6m": _fixed((MARINE,) * 5, (MARINE,) * 6),
        "3s5z": _fixed(THREE_STALKERS_FIVE_ZEALOTS, THREE_STALKERS_FIVE_ZEALOTS),
        "smacv2_5_units": Scenario((any_type,) * 5, (any_type,) * 5),
    }


def tasks() -> Mapping[str, Callable[[], Task]]:
    """The scenarios of this family by their short name."""
    return {name: partial(_task, name, scenario) for name, scenario in scenarios().items()}


def _fixed(allies: Sequence[int], enemies: Sequence[int]) -> Scenario:
    return Scenario(
        tuple(frozenset([unit]) for unit in allies), tuple(frozenset([unit]) for unit in enemies)
    )


def _task(name: str, scenario: Scenario) -> SmaxTask:
    allies, enemies = len(scenario.allies), len(scenario.enemies)
    attacks = tuple(f"attack_{i}" for i in range(enemies))
    blocks = _blocks(scenario, attacks)
    units = Units(
        allies,
        enemies,
        seen=len(SEEN) + len(UNIT_TYPES),
        own=len(OWN) + len(UNIT_TYPES),
        shared=1,
        moves=len(MOVES),
    )
    return SmaxTask(
        spec=TaskSpec(
            name=f"smax/{name}",
            agents=tuple(
                AgentSpec(f"ally_{i}", blocks, (*MOVES, *attacks)) for i in range(allies)
            ),
            episode_steps=EPISODE_STEPS,
            ends_early=True,
            # What every unit of both teams knows of itself, and the share of the episode that
            # has passed.
            state_size=units.own * units.total + units.shared,
            rate_hz=RATE_HZ,
            partially_observable=True,
            legal_actions_vary=True,
            can_be_won=True,
            units=units,
        ),
        map_name=name,
    )


def _blocks(scenario: Scenario, attacks: tuple[str, ...]) -> tuple[Block, ...]:
    """SMAX's own order and scaling; everything about a unit is zero once it is dead.

    A unit's type bits are zero while it is dead or out of sight, so only the bits of types that a
    slot never holds are idle. All allies have the same blocks, whatever their own type: slot `j`
    shows ally `j` to those after it and ally `j + 1` to the others, so both types count.
    """
    allies = [here | after for here, after in pairwise(scenario.allies)]
    seen = (
        f"{', '.join(SEEN)}, one bit per unit type; position relative to the robot's in sight "
        "ranges, all else as shares; zero out of sight"
    )
    own = f"{', '.join(OWN)}, one bit per unit type; position in map sizes, all else as shares"
    return (
        _block("allies", SEEN, seen, allies),
        _block("enemies", SEEN, seen, scenario.enemies, attacks),
        _block("own", OWN, own, [frozenset[int]().union(*scenario.allies)]),
    )


def _block(
    name: str,
    features: Sequence[str],
    description: str,
    slots: Sequence[frozenset[int]],
    aims: tuple[str, ...] = (),
) -> Block:
    """One block of `features` and type bits for every slot, which can hold the types given."""
    width = len(features) + len(UNIT_TYPES)
    idle = tuple(
        slot * width + len(features) + unit
        for slot, possible in enumerate(slots)
        for unit in range(len(UNIT_TYPES))
        if unit not in possible
    )
    return Block(name, width * len(slots), "1", description, idle, len(slots), aims)


@dataclass(frozen=True)
class SmaxTask:
    """One map; `map_name` is JaxMARL's."""

    spec: TaskSpec
    map_name: str

    def make_batch(self, num_envs: int) -> BatchEnv:
        """JaxMARL's simulator, jitted and vectorised."""
        return _JaxBatch(self.map_name, num_envs)

    def make_reference(self) -> ReferenceEnv:
        """JaxMARL's simulator, one episode at a time."""
        return _JaxEpisode(self.map_name, self.spec.num_agents)


class _Rules(NamedTuple):
    """One environment as pure functions."""

    env: Any
    begin: Callable[[Any, Any], Any]  # key, number of the episode -> state
    # state, actions, key of the step, number of the environment -> state, reward, done, won
    advance: Callable[[Any, Any, Any, Any], Any]
    show: Callable[[Any], Any]  # state -> observation [N, D], joint state [S], mask [N, A]


def _rules(map_name: str) -> _Rules:
    import jax
    import jax.numpy as jnp

    smax = import_quietly("jaxmarl.environments.smax")
    # JaxMARL compares the step counter before it counts: 99 gives episodes of 100 steps. All
    # other settings are SMAX's defaults, with which JaxMARL's own baselines are trained.
    env = smax.HeuristicEnemySMAX(
        scenario=smax.map_name_to_scenario(map_name), max_steps=EPISODE_STEPS - 1
    )
    own_size = len(OWN) + len(UNIT_TYPES)

    def begin(key: Any, episode: Any) -> Any:
        _, state = env.reset(jax.random.fold_in(key, episode))
        # A weakly typed state would have the step compiled twice.
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), state)

    def advance(state: Any, actions: Any, key: Any, number: Any) -> Any:
        key = jax.random.fold_in(key, number)
        named = {name: actions[i] for i, name in enumerate(env.agents)}
        _, state, rewards, dones, _ = env.step_env(key, state, named)
        alive = state.state.unit_alive
        won = alive[: env.num_allies].any() & ~alive[env.num_allies :].any()
        # Every ally is given the whole team's reward.
        return state, rewards[env.agents[0]], dones["__all__"], won

    def show(state: Any) -> Any:
        seen = env.get_all_unit_obs(state)
        joint = [seen[name][-own_size:] for name in env.all_agents]
        clock = state.state.step.astype(jnp.float32) / EPISODE_STEPS
        legal = env.get_avail_actions(state)
        return (
            jnp.stack([seen[name] for name in env.agents]),
            jnp.concatenate([*joint, clock[None]]),
            jnp.stack([legal[name] for name in env.agents]).astype(bool),
        )

    return _Rules(env, begin, advance, show)


class _Jitted(NamedTuple):
    """A simulator's functions, which whoever makes it again in a process need not compile again.

    Compiled apart, `show` is compiled once for `reset` and `step`.
    """

    env: Any
    begin: Callable[..., Any]
    step: Callable[..., Any]
    show: Callable[..., Any]


@cache
def _jitted_batch(map_name: str, num_envs: int) -> _Jitted:
    """`begin` makes a pool of episodes; `step` takes from it what follows those that end."""
    import jax
    import jax.numpy as jnp

    rules = _rules(map_name)
    begin = jax.vmap(rules.begin, (None, 0))
    advance = jax.vmap(rules.advance, (0, 0, None, 0))

    def fill(key: Any, made: Any) -> Any:
        pool = begin(key, made + jnp.arange(num_envs * POOLED_EPISODES))
        return pool, jax.tree.map(lambda leaf: leaf[:num_envs], pool)

    def step(state: Any, actions: Any, key: Any, steps: Any, pool: Any, used: Any) -> Any:
        key = jax.random.fold_in(key, steps)
        state, reward, done, won = advance(state, actions, key, jnp.arange(num_envs))
        taken = used + jnp.cumsum(done) - 1

        def restart(fresh: Any, old: Any) -> Any:
            where = done.reshape(num_envs, *[1] * (old.ndim - 1))
            return jnp.where(where, fresh[taken], old)

        return jax.tree.map(restart, pool, state), reward, done, won

    return _Jitted(rules.env, jax.jit(fill), jax.jit(step), jax.jit(jax.vmap(rules.show)))


@cache
def _jitted_episode(map_name: str) -> _Jitted:
    """One episode at a time."""
    import jax

    rules = _rules(map_name)

    def step(state: Any, actions: Any, key: Any, steps: Any) -> Any:
        return rules.advance(state, actions, jax.random.fold_in(key, steps), 0)

    return _Jitted(rules.env, jax.jit(rules.begin), jax.jit(step), jax.jit(rules.show))


class _JaxBatch:
    def __init__(self, map_name: str, num_envs: int) -> None:
        import jax

        self._jax, self._jitted = jax, _jitted_batch(map_name, num_envs)
        self._num_envs, self._pool_size = num_envs, num_envs * POOLED_EPISODES
        self._pool_key = self._step_key = jax.random.PRNGKey(0)
        self._state: Any = None
        self._pool: Any = None
        self._made = self._used = self._steps = 0

    def reset(self, seed: int) -> BatchStep:
        self._pool_key, self._step_key = self._jax.random.split(self._jax.random.PRNGKey(seed))
        self._made = self._steps = 0
        self._state = self._refill()
        self._used = self._num_envs
        nothing = np.zeros(self._num_envs, np.bool_)
        return self._shown(nothing.astype(np.float32), nothing, nothing)

    def step(self, actions: Integers) -> BatchStep:
        if self._used + self._num_envs > self._pool_size:
            self._refill()
        self._state, reward, done, won = self._jitted.step(
            self._state,
            actions.astype(np.int32),
            self._step_key,
            self._steps,
            self._pool,
            self._used,
        )
        shown = self._shown(reward, done, won)
        self._steps += 1
        self._used += int(shown.done.sum())
        return shown

    def _refill(self) -> Any:
        self._pool, first = self._jitted.begin(self._pool_key, self._made)
        self._made += self._pool_size
        self._used = 0
        return first

    def _shown(self, reward: Any, done: Any, won: Any) -> BatchStep:
        observation, state, mask = self._jitted.show(self._state)
        return BatchStep(
            np.array(observation),
            np.array(state),
            np.array(mask),
            np.array(reward),
            np.array(done),
            np.array(won),
        )


class _JaxEpisode:
    def __init__(self, map_name: str, agents: int) -> None:
        import jax

        self._jax, self._jitted = jax, _jitted_episode(map_name)
        self._agents = agents
        self._key = jax.random.PRNGKey(0)
        self._state: Any = None
        self._steps = 0

    def reset(self, seed: int) -> View:
        key, self._key = self._jax.random.split(self._jax.random.PRNGKey(seed))
        self._state = self._jitted.begin(key, 0)
        self._steps = 0
        return self._view()

    def step(self, actions: Sequence[int]) -> Outcome:
        self._state, reward, done, won = self._jitted.step(
            self._state, np.array(actions, np.int32), self._key, self._steps
        )
        self._steps += 1
        label = ("won" if won else "lost") if done else ""
        return Outcome(self._view(), float(reward), bool(done), label)

    def scene(self) -> list[Entity]:
        state, env = self._state.state, self._jitted.env
        of_type = np.stack(
            [env.unit_type_radiuses, env.unit_type_sight_ranges, env.unit_type_health], axis=1
        )
        units = zip(
            env.all_agents,
            np.asarray(state.unit_positions),
            of_type[np.asarray(state.unit_types)],
            np.asarray(state.unit_health * state.unit_alive),
            strict=True,
        )
        return [
            Entity(
                name,
                "agent" if i < self._agents else "enemy",
                *map(float, (x_m, y_m, radius_m, sight_m, health / whole)),
            )
            for i, (name, (x_m, y_m), (radius_m, sight_m, whole), health) in enumerate(units)
        ]

    def _view(self) -> View:
        observation, state, mask = map(np.array, self._jitted.show(self._state))
        return View(tuple(observation), state, tuple(mask))
