"""Multi-agent particle environments: `mpe2` judges, JaxMARL's equal simulator trains in batches.

Both heavy imports happen when a simulator is made, so that a task's description costs nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdmarl_core.tasks.blocks import Block
from kdmarl_core.tasks.task import (
    AgentSpec,
    BatchEnv,
    BatchStep,
    Entity,
    Floats,
    Integers,
    Outcome,
    ReferenceEnv,
    Task,
    TaskSpec,
)

EPISODE_STEPS = 25
RATE_HZ = 10.0  # the simulators integrate with a time step of 0.1 s
MOVES = ("stay", "left", "right", "down", "up")


def simple_spread(num_agents: int = 3) -> MpeTask:
    """`num_agents` robots cover as many landmarks without bumping into each other."""
    blocks = (
        Block("velocity", 2, "m/s", "own velocity x, y"),
        Block("position", 2, "m", "own position x, y"),
        Block("landmarks", 2 * num_agents, "m", "landmarks relative to the robot, x, y each"),
        Block(
            "others", 2 * (num_agents - 1), "m", "other robots relative to the robot, x, y each"
        ),
        Block("messages", 2 * (num_agents - 1), "1", "the scenario's silent channel: always zero"),
    )
    agents = tuple(AgentSpec(f"agent_{i}", blocks, MOVES) for i in range(num_agents))
    name = "simple_spread" if num_agents == 3 else f"simple_spread_{num_agents}"
    return MpeTask(
        spec=_spec(name, agents),
        mpe2_module="simple_spread_v3",
        mpe2_options={"N": num_agents},
        jaxmarl_class="SimpleSpreadMPE",
        jaxmarl_options={"num_agents": num_agents, "num_landmarks": num_agents},
    )


def simple_speaker_listener() -> MpeTask:
    """A speaker that cannot move names the landmark that the listener is to reach."""
    speaker = AgentSpec(
        "speaker_0",
        (Block("goal", 3, "1", "colour of the landmark to be reached"),),
        ("say_0", "say_1", "say_2"),
    )
    listener = AgentSpec(
        "listener_0",
        (
            Block("velocity", 2, "m/s", "own velocity x, y"),
            Block("landmarks", 6, "m", "landmarks relative to the robot, x, y each"),
            Block("messages", 3, "1", "what the speaker said last, one-hot"),
        ),
        MOVES,
    )
    return MpeTask(
        spec=_spec("simple_speaker_listener", (speaker, listener)),
        mpe2_module="simple_speaker_listener_v4",
        mpe2_options={},
        jaxmarl_class="SimpleSpeakerListenerMPE",
        jaxmarl_options={},
    )


def tasks() -> Mapping[str, Callable[[], Task]]:
    """The scenarios of this family by their short name."""
    return {
        "simple_spread": simple_spread,
        "simple_speaker_listener": simple_speaker_listener,
    }


def _spec(name: str, agents: tuple[AgentSpec, ...]) -> TaskSpec:
    return TaskSpec(
        name=f"mpe/{name}",
        agents=agents,
        episode_steps=EPISODE_STEPS,
        ends_early=False,
        # The joint state: all observations, and the share of the episode that has passed.
        state_size=sum(agent.observation_size for agent in agents) + 1,
        rate_hz=RATE_HZ,
    )


@dataclass(frozen=True)
class MpeTask:
    """One scenario in both simulators."""

    spec: TaskSpec
    mpe2_module: str
    mpe2_options: Mapping[str, Any]
    jaxmarl_class: str
    jaxmarl_options: Mapping[str, Any]

    def make_batch(self, num_envs: int) -> BatchEnv:
        """JaxMARL's simulator, jitted and vectorised."""
        return _JaxBatch(self, num_envs)

    def make_reference(self) -> ReferenceEnv:
        """`mpe2`'s own parallel environment."""
        return _Mpe2Episode(self)


class _JaxBatch:
    def __init__(self, task: MpeTask, num_envs: int) -> None:
        import jax
        import jax.numpy as jnp

        with _silent_stdout():
            mpe = importlib.import_module("jaxmarl.environments.mpe")
        # JaxMARL compares the step counter before it counts: 24 gives episodes of 25 steps.
        env = getattr(mpe, task.jaxmarl_class)(max_steps=EPISODE_STEPS - 1, **task.jaxmarl_options)
        spec = task.spec
        widths = [spec.observation_size - agent.observation_size for agent in spec.agents]

        def show(observations: Mapping[str, Any], clock: Any) -> tuple[Any, Any]:
            own = [observations[name] for name in env.agents]
            padded = jnp.stack([jnp.pad(o, (0, w)) for o, w in zip(own, widths, strict=True)])
            return padded, jnp.concatenate([*own, clock[None]])

        def reset_one(key: Any) -> tuple[Any, Any, Any]:
            observations, state = env.reset(key)
            return state, *show(observations, jnp.float32(0))

        def step_one(state: Any, actions: Any, key: Any) -> tuple[Any, Any, Any, Any]:
            named = {name: actions[i] for i, name in enumerate(env.agents)}
            observations, state, rewards, _, _ = env.step_env(key, state, named)
            clock = state.step.astype(jnp.float32) / EPISODE_STEPS
            reward = jnp.mean(jnp.stack([rewards[name] for name in env.agents]))
            return state, *show(observations, clock), reward

        self._jax = jax
        self._reset = jax.jit(jax.vmap(reset_one))
        self._step = jax.jit(jax.vmap(step_one, in_axes=(0, 0, None)))
        self._num_envs = num_envs
        self._mask = np.tile(spec.action_exists, (num_envs, 1, 1))
        self._key = jax.random.PRNGKey(0)
        self._state: Any = None
        self._steps = 0

    def reset(self, seed: int) -> BatchStep:
        self._key = self._jax.random.PRNGKey(seed)
        observation, state = self._begin()
        return self._show(observation, state, np.zeros(self._num_envs, np.float32), done=False)

    def step(self, actions: Integers) -> BatchStep:
        self._state, observation, state, reward = self._step(
            self._state, actions.astype(np.int32), self._key
        )
        self._steps += 1
        done = self._steps == EPISODE_STEPS
        if done:
            observation, state = self._begin()
        return self._show(observation, state, reward, done=done)

    def _begin(self) -> tuple[Any, Any]:
        self._key, key = self._jax.random.split(self._key)
        self._steps = 0
        self._state, observation, state = self._reset(self._jax.random.split(key, self._num_envs))
        return observation, state

    def _show(self, observation: Any, state: Any, reward: Any, *, done: bool) -> BatchStep:
        return BatchStep(
            np.array(observation),
            np.array(state),
            self._mask,
            np.array(reward),
            np.full(self._num_envs, done),
        )


class _Mpe2Episode:
    def __init__(self, task: MpeTask) -> None:
        module = importlib.import_module(f"mpe2.{task.mpe2_module}")
        self._env = module.parallel_env(max_cycles=EPISODE_STEPS, **task.mpe2_options)
        self._names = [agent.name for agent in task.spec.agents]

    def reset(self, seed: int) -> tuple[Floats, ...]:
        observations, _ = self._env.reset(seed=seed)
        return self._as_floats(observations)

    def step(self, actions: Sequence[int]) -> Outcome:
        chosen = dict(zip(self._names, map(int, actions), strict=True))
        observations, rewards, terminated, truncated, _ = self._env.step(chosen)
        done = any(terminated.values()) or any(truncated.values())
        reward = sum(rewards[name] for name in self._names) / len(self._names)
        return Outcome(self._as_floats(observations), float(reward), done, "")

    def scene(self) -> list[Entity]:
        world = self._env.unwrapped.world
        kinds = [("agent", world.agents), ("landmark", world.landmarks)]
        return [
            Entity(
                item.name,
                kind,
                float(item.state.p_pos[0]),
                float(item.state.p_pos[1]),
                float(item.size),
            )
            for kind, items in kinds
            for item in items
        ]

    def _as_floats(self, observations: Mapping[str, Any]) -> tuple[Floats, ...]:
        return tuple(np.asarray(observations[name], np.float32) for name in self._names)


@contextlib.contextmanager
def _silent_stdout() -> Iterator[None]:
    """Keep JaxMARL's greetings out of our figures; what it imports undoes `redirect_stdout`."""
    sys.stdout.flush()
    saved = os.dup(1)
    with Path(os.devnull).open("wb") as null:
        os.dup2(null.fileno(), 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)
