"""Students that encode the rows of blocks: as defined, padded, deployed, and what they cost."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from helpers import DISTILLATION_RECIPE, OFF, changed, make_learner, opinionated

from kdmarl_core.bundle.onnx_check import check_model
from kdmarl_core.distil.losses import Weights
from kdmarl_core.distil.messages import draw_delivery
from kdmarl_core.distil.recipe import Recipe
from kdmarl_core.distil.samples import Batch, Labels
from kdmarl_core.distil.student import StudentTeam
from kdmarl_core.export import student_model
from kdmarl_core.resources.count import count
from kdmarl_core.schema import from_mapping
from kdmarl_core.tasks import AgentSpec, Block, TaskSpec, make_task
from kdmarl_core.team import Robot, Team, load_team
from kdmarl_core.team_file import StudentSpec

SPEC = make_task("smax/3m").spec
MOVES = SPEC.units.moves
STEPS, EPISODES = 5, 6

# Sensors, widths and encodings differ; robot_2 encodes nothing.
SILENT = {
    "base": "smax_3m",
    "defaults": {"student": {"network": "gru", "width": 8, "encoding": 4}},
    "robots": {
        "robot_0": {"sensors": ["enemies", "own"], "student": {"width": 12, "encoding": 6}},
        "robot_1": {"sensors": ["allies", "enemies"], "student": {}},
        "robot_2": {"student": {"encoding": 0}},
    },
}
# Sensors lie at other places than their agents', and a robot has nothing but rows.
ROWS_ONLY = changed(SILENT, "robots.robot_1.sensors", ["enemies"])
HIDDEN = changed(SILENT, "robots.robot_0.random_features", [8, 10])
FEED_FORWARD = changed(SILENT, "defaults.student.network", "mlp")
TALKING = changed(SILENT, "defaults.messages", {"size": 2, "to": "all"})
RAW_ROWS = changed(TALKING, "robots.robot_1.student.raw_rows", True)
TEAMS = {
    "silent": SILENT,
    "rows only": ROWS_ONLY,
    "hidden": HIDDEN,
    "feed-forward": FEED_FORWARD,
    "talking": TALKING,
    "raw rows": RAW_ROWS,
}


@pytest.fixture(params=TEAMS)
def team(request, load):
    return load(TEAMS[request.param])


def make_students(team, seed=0):
    """Students whose every own weight is something; padding is zero."""
    torch.manual_seed(seed)
    students = opinionated(StudentTeam(team))
    with torch.no_grad():
        for parameter in students.parameters():
            parameter += 0.3 * torch.randn(parameter.shape) * (parameter != 0)
    return students


def sequences(students, seed=0):
    """Inputs of students, where episodes begin, and what becomes of messages."""
    generator = torch.Generator().manual_seed(seed)
    begins = torch.rand(STEPS, EPISODES, generator=generator) < 0.2
    begins[0] = True
    shape = (STEPS, EPISODES, SPEC.num_agents, SPEC.observation_size)
    observation = torch.randn(shape, generator=generator)
    visible = students.restriction.draw(STEPS * EPISODES, generator).view(shape)
    delivery = students.wiring and draw_delivery(students.wiring, begins, generator)
    return students.restriction.inputs(observation, visible), begins, delivery


def run(students, inputs, begins, delivery=None, state=None, mail=None):
    episodes = begins.shape[1]
    mask = torch.ones(*begins.shape, SPEC.num_agents, SPEC.num_actions, dtype=torch.bool)
    state = students.initial_state(episodes) if state is None else state
    mail = students.initial_mail(episodes) if mail is None else mail
    return students(inputs, mask, begins, state, delivery, mail)


def model_of(students, index):
    return student_model(
        students.layers(index),
        students.message_weights(index),
        students.impute_weights(index),
        students.encodings(index),
    )


# Team files and blocks


def test_a_team_that_encodes_nothing_has_the_record_that_it_had(load):
    record = load(changed(SILENT, "defaults.student.encoding", 0)).record()["robots"]
    assert "encoding" not in json.dumps([record["robot_1"], record["robot_2"]])
    robots = load(SILENT).record()["robots"]
    assert [robot["student"].get("encoding") for robot in robots.values()] == [6, 4, None]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (
            changed(SILENT, "robots.robot_2.student.raw_rows", True),
            ["robot_2: student", "raw_rows", "leave it out"],
        ),
        (
            changed(SILENT, "robots.robot_1.student.encoding", -1),
            ["robot_1: student", "encoding: -1", "at least 0"],
        ),
        (
            changed(HIDDEN, "robots.robot_0.student.impute", True),
            ["robot_0 encodes", "robot_0 imputes", "leave out 'encoding' or 'impute'"],
        ),
        (
            changed(HIDDEN, "robots.robot_0.student", {"encoding": 0, "impute": True}),
            ["robot_1 encodes", "robot_0 imputes", "leave out 'encoding' or 'impute'"],
        ),
        (
            SILENT | {"robots": {f"robot_{i}": {"sensors": ["own"]} for i in range(3)}},
            ["robot_0: student: encoding: 4", "smax/3m has allies, enemies", "leave it out"],
        ),
        (
            {
                "base": "simple_speaker_listener",
                "defaults": {"student": {"encoding": 4}},
                "robots": {"listener": {"sensors": ["velocity"]}},
            },
            ["speaker: student: encoding: 4", "simple_speaker_listener has landmarks"],
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(load, refusal, document, words):
    message = refusal(load, document)
    for word in words:
        assert word in message


@pytest.mark.parametrize("wrong", [{"rows": 0}, {"rows": 4}, {"rows": 3, "aims": ("go", "stay")}])
def test_rows_that_do_not_fill_a_block_are_refused(wrong):
    with pytest.raises(ValueError, match="block 'pots': 6 features"):
        Block("pots", 6, "1", **wrong)


def test_an_aim_that_is_no_action_is_refused():
    pots = Block("pots", 4, "1", rows=2, aims=("a", "c"))
    with pytest.raises(ValueError, match="agent 'cook': block 'pots': c is no action"):
        AgentSpec("cook", (pots,), ("a", "b"))


# As defined


def plain_logits(students, index, inputs):
    """Logits of a feed-forward robot [n, A] of its inputs [n, I], from its deployed weights."""
    first, second, head = students.layers(index)
    reads = students.encodings(index)
    encoded = reads.blocks if reads else []
    sums = inputs[:, reads.rest if reads else slice(None)] @ first.weight + first.bias
    encodings = []
    for block in encoded:
        rows = [inputs[:, row] @ block.encoder.weight + block.encoder.bias for row in block.rows]
        encodings.append(np.maximum(rows, 0))
        sums = sums + encodings[-1].max(0) @ block.pool
    hidden = np.maximum(np.maximum(sums, 0) @ second.weight + second.bias, 0)
    logits = hidden @ head.weight + head.bias
    for block, rows in zip(encoded, encodings, strict=True):
        if block.aim:
            aim = hidden @ block.aim.weight + block.aim.bias
            for action, row in zip(block.actions, rows, strict=True):
                logits[:, action] += (row * aim).sum(1)
    return logits


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["robots.robot_0.random_features=[8, 10]"],
        ["robots.robot_0.student.raw_rows=true"],
    ],
)
def test_logits_are_those_of_each_robot_by_itself(load, changes):
    students = make_students(load(FEED_FORWARD, *changes))
    inputs, begins, _ = sequences(students)
    logits = run(students, inputs, begins).logits.detach()
    flat = inputs.flatten(0, 1).numpy()
    for index, size in enumerate(students.restriction.sizes):
        expected = plain_logits(students, index, flat[:, index, :size])
        np.testing.assert_allclose(logits[:, :, index].flatten(0, 1), expected, atol=1e-4)


def test_which_blocks_are_encoded(load):
    """Rows lie where the robot's own input has them; attacks aim at enemies, one by one."""
    students = StudentTeam(load(SILENT))
    row = SPEC.units.seen
    rest, (enemies,) = students.encodings(0)
    assert rest.tolist() == list(range(3 * row, 3 * row + SPEC.units.own))
    assert enemies.rows.tolist() == np.arange(3 * row).reshape(3, row).tolist()
    assert [SPEC.agents[0].actions[i] for i in enemies.actions] == [
        f"attack_{i}" for i in range(3)
    ]
    rest, (allies, enemies) = students.encodings(1)
    assert rest.tolist() == []
    assert allies.rows.tolist() == np.arange(2 * row).reshape(2, row).tolist()
    assert (enemies.rows - 2 * row).tolist() == np.arange(3 * row).reshape(3, row).tolist()
    assert allies.aim is None
    assert students.encodings(2) is None


def test_a_row_ends_with_what_tells_which_of_its_features_are_visible(load):
    (enemies,) = StudentTeam(load(HIDDEN)).encodings(0).blocks
    row, sensed = SPEC.units.seen, 3 * SPEC.units.seen + SPEC.units.own
    one = np.arange(row)
    assert enemies.rows[1].tolist() == [*(row + one), *(sensed + row + one)]


def shuffled(inputs, start, order):
    """The same with the rows of a block in another order; all robots sense everything."""
    width = SPEC.units.seen
    moved = inputs.clone()
    rows = inputs[..., start : start + width * len(order)].unflatten(-1, (len(order), width))
    moved[..., start : start + width * len(order)] = rows[..., order, :].flatten(-2)
    return moved


def test_the_order_of_rows_says_only_whom_an_attack_hits(load):
    students = make_students(load_team("smax_3m", ["defaults.student.encoding=4"]))
    with torch.no_grad():
        students.head.weight[:, MOVES:] = students.head.bias[:, MOVES:] = 0.0  # habits of slots
    inputs, begins, _ = sequences(students)
    before = run(students, inputs, begins).logits
    others = run(students, shuffled(inputs, 0, [1, 0]), begins).logits
    torch.testing.assert_close(others, before)
    order = [2, 0, 1]
    after = run(students, shuffled(inputs, 2 * SPEC.units.seen, order), begins).logits
    torch.testing.assert_close(after[..., :MOVES], before[..., :MOVES])
    torch.testing.assert_close(after[..., MOVES:], before[..., MOVES:][..., order])
    assert (after[..., MOVES:] - before[..., MOVES:]).abs().max() > 0.1


def test_steps_one_by_one_give_what_they_give_together(team):
    students = make_students(team)
    inputs, begins, delivery = sequences(students)
    whole = run(students, inputs, begins, delivery).logits
    state = mail = None
    for t in range(STEPS):
        now = delivery and type(delivery)(*(field[t : t + 1] for field in delivery))
        output = run(students, inputs[t : t + 1], begins[t : t + 1], now, state, mail)
        state, mail = output.state, output.mail
        torch.testing.assert_close(output.logits[0], whole[t])


# Robots whose blocks list different numbers of things, and at most things of which one action aims


RAGGED = TaskSpec(
    name="test/ragged",
    agents=(
        AgentSpec("cook", (Block("pots", 6, "1", rows=3, aims=("a", "b", "a")),), ("a", "b", "c")),
        AgentSpec(
            "aide",
            (
                Block("pots", 4, "1", rows=2),
                Block("own", 1, "m"),
                Block("lid", 1, "m", aims=("z",)),
            ),
            ("a", "z"),
        ),
    ),
    episode_steps=10,
    ends_early=False,
    state_size=3,
    rate_hz=5.0,
)


def test_robots_that_see_fewer_things_pool_their_own_only():
    robots = tuple(
        Robot(a.name, a, a.blocks, a.actions[0], StudentSpec("mlp", 6, encoding=3))
        for a in RAGGED.agents
    )
    task = SimpleNamespace(spec=RAGGED)
    students = make_students(Team("ragged", Path("r.yaml"), task, "nobody", "distil", robots))
    with torch.no_grad():
        for block in students.encoding.blocks:
            block.encoder.bias += 1.0  # a row that is not there would count
    observation = torch.randn(1, 8, 2, 6)
    inputs = students.restriction.inputs(observation, None)
    mask = torch.from_numpy(RAGGED.action_exists).expand(1, 8, -1, -1)
    begins = torch.ones(1, 8, dtype=torch.bool)
    logits = students(inputs, mask, begins, students.initial_state(8)).logits.detach()
    for index, (size, actions) in enumerate([(6, 3), (6, 2)]):
        own = inputs[0, :, index, :size].numpy()
        expected = plain_logits(students, index, own)
        np.testing.assert_allclose(logits[0, :, index, :actions], expected, atol=1e-5)
        model = model_of(students, index)
        check_model(model, [("observation", size)], [("logits", actions)], "model.onnx")
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"observation": own})
        np.testing.assert_allclose(found, expected, atol=1e-5)


# Padding


def random_batch(students, seed):
    inputs, begins, delivery = sequences(students, seed)
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(STEPS, EPISODES, *shape, generator=generator)

    robots, actions = SPEC.num_agents, SPEC.num_actions
    recipe = from_mapping(Recipe, DISTILLATION_RECIPE, "recipe")
    labels = Labels(
        action_mask=torch.ones(STEPS, EPISODES, robots, actions, dtype=torch.bool),
        action=torch.zeros(STEPS, EPISODES, robots, dtype=torch.uint8),
        behaviour=torch.full((STEPS, EPISODES, robots), -0.5),
        begins=begins,
        advantage=noise(),
        teacher=torch.log_softmax(3 * noise(robots, actions), -1),
        cosines=torch.tanh(noise(robots * (robots - 1) // 2)),
        roles=noise(robots, recipe.roles),
    )
    mail = students.initial_mail(EPISODES)
    return Batch(inputs, students.initial_state(EPISODES), labels, delivery, mail)


def test_what_is_no_robots_own_never_learns(team):
    """Robots' own weights learn, most of them, and nothing else is anything but zero."""
    students = make_students(team)
    before = {name: p.detach().clone() for name, p in students.named_parameters()}
    true_sizes = 0
    for robot in team.robots:
        width, size = robot.student.width, robot.student.encoding
        for block in robot.encoded:
            hidden = 2 if robot.random_features else 1
            true_sizes += hidden * block.size // block.rows * size
            true_sizes += size * width * (2 if block.aims else 1)
    weights = [name for name in before if name.startswith("encoding.") and "weight" in name]
    assert sum(int((before[name] != 0).sum()) for name in weights) == true_sizes
    learner = make_learner(students, from_mapping(Recipe, DISTILLATION_RECIPE, "recipe"))
    for seed in range(6):
        learner.update(random_batch(students, seed), Weights(**OFF | {"kl": 1.0}), 1e-2)
    for name, after in students.named_parameters():
        if name.startswith(("encoding.", "aligner.")) and name.endswith("weight"):
            own, moved = before[name] != 0, after.detach() != before[name]
            assert not (moved & ~own).any(), name
            assert moved.sum() >= 0.6 * own.sum(), name
    for block in students.encoding.blocks:
        for layer in filter(None, (block.encoder, block.aim)):
            padded = torch.arange(max(layer.outputs)) >= torch.tensor(layer.outputs)[:, None]
            assert (layer.bias[padded] == 0).all()
            assert (layer.bias[~padded] != 0).any()


# As deployed


def test_the_model_is_what_was_trained(team):
    """ONNX Runtime gives the logits and messages of a first step, for every robot."""
    students = make_students(team)
    inputs, begins, delivery = sequences(students)
    begins[:] = True
    if delivery is not None:
        delivery = delivery._replace(
            arrives=torch.zeros_like(delivery.arrives),
            age=torch.full_like(delivery.age, int(students.wiring.hold.max()) + 1),
        )
    output = run(students, inputs, begins, delivery)
    for index, robot in enumerate(team.robots):
        model = model_of(students, index)
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        size = students.restriction.sizes[index]
        flat = inputs[:, :, index, :size].flatten(0, 1).numpy()
        feed = {"observation": flat}
        ports = [("observation", size)]
        if robot.peers:
            silence = np.zeros((len(flat), 6), np.float32)
            silence[:, [2, 5]] = 1.0  # nothing is held
            feed["messages"] = silence
            ports.append(("messages", 6))
        if students.recurrent:
            feed["state"] = np.zeros((len(flat), robot.student.width), np.float32)
            ports.append(("state", robot.student.width))
        logits, *more = session.run(None, feed)
        expected = output.logits[:, :, index].flatten(0, 1).detach()
        np.testing.assert_allclose(logits, expected, atol=2e-4, rtol=1e-4)
        gives = [("logits", SPEC.num_actions)]
        if robot.messages:
            told = output.message[:, :, index, :2].flatten(0, 1).detach()
            np.testing.assert_allclose(more[0], told, atol=1e-4)
            gives.append(("message", 2))
        if students.recurrent:
            gives.append(("next_state", robot.student.width))
        check_model(model, ports, gives, "model.onnx")


def test_what_it_costs_counted_by_hand():
    """Rows by one encoder, own features, pooled encodings, a GRU, logits, and the aim."""
    students = StudentTeam(load_team("smax_3m", ["defaults.student.encoding=16"]))
    row, own, width, encoding = 13, 10, 24, 16
    rows = 5 * row * encoding
    first = (own + 2 * encoding) * width
    gru = 6 * width * width
    aim = width * encoding + 3 * encoding
    cost = count(model_of(students, 0))
    assert cost.flops == 2 * (rows + first + gru + 8 * width + aim)
    weights = 2 * row * encoding + first + gru + 8 * width + width * encoding
    biases = 2 * encoding + width + 6 * width + 8 + encoding
    assert cost.parameters == weights + biases
