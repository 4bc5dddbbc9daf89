"""Any PettingZoo parallel environment: `pettingzoo/<module>[:<callable>][?<option>=<value>&...]`.

For example `pettingzoo/pettingzoo.sisl.pursuit_v5?max_cycles=100&n_pursuers=4`. The options go to
`parallel_env`, or to the callable that is named, but for `episode_steps`: the longest episode, by
default the environment's own `max_cycles`.

The team's reward is the mean over the agents in the game. One that has left it senses zeros, and
only its first action is legal, until the episode ends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdmarl_core.errors import UserError
from kdmarl_core.tasks.blocks import VISIBLE, Block
from kdmarl_core.tasks.imported import (
    construct,
    first_use,
    import_callable,
    import_module,
    legal_action,
    legal_mask,
    split_options,
)
from kdmarl_core.tasks.looped import LoopedTask
from kdmarl_core.tasks.task import (
    AgentSpec,
    Booleans,
    Entity,
    Floats,
    Outcome,
    ReferenceEnv,
    Task,
    TaskSpec,
    View,
)

RATE_HZ = 10.0  # where the environment does not say how many frames a second has
MASK = "action_mask"  # the key under which environments say which actions are legal
RESERVED = (MASK, VISIBLE)  # blocks that robots have of their own
# Of one agent's observation, or of the state. More is an image, and the nets are fully connected.
MOST_FEATURES = 4096


def make(name: str, where: str) -> Task:
    """The task of that name.

    Raises:
        UserError: the environment cannot be imported or made, or is of a kind not handled here.
    """
    path, options = split_options(name.partition("/")[2], where)
    asked = options.pop("episode_steps", None)
    factory = import_callable(path, "parallel_env", where)
    env = construct(factory, options, where)
    if not isinstance(env, import_module("pettingzoo", where).ParallelEnv):
        raise UserError(
            f"{where}: {type(env).__name__} is no PettingZoo ParallelEnv; choose one, or convert "
            "it with pettingzoo.utils.conversions.aec_to_parallel"
        )
    steps = _episode_steps(env, asked, where)
    agents = tuple(_agent(env, agent, where) for agent in env.possible_agents)
    first_use(lambda: env.reset(seed=0), where)
    state = _own_state(env)
    state_size = None if state is None else state.size
    view = first_use(lambda: _Episode(env, steps, state_size, where).reset(0), where)
    env.close()
    fps = (getattr(env, "metadata", None) or {}).get("render_fps")
    spec = TaskSpec(
        name=name,
        agents=agents,
        episode_steps=steps,
        # No environment tells whether it can end early and whether agents can leave before.
        ends_early=True,
        legal_actions_vary=True,
        state_size=len(view.state),
        rate_hz=float(fps) if fps else RATE_HZ,
        partially_observable=not np.array_equal(
            view.state[:-1], np.concatenate(view.observations)
        ),
    )

    def make_reference() -> ReferenceEnv:
        return _Episode(construct(factory, options, where), steps, state_size, where)

    return LoopedTask(spec, make_reference)


def _episode_steps(env: Any, asked: Any, where: str) -> int:
    """The longest episode; environments keep `max_cycles` in themselves or in what they wrap."""
    inner = env.unwrapped
    while asked is None and inner is not None:
        asked = getattr(inner, "max_cycles", None)
        inner = getattr(inner, "env", None)
    if asked is None:
        raise UserError(
            f"{where}: does not say how long an episode is; add ?episode_steps=<steps>"
        )
    if type(asked) is not int or asked < 1:
        raise UserError(
            f"{where}: {asked!r} is no number of steps; give a whole number above 0 as "
            "episode_steps"
        )
    return asked


def _agent(env: Any, agent: Any, where: str) -> AgentSpec:
    """Blocks and actions from an agent's spaces."""
    from gymnasium.spaces import Discrete, flatdim

    actions = env.action_space(agent)
    if not isinstance(actions, Discrete):
        raise UserError(
            f"{where}: agent '{agent}' acts in {actions}; only Discrete actions can be played, "
            "so choose another environment, or wrap it"
        )
    parts = _parts(env.observation_space(agent))
    try:
        sizes = [flatdim(space) for space in parts.values()]
    except (ValueError, NotImplementedError):
        raise UserError(
            f"{where}: agent '{agent}' observes {env.observation_space(agent)}, which has no "
            "fixed size; choose another environment, or wrap it"
        ) from None
    if sum(sizes) > MOST_FEATURES:
        raise UserError(
            f"{where}: agent '{agent}' observes {sum(sizes)} features; fully connected nets are "
            f"given at most {MOST_FEATURES}, so choose another environment, or wrap it"
        )
    # Blocks name ROS topics.
    names = [re.sub(r"\W|^(?=\d)", "_", str(key), flags=re.ASCII) for key in parts]
    if len({*names, *RESERVED}) != len(names) + len(RESERVED):
        raise UserError(
            f"{where}: agent '{agent}' observes {', '.join(map(str, parts))}, which as blocks are "
            f"{', '.join(names)}: these must be distinct, and none of {', '.join(RESERVED)}; "
            "wrap the environment with other keys"
        )
    blocks = tuple(Block(*named, "1") for named in zip(names, sizes, strict=True))
    return AgentSpec(str(agent), blocks, tuple(f"action_{i}" for i in range(int(actions.n))))


def _parts(space: Any) -> dict[Any, Any]:
    """The spaces that become blocks: a dictionary's, less the mask, or all as one."""
    from gymnasium.spaces import Dict

    if isinstance(space, Dict):
        return {key: part for key, part in space.items() if key != MASK}
    return {"observation": space}


def _own_state(env: Any) -> Floats | None:
    """The environment's joint state as a vector; None where it keeps none, or only a picture."""
    try:
        state = np.asarray(env.state(), np.float32).ravel()
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return None
    return state if 0 < state.size <= MOST_FEATURES else None


class _Episode:
    def __init__(self, env: Any, steps: int, state_size: int | None, where: str) -> None:
        """Of an environment whose own joint state has that size; None: it keeps none."""
        from gymnasium.spaces import flatdim

        self._env, self._limit, self._where = env, steps, where
        self._state_size = state_size
        self._agents = list(env.possible_agents)
        self._parts = [_parts(env.observation_space(agent)) for agent in self._agents]
        self._sizes = [sum(map(flatdim, parts.values())) for parts in self._parts]
        self._actions = [env.action_space(agent) for agent in self._agents]
        self._masks: tuple[Booleans, ...] = ()
        self._steps = 0

    def reset(self, seed: int) -> View:
        observations, infos = self._env.reset(seed=seed)
        self._steps = 0
        return self._view(observations, infos)

    def step(self, actions: Sequence[int]) -> Outcome:
        present = list(self._env.agents)
        chosen = {
            agent: int(space.start) + legal_action(int(action), mask)
            for agent, space, action, mask in zip(
                self._agents, self._actions, actions, self._masks, strict=True
            )
            if agent in present
        }
        observations, rewards, _, _, infos = self._env.step(chosen)
        self._steps += 1
        reward = sum(float(rewards[agent]) for agent in present) / len(present)
        done = not self._env.agents or self._steps == self._limit
        return Outcome(self._view(observations, infos), reward, done, "")

    def scene(self) -> list[Entity]:
        return []

    def _view(self, observations: Mapping[Any, Any], infos: Mapping[Any, Any]) -> View:
        """All that is seen; the joint state ends with the share of the episode that has passed."""
        sensed = tuple(self._sensed(i, observations) for i in range(len(self._agents)))
        self._masks = tuple(self._mask(i, observations, infos) for i in range(len(self._agents)))
        clock = np.array([self._steps / self._limit], np.float32)
        state = np.concatenate([*(sensed if self._state_size is None else [self._own()]), clock])
        return View(sensed, state, self._masks)

    def _own(self) -> Floats:
        """The environment's own joint state, zeros when all have left."""
        assert self._state_size is not None
        own = _own_state(self._env)
        if own is not None and own.size == self._state_size:
            return own
        if not self._env.agents:
            return np.zeros(self._state_size, np.float32)
        raise UserError(
            f"{self._where}: state() had {self._state_size} values when the episode began, and "
            f"{'none' if own is None else own.size} in step {self._steps}; wrap the environment "
            "so that it has one size"
        )

    def _sensed(self, index: int, observations: Mapping[Any, Any]) -> Floats:
        from gymnasium.spaces import flatten

        agent, parts = self._agents[index], self._parts[index]
        present = self._env.agents or self._agents  # at the end, everybody sees it
        if agent not in present or agent not in observations:
            return np.zeros(self._sizes[index], np.float32)
        seen = observations[agent]
        values = seen if isinstance(seen, Mapping) else {"observation": seen}
        flat = [flatten(space, values[key]) for key, space in parts.items()]
        return np.concatenate(flat).astype(np.float32)

    def _mask(
        self, index: int, observations: Mapping[Any, Any], infos: Mapping[Any, Any]
    ) -> Booleans:
        agent, actions = self._agents[index], int(self._actions[index].n)
        if agent not in self._env.agents:
            return legal_mask(np.zeros(actions))
        seen = observations[agent]
        if isinstance(seen, Mapping) and MASK in seen:
            return legal_mask(seen[MASK])
        return legal_mask(infos.get(agent, {}).get(MASK, np.ones(actions)))
