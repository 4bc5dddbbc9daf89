"""Small environments with the interfaces of PettingZoo and PyMARL, as others might write them."""

import random
import time

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary
from pettingzoo import ParallelEnv


class Corridors(ParallelEnv):
    """Each walker has a corridor of its own, and leaves the game at the far end of it.

    Walls are not to be run into, and the door-step at the far end says what lies behind.
    """

    metadata = {"name": "corridors", "render_fps": 4}  # noqa: RUF012 (as PettingZoo has it)

    def __init__(self, lengths=(2, 4), render_mode=None):
        self.possible_agents = [f"walker_{i}" for i in range(len(lengths))]
        self.lengths = dict(zip(self.possible_agents, lengths, strict=True))
        self.cells = {}

    def observation_space(self, agent):
        return Dict(
            {
                "cell": Discrete(self.lengths[agent] + 1),
                "door-step": Box(0.0, 1.0, (1, 3)),
                "action_mask": MultiBinary(3),
            }
        )

    def action_space(self, agent):
        return Discrete(3, start=-1)  # a cell back, none, a cell on

    def reset(self, seed=None, options=None):
        self.rng = np.random.default_rng(seed)
        self.agents = list(self.possible_agents)
        self.cells = dict.fromkeys(self.agents, 0)
        return self.observe(), {agent: {} for agent in self.agents}

    def step(self, actions):
        assert set(actions) == set(self.agents)
        for agent, action in actions.items():
            assert action + self.cells[agent] >= 0, "ran into the wall"
            self.cells[agent] += action
        there = {agent: self.cells[agent] == self.lengths[agent] for agent in self.agents}
        shown = self.observe()
        rewards = {agent: 10.0 if there[agent] else -1.0 for agent in self.agents}
        infos = {agent: {} for agent in self.agents}
        self.agents = [agent for agent in self.agents if not there[agent]]
        return shown, rewards, there, dict.fromkeys(there, False), infos

    def observe(self):
        return {
            agent: {
                "cell": np.int64(self.cells[agent]),
                "door-step": self.rng.random((1, 3), np.float32),
                "action_mask": np.array([self.cells[agent] > 0, True, True], np.int8),
            }
            for agent in self.agents
        }


class Silent(Corridors):
    """Sees nothing but its cell, says in `infos` what is legal, and keeps a state of its own."""

    def __init__(self, lengths=(2, 4), max_cycles=6):
        super().__init__(lengths)
        self.max_cycles = max_cycles

    def observation_space(self, agent):
        return Discrete(self.lengths[agent] + 1)

    def observe(self):
        return {agent: self.cells[agent] for agent in self.agents}

    def reset(self, seed=None, options=None):
        shown, _ = super().reset(seed)
        return shown, self.infos()

    def step(self, actions):
        *results, _ = super().step(actions)
        return *results, self.infos()

    def infos(self):
        return {a: {"action_mask": [self.cells[a] > 0, True, True]} for a in self.agents}

    def state(self):
        return np.array([list(self.cells.values())], np.float64)


class Timeless(Silent):
    """Has nothing to say about itself."""

    metadata = None


class Shrinking(Silent):
    """Its state is that of the walkers who are still there."""

    def state(self):
        return np.array([self.cells[agent] for agent in self.agents], np.float32)


class Ambiguous(Corridors):
    """Two of its keys name the same topic."""

    max_cycles = 9

    def observation_space(self, agent):
        space = Box(0.0, 1.0, (1,))
        return Dict({"door-step": space, "door_step": space})


class Tardy(Silent):
    """Takes its time."""

    def __init__(self, seconds=0.0):
        super().__init__()
        self.seconds = seconds

    def step(self, actions):
        time.sleep(self.seconds)
        return super().step(actions)


class Unwell(Silent):
    """Can be made, and not be played."""

    def reset(self, seed=None, options=None):
        raise RuntimeError("no display")


class Battle:
    """PyMARL's interface with SMAC's additions: three allies against as many enemies as asked for.

    A hit takes a quarter of an enemy's health. Ally `i` dies at step `3 * (i + 1)`.
    """

    def __init__(self, map_name="3m", n_enemies=3, seed=None, obs_timestep_number=False):
        self.map_name, self.seed_given = map_name, seed
        self.n_agents, self.n_enemies, self.episode_limit = 3, n_enemies, 8
        self.n_actions_no_attack = 6
        self.n_actions = self.n_actions_no_attack + n_enemies
        self.timed = obs_timestep_number
        self.battles_won = 0

    def get_env_info(self):
        return {
            "state_shape": self.n_agents + self.n_enemies,
            "obs_shape": 4 + 5 * self.n_enemies + 5 * (self.n_agents - 1) + 1 + self.timed,
            "n_actions": self.n_actions,
            "n_agents": self.n_agents,
            "episode_limit": self.episode_limit,
        }

    def reset(self):
        self.time = 0
        self.allies = np.array([random.random() for _ in range(self.n_agents)])
        self.enemies = np.random.uniform(0.3, 1.0, self.n_enemies)  # noqa: NPY002 (as SMAC does)
        return self.get_obs(), self.get_state()

    def step(self, actions):
        before = self.enemies.sum()
        for flags, action in zip(self.get_avail_actions(), actions, strict=True):
            assert flags[action], f"Agent cannot perform action {action}"
            if action >= self.n_actions_no_attack:
                target = action - self.n_actions_no_attack
                self.enemies[target] = max(0.0, self.enemies[target] - 0.25)
        self.time += 1
        self.allies[: self.time // 3] = 0.0
        won = not self.enemies.any()
        self.battles_won += won
        ended = won or not self.allies.any() or self.time >= self.episode_limit
        return before - self.enemies.sum() + 10.0 * won, ended, {"battle_won": won}

    def get_avail_actions(self):
        alive = [0, 1, 1, 1, 1, 1, *(self.enemies > 0).astype(int)]
        dead = [1] + [0] * (self.n_actions - 1)
        return [alive if health else dead for health in self.allies]

    def get_obs(self):
        return [self.get_obs_agent(i) for i in range(self.n_agents)]

    def get_obs_agent(self, agent_id):
        parts = self.features(agent_id)
        obs = np.concatenate([np.ravel(part) for part in parts.values()])
        return obs if self.allies[agent_id] else np.zeros_like(obs)

    def features(self, agent_id):
        others = np.delete(np.arange(self.n_agents), agent_id)
        parts = {
            "move": np.ones(4),
            "enemies": np.stack([[1.0, 0.5, 0.5, 0.0, h] for h in self.enemies]),
            "allies": np.stack([[1.0, 0.1, 0.0, -i, self.allies[i]] for i in others]),
            "own": self.allies[[agent_id]],
        }
        return parts | ({"time": np.array([self.time / self.episode_limit])} if self.timed else {})

    def get_obs_move_feats_size(self):
        return 4

    def get_obs_enemy_feats_size(self):
        return self.n_enemies, 5

    def get_obs_ally_feats_size(self):
        return self.n_agents - 1, 5

    def get_obs_own_feats_size(self):
        return 1

    def get_state(self):
        return np.concatenate([self.allies, self.enemies])

    def close(self):
        pass


class Lamps:
    """Plain PyMARL: everybody switches a lamp; it burns out when switched on a third time.

    Only the first action, doing nothing, is left to whose lamp has burnt out.
    """

    def __init__(self, lamps=2, steps=7):
        self.lamps, self.steps = lamps, steps

    def get_env_info(self):
        return {
            "state_shape": (self.lamps, 2),
            "obs_shape": 2,
            "n_actions": 2,
            "n_agents": self.lamps,
            "episode_limit": self.steps,
        }

    def reset(self):
        self.time = 0
        self.switched = np.zeros(self.lamps)
        self.glow = np.random.random(self.lamps)  # noqa: NPY002

    def step(self, actions):
        flags = self.get_avail_actions()
        assert all(f[a] for f, a in zip(flags, actions, strict=True))
        self.switched += actions
        self.glow = np.array([random.random() for _ in range(self.lamps)])
        self.time += 1
        return float(np.sum(actions)), self.time == self.steps, {}

    def get_avail_actions(self):
        return np.stack([np.ones(self.lamps), self.switched < 3], -1)

    def get_obs(self):
        return list(self.get_state())

    def get_state(self):
        return np.stack([self.glow, self.switched], -1)

    def close(self):
        pass


class Dialect(Lamps):
    """EPyMARL's: `reset` with a seed, `step` with five results and a reward for each agent.

    It never ends of itself, and is won when all lamps have burnt out.
    """

    def reset(self, seed=None, options=None):
        super().reset()
        self.glow = np.random.default_rng(seed).random(self.lamps)
        return self.get_obs(), {}

    def step(self, actions):
        super().step(actions)
        won = bool((self.switched == 3).all())
        return self.get_obs(), [float(a) for a in actions], won, False, {"battle_won": won}
