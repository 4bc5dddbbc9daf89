"""Any PettingZoo parallel environment as a task: shown on some that we did not write code for."""

import dataclasses
import importlib
import json

import numpy as np
import pytest
from helpers import DISTILLATION_RECIPE, TRAINING_RECIPE, changed, write_yaml

from kdmarl_core.tasks import make_task

REFERENCE = "pettingzoo/mpe2.simple_reference_v3"
PURSUIT = "pettingzoo/pettingzoo.sisl.pursuit_v5"
SMALL = "max_cycles=12&n_pursuers=3&obs_range=5"
KNIGHTS = "pettingzoo/pettingzoo.butterfly.knights_archers_zombies_v11"
CORRIDORS = "pettingzoo/foreign_envs:Corridors"
BACK, STAY, ON = 0, 1, 2


def blocks_of(agent):
    return {block.name: block.size for block in agent.blocks}


# What environments of others say of themselves


def test_a_particle_environment():
    spec = make_task(REFERENCE).spec
    assert [agent.name for agent in spec.agents] == ["agent_0", "agent_1"]
    assert [blocks_of(agent) for agent in spec.agents] == [{"observation": 21}] * 2
    assert spec.agents[0].actions == tuple(f"action_{i}" for i in range(50))
    assert (spec.episode_steps, spec.rate_hz, spec.homogeneous) == (25, 10.0, True)
    # Its state is all observations, one behind the other; we add the time.
    assert (spec.state_size, spec.partially_observable) == (2 * 21 + 1, False)


def test_options_go_to_the_environment():
    whole, small = make_task(PURSUIT).spec, make_task(f"{PURSUIT}?{SMALL}").spec
    assert (whole.num_agents, whole.episode_steps, whole.state_size) == (8, 500, 16 * 16 * 3 + 1)
    assert (small.num_agents, small.episode_steps, small.state_size) == (3, 12, 16 * 16 * 3 + 1)
    assert blocks_of(whole.agents[0]) == {"observation": 7 * 7 * 3}
    assert blocks_of(small.agents[0]) == {"observation": 5 * 5 * 3}
    assert small.partially_observable
    assert small.rate_hz == 5.0


def test_agents_that_differ():
    spec = make_task("pettingzoo/mpe2.simple_crypto_v3").spec
    sizes = [agent.observation_size for agent in spec.agents]
    assert (sizes, spec.observation_size, spec.homogeneous) == ([4, 8, 8], 8, False)


def test_dictionaries_become_blocks():
    spec = make_task(f"{CORRIDORS}?lengths=[1, 5]&episode_steps=9").spec
    expected = [{"cell": 2, "door_step": 3}, {"cell": 6, "door_step": 3}]
    assert [blocks_of(agent) for agent in spec.agents] == expected
    assert spec.state_size == 5 + 9 + 1
    assert not spec.partially_observable
    assert (spec.episode_steps, spec.rate_hz) == (9, 4.0)


# Stepping


@pytest.mark.parametrize("name", [REFERENCE, f"{PURSUIT}?{SMALL}", f"{KNIGHTS}?max_cycles=40"])
def test_the_reference_is_the_environment(name):
    """Same seeds and actions give what the environment itself gives; the rest is bookkeeping."""
    path, _, options = name.removeprefix("pettingzoo/").partition("?")
    options = {key: int(value) for key, value in (o.split("=") for o in options.split("&") if o)}
    judge = importlib.import_module(path).parallel_env(**options)
    task = make_task(name)
    reference, agents = task.make_reference(), judge.possible_agents
    rng = np.random.default_rng(0)
    for seed in (3, 4):
        observed, _ = judge.reset(seed=seed)
        view, done, steps = reference.reset(seed), False, 0
        while not done:
            for agent, shown in zip(agents, view.observations, strict=True):
                assert np.array_equal(shown, np.ravel(observed[agent]).astype(np.float32))
            own = np.ravel(judge.state()).astype(np.float32)
            assert np.array_equal(view.state, [*own, np.float32(steps / task.spec.episode_steps)])
            actions = [int(rng.integers(judge.action_space(agent).n)) for agent in agents]
            observed, rewards, *_ = judge.step(dict(zip(agents, actions, strict=True)))
            view, reward, done, label = reference.step(actions)
            steps += 1
            assert reward == pytest.approx(np.mean(list(rewards.values())))
            assert (done, label) == (not judge.agents, "")
            if len(judge.agents) < len(agents):
                break  # what happens then is tested below


def corridors(options="episode_steps=9"):
    reference = make_task(f"{CORRIDORS}?{options}").make_reference()
    return reference, reference.reset(0)


def test_masks():
    reference, view = corridors()
    assert [mask.tolist() for mask in view.action_masks] == [[False, True, True]] * 2
    view = reference.step([ON, STAY]).view
    assert [mask.tolist() for mask in view.action_masks] == [[True] * 3, [False, True, True]]
    # cell 1 of 3, and 0 of 5, one-hot; the door-steps are noise
    assert view.observations[0][:3].tolist() == [0, 1, 0]
    assert view.observations[1][:5].tolist() == [1, 0, 0, 0, 0]


def test_an_illegal_action_becomes_the_first_legal_one():
    """The environment itself would fail, as it must when a lost robot's safe action is illegal."""
    reference, _ = corridors()
    view = reference.step([BACK, ON]).view
    assert view.observations[0][:3].tolist() == [1, 0, 0]
    assert view.observations[1][:5].tolist() == [0, 1, 0, 0, 0]


def test_agents_that_leave():
    """The first walker arrives at step 2, the other one, twice as far away, at step 4."""
    reference, _ = corridors()
    outcomes = [reference.step([ON, ON]) for _ in range(4)]
    assert [outcome.reward for outcome in outcomes] == [-1.0, (10 - 1) / 2, -1.0, 10.0]
    assert [outcome.done for outcome in outcomes] == [False, False, False, True]
    for outcome in outcomes[1:3]:
        first, second = outcome.view.observations
        assert not first.any()
        assert second.any()
        masks = [mask.tolist() for mask in outcome.view.action_masks]
        assert masks == [[True, False, False], [True, True, True]]
    sensed = np.concatenate(outcomes[2].view.observations)
    assert np.array_equal(outcomes[2].view.state, [*sensed, np.float32(3 / 9)])


def test_knights_and_archers_that_fall():
    """In an environment of others: agents leave one by one, and the episode goes on without."""
    reference, done, present = make_task(KNIGHTS).make_reference(), False, []
    view = reference.reset(1)
    while not done:
        alone = [mask.tolist() == [True] + [False] * 5 for mask in view.action_masks]
        present.append(4 - sum(alone))
        for gone, shown in zip(alone, view.observations, strict=True):
            assert not (gone and shown.any())
        view, _, done, _ = reference.step([int(mask.argmax()) for mask in view.action_masks])
    assert present[0] == 4
    assert min(present) in (1, 2, 3)
    assert present == sorted(present, reverse=True)
    assert len(present) < 900


def test_masks_in_infos_and_a_state_of_its_own():
    task = make_task("pettingzoo/foreign_envs:Silent")
    assert (task.spec.episode_steps, task.spec.state_size) == (6, 2 + 1)
    assert task.spec.partially_observable  # the sizes of the one-hots differ from the cells
    assert blocks_of(task.spec.agents[1]) == {"observation": 5}
    reference = task.make_reference()
    reference.reset(0)
    view = reference.step([ON, STAY]).view
    assert view.state.tolist() == [1.0, 0.0, np.float32(1 / 6)]
    assert [mask.tolist() for mask in view.action_masks] == [[True] * 3, [False, True, True]]


def test_episodes_end_at_the_given_step():
    reference, _ = corridors("episode_steps=3")
    assert [reference.step([STAY, STAY]).done for _ in range(3)] == [False, False, True]


def test_a_batch_goes_on_with_the_next_episode():
    """Every environment on its own: one team stands still, the other one arrives at step 4."""
    task = make_task(f"{CORRIDORS}?episode_steps=6")
    batch = task.make_batch(2)
    first = batch.reset(7)
    still, moving = [STAY, STAY], [ON, ON]
    shown = [batch.step(np.array([still, moving])) for _ in range(6)]
    assert [step.done.tolist() for step in shown] == [
        *[[False, False]] * 3,
        [False, True],
        [False, False],
        [True, False],
    ]
    assert [step.reward.tolist() for step in shown[:2]] == [[-1.0, -1.0], [-1.0, 4.5]]
    begun = shown[3]
    assert begun.observation[1, :, :3].tolist() == first.observation[1, :, :3].tolist()
    assert begun.state[1, -1] == 0
    assert not np.array_equal(begun.observation[1], first.observation[1])  # other door-steps
    assert shown[4].state[:, -1].tolist() == [np.float32(5 / 6), np.float32(1 / 6)]
    assert not any(step.won.any() for step in shown)


# What cannot be played


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pettingzoo", ["pettingzoo/<module>"]),
        ("pettingzoo/", ["pettingzoo/<module>"]),
        ("pettingzoo/nowhere.games_v1", ["'nowhere'", "pip install"]),
        ("pettingzoo/..games", ["'..games'", "package.module"]),
        ("pettingzoo/pettingzoo.sisl.pursuit_v1", ["did you mean pettingzoo.sisl.pursuit_v5"]),
        ("pettingzoo/helpers_that_need:x", ["'absent_simulator'", "pip install"]),
        ("pettingzoo/pettingzoo.classic.tictactoe_v3", ["parallel_env", ":<callable>"]),
        ("pettingzoo/pettingzoo.classic.tictactoe_v3:env", ["ParallelEnv", "aec_to_parallel"]),
        ("pettingzoo/mpe2.simple_v3?continuous_actions=true", ["agent_0", "Box", "Discrete"]),
        ("pettingzoo/pettingzoo.butterfly.cooperative_pong_v6", ["403200", "4096", "paddle_0"]),
        ("pettingzoo/mpe2.simple_v3?max_cycle=9", ["max_cycle", "options"]),
        ("pettingzoo/mpe2.simple_v3?max_cycles", ["'max_cycles'", "name=value"]),
        ("pettingzoo/mpe2.simple_v3?max_cycles=9&max_cycles=8", ["max_cycles", "twice"]),
        ("pettingzoo/mpe2.simple_v3?max_cycles={", ["max_cycles", "'{'", "YAML"]),
        ("pettingzoo/mpe2.simple_v3?episode_steps=0", ["0", "episode_steps"]),
        ("pettingzoo/mpe2.simple_v3?episode_steps=many", ["'many'", "episode_steps"]),
        (CORRIDORS, ["how long", "?episode_steps="]),
    ],
)
def test_what_cannot_be_played(name, words, refusal, tmp_path, monkeypatch):
    (tmp_path / "helpers_that_need.py").write_text("import absent_simulator\n")
    monkeypatch.syspath_prepend(tmp_path)
    message = refusal(make_task, name, "team.yaml: task")
    assert message.startswith(f"team.yaml: task: {name}: ")
    for word in words:
        assert word in message


def test_file_names():
    spec = make_task(REFERENCE).spec

    def slug(name):
        return dataclasses.replace(spec, name=name).slug

    assert slug("mpe/simple_spread") == "mpe_simple_spread"
    assert (
        slug(f"{PURSUIT}?x=1&y=[2, a/b]") == "pettingzoo_pettingzoo.sisl.pursuit_v5_x_1_y_2_a_b_"
    )
    long, other = ("pymarl/smacv2.env:StarCraft2Env?map_name=" + "x" * 300 + end for end in "ab")
    assert len(slug(long)) < 120
    assert slug(long) != slug(other)


# Commands


def test_tasks_tells_what_a_team_file_needs(kdmarl):
    told = kdmarl("tasks", f"{CORRIDORS}?episode_steps=9", "--json")
    assert told.code == 0, told.err
    (agents,) = json.loads(told.out).values()
    assert agents["walker_1"] == {
        "blocks": {"cell": 5, "door_step": 3},
        "rows": {},
        "aims": {},
        "actions": ["action_0", "action_1", "action_2"],
    }
    listed = kdmarl("tasks").out
    assert "pettingzoo/<module>" in listed
    assert "smac/<map>" in listed
    assert kdmarl("tasks", "smax/3mm").err.startswith("kdmarl: unknown task 'smax/3mm'; did you")


def test_from_teacher_to_students(kdmarl, tmp_path):
    """`train`, `distil` and `evaluate` on an environment of others, one whose agents leave."""
    task = f"{CORRIDORS}?episode_steps=9"
    recipe = changed(changed(TRAINING_RECIPE, "task", task), "env_steps", 400)
    robots = {
        f"robot_{i}": {
            "agent": f"walker_{i}",
            "sensors": ["cell"],
            "safe_action": "action_1",
            "student": {"network": "mlp", "width": 4},
        }
        for i in range(2)
    }
    team = write_yaml(
        tmp_path / "walkers.yaml", {"task": task, "teacher": "walkers", "robots": robots}
    )
    training = write_yaml(tmp_path / "recipe.yaml", recipe)
    small = changed(DISTILLATION_RECIPE, "offline.buffer_steps", 400)
    small = changed(changed(small, "offline.updates", 2), "on_policy.iterations", 1)
    distillation = write_yaml(tmp_path / "distil.yaml", small)
    few = ["--episodes", "4", "--json"]
    trained = kdmarl("train", task, "--recipe", training, "--output", "teacher", *few)
    assert trained.code == 0, trained.err
    # Each episode: a walker gives at most -1, and then 10; at least -1 at every of nine steps.
    assert -9 <= json.loads(trained.out)["return"] <= 2 * 10
    given = ["--team", team, "--teacher", "teacher/teacher"]
    distilled = kdmarl("distil", *given, "--recipe", distillation, "--output", "students", *few)
    assert distilled.code == 0, distilled.err
    judged = kdmarl("evaluate", *given, "--bundles", "students", *few)
    assert judged.code == 0, judged.err


def test_an_environment_that_says_nothing_about_itself():
    assert make_task("pettingzoo/foreign_envs:Timeless").spec.rate_hz == 10.0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Ambiguous", ["'walker_0'", "door-step, door_step", "must be distinct"]),
        ("Unwell", ["cannot be played", "RuntimeError: no display"]),
    ],
)
def test_environments_that_cannot_be_used_are_named(refusal, name, words):
    message = refusal(make_task, f"pettingzoo/foreign_envs:{name}")
    for word in (f"foreign_envs:{name}", *words):
        assert word in message


def test_a_joint_state_that_changes_its_size_is_refused(refusal):
    name = "pettingzoo/foreign_envs:Shrinking?lengths=[2, 4]"
    reference = make_task(name).make_reference()
    reference.reset(0)
    reference.step([ON, ON])
    message = refusal(reference.step, [ON, ON])  # the first walker leaves
    assert name in message
    assert "state() had 2 values when the episode began, and 1 in step 2" in message
