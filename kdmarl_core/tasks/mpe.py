"""Multi-agent particle environments: `mpe2` judges, JaxMARL's equal simulator trains in batches.

Both heavy imports happen when a simulator is made, so that a task's description costs nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kdmarl_core.errors import UserError, unknown
from kdmarl_core.tasks.blocks import Block, block_columns
from kdmarl_core.tasks.jaxmarl import import_quietly
from kdmarl_core.tasks.opponent import (
    Layers,
    Match,
    Opponent,
    greedy,
    load_opponent,
    weights_sha256,
)
from kdmarl_core.tasks.task import (
    AgentSpec,
    BatchEnv,
    BatchStep,
    Entity,
    Floats,
    Integers,
    Outcome,
    ReferenceEnv,
    TaskSpec,
    View,
)

EPISODE_STEPS = 25
RATE_HZ = 10.0  # the simulators integrate with a time step of 0.1 s
MOVES = ("stay", "left", "right", "down", "up")
SPREAD_OF = "mpe/simple_spread_"
SEEN = 3  # landmarks that one of many robots sees; robots: one less
MOST_ROBOTS = 1000


def simple_spread() -> MpeTask:
    """Three robots cover three landmarks without bumping into each other."""
    return _spread("simple_spread", _spread_layout(3), 3)


def simple_spread_of(name: str, where: str) -> MpeTask:
    """`mpe/simple_spread_<robots>`: many robots, each of which sees what is nearest to it.

    The nearest landmarks and robots, nearest first, are as many as in `simple_spread`, so that its
    students can fly here, too.

    Raises:
        UserError: the name does not end in a number of robots that can be.
    """
    given = name.removeprefix(SPREAD_OF)
    if not (given.isdecimal() and SEEN < int(given) <= MOST_ROBOTS and given[0] != "0"):
        raise UserError(
            f"{where}: '{given}' must be a number of robots from {SEEN + 1} to {MOST_ROBOTS}; "
            f"write {SPREAD_OF}30, or mpe/simple_spread for three"
        )
    robots = int(given)
    columns = block_columns(_spread_layout(robots))
    blocks = tuple(block for block in _spread_layout(SEEN) if block.name != "messages")

    def sense(observation: Any) -> list[Any]:
        parts = [(observation[columns[block.name]], block.size) for block in blocks]
        return [_nearest(part, size // 2) if len(part) > size else part for part, size in parts]

    return _spread(name.removeprefix("mpe/"), blocks, robots, sense)


def _spread_layout(robots: int) -> tuple[Block, ...]:
    """The scenario's own observation."""
    landmarks = "landmarks relative to the robot, x, y each"
    others = "other robots relative to the robot, x, y each"
    return (
        Block("velocity", 2, "m/s", "own velocity x, y"),
        Block("position", 2, "m", "own position x, y"),
        Block("landmarks", 2 * robots, "m", landmarks, rows=robots),
        Block("others", 2 * (robots - 1), "m", others, rows=robots - 1),
        Block(
            "messages",
            2 * (robots - 1),
            "1",
            "the scenario's silent channel: always zero",
            idle=tuple(range(2 * (robots - 1))),
        ),
    )


def _spread(
    name: str,
    blocks: tuple[Block, ...],
    robots: int,
    sense: Callable[[Any], list[Any]] | None = None,
) -> MpeTask:
    agents = tuple(AgentSpec(f"agent_{i}", blocks, MOVES) for i in range(robots))
    return MpeTask(
        spec=_spec(name, agents),
        mpe2_module="simple_spread_v3",
        mpe2_options={"N": robots},
        jaxmarl_class="SimpleSpreadMPE",
        jaxmarl_options={"num_agents": robots, "num_landmarks": robots},
        sense=sense,
    )


def _nearest(offsets: Any, count: int) -> Any:
    """Of offsets x, y each, the shortest so many, shortest first; of numpy or of JAX."""
    pairs = offsets.reshape(-1, 2)
    return pairs[(pairs**2).sum(-1).argsort()[:count]].reshape(-1)


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
            Block("landmarks", 6, "m", "landmarks relative to the robot, x, y each", rows=3),
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


def simple_adversary() -> MpeTask:
    """Two robots cover a goal and a decoy; an adversary that must not find out which is which.

    Only the robots know which landmark is the goal. They are rewarded for the nearest robot's
    closeness to it and for the adversary's distance from it. The adversary is a frozen opponent:
    it was trained together with a team of its own.
    """
    landmarks = Block(
        "landmarks", 4, "m", "both landmarks relative to the robot, x, y each", rows=2
    )
    robot = (
        Block("goal", 2, "m", "the landmark to be reached, relative to the robot, x, y"),
        landmarks,
        Block("adversary", 2, "m", "the adversary relative to the robot, x, y"),
        Block("teammates", 2, "m", "the other robot relative to the robot, x, y"),
    )
    others = Block("others", 4, "m", "both robots relative to it, x, y each", rows=2)
    adversary = (landmarks, others)
    agents = tuple(AgentSpec(f"agent_{i}", robot, MOVES) for i in (0, 1))
    opponent = Opponent(
        AgentSpec("adversary_0", adversary, MOVES), "mpe_simple_adversary_opponent"
    )
    return MpeTask(
        # The joint state needs nothing of the adversary: what it sees are differences of what the
        # robots see.
        spec=_spec("simple_adversary", agents, opponent),
        mpe2_module="simple_adversary_v3",
        mpe2_options={},
        jaxmarl_class="SimpleAdversaryMPE",
        jaxmarl_options={},
        opponent=opponent,
    )


def tasks() -> Mapping[str, Callable[[], MpeTask]]:
    """The scenarios of this family by their short name."""
    return {
        "simple_adversary": simple_adversary,
        "simple_spread": simple_spread,
        "simple_speaker_listener": simple_speaker_listener,
    }


def task_with_opponent(name: str) -> MpeTask:
    """The task of that name, whose opponent can be trained.

    Raises:
        UserError: no such task, or it has no opponent.
    """
    found = {task.spec.name: task for make in tasks().values() if (task := make()).opponent}
    if name not in found:
        raise unknown("task with an opponent", name, found)
    return found[name]


def _spec(name: str, agents: tuple[AgentSpec, ...], opponent: Opponent | None = None) -> TaskSpec:
    return TaskSpec(
        name=f"mpe/{name}",
        agents=agents,
        episode_steps=EPISODE_STEPS,
        ends_early=False,
        # The joint state: all observations, and the share of the episode that has passed.
        state_size=sum(agent.observation_size for agent in agents) + 1,
        rate_hz=RATE_HZ,
        fixture_sha256=weights_sha256(opponent) if opponent else "",
    )


@dataclass(frozen=True)
class MpeTask:
    """One scenario in both simulators."""

    spec: TaskSpec
    mpe2_module: str
    mpe2_options: Mapping[str, Any]
    jaxmarl_class: str
    jaxmarl_options: Mapping[str, Any]
    opponent: Opponent | None = None  # plays frozen
    # The blocks, from the simulator's own observation; None: they are what it consists of.
    sense: Callable[[Any], list[Any]] | None = None

    def make_batch(self, num_envs: int) -> BatchEnv:
        """JaxMARL's simulator, jitted and vectorised."""
        return _JaxBatch(self, num_envs)

    def make_match(self, num_envs: int) -> Match:
        """The same, with the opponent not frozen but played from outside: to train both sides."""
        return _JaxMatch(self, num_envs)

    def make_reference(self) -> ReferenceEnv:
        """`mpe2`'s own parallel environment."""
        return _Mpe2Episode(self)


class _JaxBatch:
    def __init__(self, task: MpeTask, num_envs: int) -> None:
        frozen = {}
        if task.opponent:
            frozen[task.opponent.agent] = load_opponent(task.opponent, task.spec.name)
        self._episodes = _JaxEpisodes(task, [task.spec], frozen, num_envs)

    def reset(self, seed: int) -> BatchStep:
        return self._episodes.reset(seed)[0]

    def step(self, actions: Integers) -> BatchStep:
        return self._episodes.step([actions])[0]


class _JaxMatch:
    def __init__(self, task: MpeTask, num_envs: int) -> None:
        assert task.opponent
        self.sides = (task.spec, replace(task.spec, agents=(task.opponent.agent,)))
        self._episodes = _JaxEpisodes(task, self.sides, {}, num_envs)

    def reset(self, seed: int) -> tuple[BatchStep, BatchStep]:
        team, opponent = self._episodes.reset(seed)
        return team, opponent

    def step(self, team: Integers, opponent: Integers) -> tuple[BatchStep, BatchStep]:
        shown = self._episodes.step([team, opponent])
        return shown[0], shown[1]


class _JaxEpisodes:
    """Episodes that one or more sides play.

    Every agent of the simulator is on one of the `sides` or `frozen`. All sides are shown the
    joint state of the first.
    """

    def __init__(
        self,
        task: MpeTask,
        sides: Sequence[TaskSpec],
        frozen: Mapping[AgentSpec, Layers],
        num_envs: int,
    ) -> None:
        import jax
        import jax.numpy as jnp

        mpe = import_quietly("jaxmarl.environments.mpe")
        # JaxMARL compares the step counter before it counts: 24 gives episodes of 25 steps.
        env = getattr(mpe, task.jaxmarl_class)(max_steps=EPISODE_STEPS - 1, **task.jaxmarl_options)

        def pad(observations: Mapping[str, Any], side: TaskSpec) -> Any:
            return jnp.stack(
                [
                    jnp.pad(observations[a.name], (0, side.observation_size - a.observation_size))
                    for a in side.agents
                ]
            )

        def show(observations: Mapping[str, Any], clock: Any) -> tuple[Any, Any]:
            if task.sense:
                observations = {
                    name: jnp.concatenate(task.sense(seen)) for name, seen in observations.items()
                }
            own = [observations[agent.name] for agent in task.spec.agents]
            padded = [pad(observations, side) for side in sides]
            return padded, jnp.concatenate([*own, clock[None]])

        def reset_one(key: Any) -> tuple[Any, Any, Any]:
            observations, state = env.reset(key)
            return state, *show(observations, jnp.float32(0))

        def step_one(state: Any, actions: Any, key: Any) -> tuple[Any, Any, Any, Any]:
            named = {
                agent.name: action
                for side, of_side in zip(sides, actions, strict=True)
                for agent, action in zip(side.agents, of_side, strict=True)
            }
            if frozen:
                seen = env.get_obs(state)
                named |= {a.name: greedy(layers, seen[a.name]) for a, layers in frozen.items()}
            observations, state, rewards, _, _ = env.step_env(key, state, named)
            clock = state.step.astype(jnp.float32) / EPISODE_STEPS
            means = [
                jnp.mean(jnp.stack([rewards[agent.name] for agent in side.agents]))
                for side in sides
            ]
            return state, *show(observations, clock), means

        self._jax = jax
        self._reset = jax.jit(jax.vmap(reset_one))
        self._step = jax.jit(jax.vmap(step_one, in_axes=(0, 0, None)))
        self._num_envs = num_envs
        self._masks = [np.tile(side.action_exists, (num_envs, 1, 1)) for side in sides]
        self._key = jax.random.PRNGKey(0)
        self._state: Any = None
        self._steps = 0

    def reset(self, seed: int) -> list[BatchStep]:
        self._key = self._jax.random.PRNGKey(seed)
        observations, state = self._begin()
        rewards = [np.zeros(self._num_envs, np.float32)] * len(self._masks)
        return self._show(observations, state, rewards, done=False)

    def step(self, actions: Sequence[Integers]) -> list[BatchStep]:
        self._state, observations, state, rewards = self._step(
            self._state, [of_side.astype(np.int32) for of_side in actions], self._key
        )
        self._steps += 1
        done = self._steps == EPISODE_STEPS
        if done:
            observations, state = self._begin()
        return self._show(observations, state, rewards, done=done)

    def _begin(self) -> tuple[Any, Any]:
        self._key, key = self._jax.random.split(self._key)
        self._steps = 0
        self._state, observations, state = self._reset(self._jax.random.split(key, self._num_envs))
        return observations, state

    def _show(
        self, observations: Sequence[Any], state: Any, rewards: Sequence[Any], *, done: bool
    ) -> list[BatchStep]:
        return [
            BatchStep(
                np.array(observation),
                np.array(state),
                mask,
                np.array(reward),
                np.full(self._num_envs, done),
                np.zeros(self._num_envs, np.bool_),
            )
            for observation, mask, reward in zip(observations, self._masks, rewards, strict=True)
        ]


class _Mpe2Episode:
    def __init__(self, task: MpeTask) -> None:
        module = importlib.import_module(f"mpe2.{task.mpe2_module}")
        self._env = module.parallel_env(max_cycles=EPISODE_STEPS, **task.mpe2_options)
        self._sense = task.sense
        self._names = [agent.name for agent in task.spec.agents]
        self._masks = tuple(np.ones(len(agent.actions), np.bool_) for agent in task.spec.agents)
        self._frozen = {}
        if task.opponent:
            self._frozen[task.opponent.agent.name] = load_opponent(task.opponent, task.spec.name)
        self._seen: Mapping[str, Any] = {}
        self._steps = 0

    def reset(self, seed: int) -> View:
        observations, _ = self._env.reset(seed=seed)
        self._steps = 0
        return self._view(observations)

    def step(self, actions: Sequence[int]) -> Outcome:
        chosen = dict(zip(self._names, map(int, actions), strict=True))
        for name, layers in self._frozen.items():
            chosen[name] = int(greedy(layers, self._seen[name].astype(np.float32)))
        observations, rewards, terminated, truncated, _ = self._env.step(chosen)
        done = any(terminated.values()) or any(truncated.values())
        reward = sum(rewards[name] for name in self._names) / len(self._names)
        self._steps += 1
        return Outcome(self._view(observations), float(reward), done, "")

    def scene(self) -> list[Entity]:
        world = self._env.unwrapped.world
        return [
            Entity(
                item.name,
                self._kind(item.name),
                float(item.state.p_pos[0]),
                float(item.state.p_pos[1]),
                float(item.size),
            )
            for item in (*world.agents, *world.landmarks)
        ]

    def _sensed(self, observation: Any) -> Floats:
        own = np.concatenate(self._sense(observation)) if self._sense else observation
        return np.asarray(own, np.float32)

    def _kind(self, name: str) -> str:
        if name in self._frozen:
            return "enemy"
        return "agent" if name in self._names else "landmark"

    def _view(self, observations: Mapping[str, Any]) -> View:
        self._seen = observations
        own = tuple(self._sensed(observations[name]) for name in self._names)
        clock = np.array([self._steps / EPISODE_STEPS], np.float32)
        return View(own, np.concatenate([*own, clock]), self._masks)
