"""Seeded episodes: the same for everyone who plays them, here or over ROS."""

import dataclasses
import json

import numpy as np
import pytest
from helpers import (
    MIXED_TASK,
    TASK,
    TEAM_FILE,
    make_manifest,
    make_model,
    make_teacher,
    mixed_team,
    write_teacher,
    write_yaml,
)

from kdmarl_core.bundle import MODEL, BundlePolicy, StudentEntry, load_policy, write_bundle
from kdmarl_core.evaluate import (
    BundlePlayer,
    Episode,
    RandomPlayer,
    TimedPlayer,
    episode_seed,
    evaluation,
    play,
    replay,
    returns,
    scores,
)
from kdmarl_core.sensors import team_sensors
from kdmarl_core.tasks import View, block_columns, make_task
from kdmarl_core.teacher.player import TeacherPlayer
from kdmarl_core.teacher.teacher import read_card
from kdmarl_core.team import load_team
from kdmarl_core.team_file import StudentSpec

TASK_MADE = make_task(TASK)
SPEC = TASK_MADE.spec
BUNDLE_TEAM = load_team("simple_spread")


def policies_of(team, network="mlp"):
    """Bundles of random weights for a team."""
    student = StudentEntry(network, 8, 0, 0, 8 if network == "gru" else 0)
    manifests = [
        make_manifest(
            [(block.name, block.size) for block in robot.blocks],
            actions=robot.agent.actions,
            student=student,
        )
        for robot in team.robots
    ]
    return [
        BundlePolicy(manifest, make_model(manifest, seed))
        for seed, manifest in enumerate(manifests)
    ]


def hiding(team):
    """The team with recurrent students to which some features are hidden."""
    robots = [
        dataclasses.replace(robot, random_features=(4, 6), student=StudentSpec("gru", 8))
        for robot in team.robots
    ]
    return dataclasses.replace(team, robots=tuple(robots))


PLAYERS = {
    "random": RandomPlayer,
    "teacher": lambda: TeacherPlayer(make_teacher(SPEC)[0], SPEC),
    "bundles": lambda: BundlePlayer(policies_of(BUNDLE_TEAM), BUNDLE_TEAM),
    "recurrent bundles": lambda: BundlePlayer(
        policies_of(hiding(BUNDLE_TEAM), "gru"), hiding(BUNDLE_TEAM)
    ),
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
    episodes = list(play(env, RandomPlayer(), 2, seed=0))
    for index, episode in enumerate(episodes):
        assert episode.seed == episode_seed(0, index)
        assert episode.steps == len(episode.actions) == SPEC.episode_steps
        assert all(len(step) == SPEC.num_agents for step in episode.actions)
        env.reset(episode.seed)
        rewards = [env.step(actions).reward for actions in episode.actions]
        assert episode.team_return == pytest.approx(sum(rewards), abs=1e-12)
        assert episode.outcome == ""


def test_replay_shows_every_step(env):
    episode = next(play(env, RandomPlayer(), 1, seed=0))
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
    assert (score.episodes, score.seed, score.win_rate) == (2, 3, None)


def test_a_win_rate_is_of_tasks_that_can_be_won():
    played = [Episode(0, 1.0, 25, outcome, []) for outcome in ("won", "lost", "lost", "lost")]
    assert evaluation(played, seed=0).win_rate == 0.25
    assert scores(played).sum() == 1
    assert scores([episode._replace(outcome="") for episode in played]) == pytest.approx(
        returns(played)
    )


def test_wins_are_shown_where_there_are_any(kdmarl):
    command = ["evaluate", "--players", "random", "--episodes", "2", "--team"]
    assert "0.0% won" in kdmarl(*command, "smax_3m").out
    won = json.loads(kdmarl(*command, "smax_3m", "--json").out)["players"]["random"]["win_rate"]
    assert won == 0.0
    assert "won" not in kdmarl(*command, "simple_spread").out


def view(observations=(), masks=()):
    return View(tuple(observations), np.zeros(0, np.float32), tuple(map(np.array, masks)))


@pytest.mark.parametrize(
    "masks",
    [
        [[True] * 5] * 3,
        [[True, False, True, False, True], [False, False, False, True], [True, True]],
    ],
    ids=["all", "some"],
)
def test_random_actions_are_legal_uniform_and_belong_to_the_episode(masks):
    player, shown = RandomPlayer(), view(masks=masks)
    player.reset(1)
    drawn = np.array([player.act(shown) for _ in range(4000)])
    for mask, column in zip(masks, drawn.T, strict=True):
        share = np.bincount(column, minlength=len(mask)) / len(column)
        assert np.abs(share - np.array(mask) / sum(mask)).max() < 0.03
        assert (share[~np.array(mask)] == 0).all()
    player.reset(1)
    assert [player.act(shown) for _ in range(3)] == drawn[:3].tolist()
    player.reset(2)
    assert [player.act(shown) for _ in range(9)] != drawn[:9].tolist()


TEAM = mixed_team()


def random_observations(rng):
    return [rng.normal(size=a.observation_size).astype(np.float32) for a in MIXED_TASK.agents]


EVERYTHING = [[True] * len(agent.actions) for agent in MIXED_TASK.agents]


def test_robots_get_their_own_blocks_only():
    player, policies = BundlePlayer(policies_of(TEAM), TEAM), policies_of(TEAM)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(20):
        shown = random_observations(rng)
        actions = player.act(view(shown, EVERYTHING))
        for index, robot in enumerate(TEAM.robots):
            columns = block_columns(robot.agent.blocks)
            own = [shown[index][columns[block.name]] for block in robot.sensors]
            assert actions[index] == policies[index].act(np.concatenate(own))
            for name, part in columns.items():
                if name not in {block.name for block in robot.sensors}:
                    shown[index][part] += 5.0
        assert player.act(view(shown, EVERYTHING)) == actions
        seen.add(tuple(actions))
    assert len(seen) > 1


def test_students_take_legal_actions_only():
    player, rng = BundlePlayer(policies_of(TEAM), TEAM), np.random.default_rng(0)
    for _ in range(20):
        shown = random_observations(rng)
        free = player.act(view(shown, EVERYTHING))
        masks = [list(mask) for mask in EVERYTHING]
        for mask, action in zip(masks[:2], free, strict=False):
            mask[action] = False
        chosen = player.act(view(shown, masks))
        assert chosen[0] != free[0]
        assert chosen[1] != free[1]


@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_students_see_and_remember_what_their_episode_allows(network):
    """Both draws and memories begin with the episode, and are each robot's own."""
    team = mixed_team(network, ((1, 3), None, (2, 4)))
    player, rng = BundlePlayer(policies_of(team, network), team), np.random.default_rng(1)
    steps = [random_observations(rng) for _ in range(6)]
    for seed in (1, 2, 1):
        player.reset(seed)
        found = [player.act(view(shown, EVERYTHING)) for shown in steps]
        expected = []
        for policy, own, index in zip(
            policies_of(team, network), team_sensors(team), range(3), strict=True
        ):
            own.begin(seed)
            expected.append([policy.act(own.read(shown[index])) for shown in steps])
        assert found == [list(actions) for actions in zip(*expected, strict=True)]


# The command


def test_the_time_of_a_decision_is_of_all_robots_and_of_nothing_else(env):
    """By a clock that each look moves on, by more in the second episode.

    An action takes two looks more than none: 1 s, then 3 s. So the mean is 2 s, and the deviation
    of the episodes' means sqrt((1 - 2)^2 + (3 - 2)^2) s.
    """
    now, steps = 0.0, {"per look": 0.5}

    def clock():
        nonlocal now
        now += steps["per look"]
        return now

    class Slow(RandomPlayer):
        def act(self, view):
            clock()
            return super().act(view)

        def reset(self, seed):
            clock()  # what takes time before an episode is no decision
            super().reset(seed)

    player, played = TimedPlayer(Slow(), clock), []
    for seed, per_look in enumerate((0.5, 1.5)):
        steps["per look"] = per_look
        played += play(env, player, 1, seed)
    assert player.decision_ms() == pytest.approx((2000.0, 1000 * 2**0.5))
    assert played == [next(play(env, RandomPlayer(), 1, seed)) for seed in range(2)]


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
    for timed in figures["players"].values():
        assert timed["decision_ms"] > 0
        assert timed["decision_ms_deviation"] >= 0
    policies = [load_policy(bundles / f"robot_{index}") for index in range(3)]
    players = {
        "students": BundlePlayer(policies, load_team(str(path))),
        "random": RandomPlayer(),
    }
    for name, player in players.items():
        expected = list(play(env, player, 3, seed=9))
        assert figures["episodes"][name] == [e._asdict() for e in expected]
        assert figures["players"][name]["return"] == returns(expected).mean()
    assert done.left == []


def test_command_says_whose_students_they_are(kdmarl, team, tmp_path):
    """Retention of another teacher's score is no retention of what was taught."""
    path, bundles = team
    teacher = write_teacher(tmp_path / "teacher")
    command = ["evaluate", "--team", path, "--bundles", bundles, "--teacher", teacher]
    command += ["--episodes", "2"]
    told = f"students were distilled from teacher 000000000000, not from '{teacher}' ("
    done = kdmarl(*command)
    assert done.code == 0, done.err
    assert told in " ".join(done.err.split())
    assert "distilled" not in kdmarl(*command, "--players", "students").err
    sha256 = read_card(teacher).weights_sha256
    for folder in bundles.iterdir():
        policy = load_policy(folder)
        taught = dataclasses.replace(policy.manifest.teacher, sha256=sha256)
        model = (folder / MODEL).read_bytes()
        write_bundle(folder, dataclasses.replace(policy.manifest, teacher=taught), model)
    assert "distilled" not in kdmarl(*command).err


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
    assert figures[TASK]["agent_0"]["rows"] == {"landmarks": 3, "others": 2}
    assert figures[TASK]["agent_2"]["actions"] == ["stay", "left", "right", "down", "up"]
    table = kdmarl("tasks")
    assert table.code == 0
    assert "landmarks[3 x 2] m" in " ".join(table.out.split())
