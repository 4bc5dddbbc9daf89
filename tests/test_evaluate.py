"""Seeded episodes: the same for everyone who plays them, here or over ROS."""

import json

import numpy as np
import pytest
from helpers import TASK, TEAM_FILE, make_manifest, make_model, make_teacher, write_yaml

from kdmarl_core.bundle import BundlePolicy, load_policy, write_bundle
from kdmarl_core.evaluate import (
    BundlePlayer,
    Episode,
    RandomPlayer,
    episode_seed,
    evaluation,
    play,
    replay,
    returns,
)
from kdmarl_core.tasks import block_columns, make_task
from kdmarl_core.teacher.player import TeacherPlayer

TASK_MADE = make_task(TASK)
SPEC = TASK_MADE.spec
BLOCKS = [("position", 2), ("landmarks", 6)]


def bundle_player(blocks=BLOCKS):
    policies = [
        BundlePolicy(make_manifest(blocks), make_model(make_manifest(blocks), seed))
        for seed in range(SPEC.num_agents)
    ]
    return BundlePlayer(policies, SPEC.agents)


PLAYERS = {
    "random": lambda: RandomPlayer(SPEC),
    "teacher": lambda: TeacherPlayer(make_teacher(SPEC)[0], SPEC),
    "bundles": bundle_player,
}


@pytest.fixture(scope="module")
def env():
    return TASK_MADE.make_reference()


@pytest.mark.parametrize("make_player", PLAYERS.values(), ids=PLAYERS)
def test_the_same_seed_gives_the_same_episodes(env, make_player):
    first = list(play(env, make_player(), 3, seed=4))
    again = list(play(TASK_MADE.make_reference(), make_player(), 3, seed=4))
    other = list(play(env, make_player(), 3, seed=5))
    assert first == again
    assert len({episode.team_return for episode in first}) == 3  # no episode is played twice
    assert not {e.team_return for e in first} & {e.team_return for e in other}


@pytest.mark.parametrize("make_player", PLAYERS.values(), ids=PLAYERS)
def test_an_episode_does_not_depend_on_those_before(env, make_player):
    """What was played before leaves no trace in player or simulator."""
    player = make_player()
    list(play(env, player, 2, seed=8))
    third = list(play(env, player, 3, seed=4))[2]
    env.reset(episode_seed(4, 2))
    player.reset(episode_seed(4, 2))
    assert third == list(play(env, player, 3, seed=4))[2]


def test_an_episode_is_what_was_played(env):
    episodes = list(play(env, RandomPlayer(SPEC), 2, seed=0))
    for index, episode in enumerate(episodes):
        assert episode.seed == episode_seed(0, index)
        assert episode.steps == len(episode.actions) == SPEC.episode_steps
        assert all(len(step) == SPEC.num_agents for step in episode.actions)
        env.reset(episode.seed)
        rewards = [env.step(actions).reward for actions in episode.actions]
        assert episode.team_return == pytest.approx(sum(rewards), abs=1e-12)
        assert episode.outcome == ""


def test_replay_shows_every_step(env):
    episode = next(play(env, RandomPlayer(SPEC), 1, seed=0))
    scenes = replay(env, episode.seed, episode.actions)
    assert len(scenes) == episode.steps + 1
    assert scenes == replay(env, episode.seed, episode.actions)
    assert scenes[0] != scenes[-1]
    landmarks = [[e for e in scene if e.kind == "landmark"] for scene in scenes]
    assert all(seen == landmarks[0] for seen in landmarks)


def test_evaluation_is_over_the_returns():
    played = [Episode(0, value, 25, "", []) for value in (-10.0, -14.0)]
    assert returns(played).tolist() == [-10.0, -14.0]
    score = evaluation(played, seed=3)
    assert (score.mean_return, score.standard_error) == (-12.0, 2.0)
    assert (score.episodes, score.seed) == (2, 3)


def test_random_actions_are_uniform_and_belong_to_the_episode():
    player = RandomPlayer(SPEC)
    player.reset(1)
    drawn = np.array([player.act(()) for _ in range(4000)])
    for agent, column in zip(SPEC.agents, drawn.T, strict=True):
        share = np.bincount(column, minlength=len(agent.actions)) / len(column)
        assert np.abs(share - 1 / len(agent.actions)).max() < 0.03
    player.reset(1)
    assert [player.act(()) for _ in range(3)] == drawn[:3].tolist()
    player.reset(2)
    assert [player.act(()) for _ in range(9)] != drawn[:9].tolist()


def test_robots_get_their_own_blocks_only():
    player = bundle_player()
    alone = BundlePolicy(make_manifest(BLOCKS), make_model(make_manifest(BLOCKS), 1))
    columns = block_columns(SPEC.agents[1].blocks)
    rng = np.random.default_rng(0)
    for _ in range(10):
        shown = rng.normal(size=(SPEC.num_agents, SPEC.observation_size)).astype(np.float32)
        own = np.concatenate([shown[1, columns[name]] for name, _ in BLOCKS])
        actions = player.act(shown)
        assert actions[1] == alone.act(own)
        hidden = [part for name, part in columns.items() if name not in dict(BLOCKS)]
        for part in hidden:
            shown[:, part] += 5.0
        assert player.act(shown) == actions


# The command


@pytest.fixture
def team(tmp_path):
    """A team file, and bundles of random weights for it."""
    path = write_yaml(tmp_path / "trio.yaml", TEAM_FILE)
    blocks = [("velocity", 2), ("position", 2), ("landmarks", 6), ("others", 4)]
    for index in range(3):
        folder = tmp_path / "bundles" / f"robot_{index}"
        folder.mkdir(parents=True)
        manifest = make_manifest(blocks, robot=f"robot_{index}", agent=f"agent_{index}")
        write_bundle(folder, manifest, make_model(manifest, index))
    return path, tmp_path / "bundles"


def test_command_plays_the_episodes_of_the_seed(kdmarl, team, env):
    path, bundles = team
    done = kdmarl(
        *["evaluate", "--team", path, "--bundles", bundles, "--players", "students", "random"],
        *["--episodes", "3", "--seed", "9", "--json"],
    )
    assert done.code == 0, done.err
    figures = json.loads(done.out)
    assert figures["retention"] is None  # there was no teacher to compare with
    policies = [load_policy(bundles / f"robot_{index}") for index in range(3)]
    players = {"students": BundlePlayer(policies, SPEC.agents), "random": RandomPlayer(SPEC)}
    for name, player in players.items():
        expected = list(play(env, player, 3, seed=9))
        assert figures["episodes"][name] == [e._asdict() for e in expected]
        assert figures["players"][name]["return"] == returns(expected).mean()
    assert done.left == []


def test_command_prints_a_table(kdmarl, team):
    path, bundles = team
    done = kdmarl(
        *["evaluate", "--team", path, "--bundles", bundles, "--players", "random"],
        *["--episodes", "2"],
    )
    assert done.code == 0, done.err
    assert "random" in done.out
    assert "students" not in done.out


def test_tasks_command_lists_what_there_is(kdmarl):
    figures = json.loads(kdmarl("tasks", "--json").out)
    assert figures[TASK]["agent_0"]["blocks"]["landmarks"] == 6
    assert figures[TASK]["agent_2"]["actions"] == ["stay", "left", "right", "down", "up"]
    table = kdmarl("tasks")
    assert table.code == 0
    assert "landmarks[6] m" in " ".join(table.out.split())
