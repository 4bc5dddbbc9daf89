"""Small things to test with: documents, teams, teachers and bundles that cost nothing to make."""

import dataclasses
import itertools
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import yaml

from kdmarl_core.bundle import (
    MODEL,
    SCHEMA_VERSION,
    BlockEntry,
    Manifest,
    ModelEntry,
    StudentEntry,
    TeacherEntry,
)
from kdmarl_core.distil.coordination import CoordinationHeads
from kdmarl_core.distil.learner import Learner
from kdmarl_core.distil.stacked import StackedGru
from kdmarl_core.distil.student import StudentTeam
from kdmarl_core.distil.unroll import Unrolled
from kdmarl_core.export import GruWeights, Layer, MessageWeights, student_model
from kdmarl_core.metrics import Evaluation
from kdmarl_core.tasks import AgentSpec, Block, TaskSpec, make_task, select_blocks
from kdmarl_core.teacher.architecture import Architecture
from kdmarl_core.teacher.teacher import Teacher, TeacherCard, save_teacher
from kdmarl_core.team import Robot, Team
from kdmarl_core.team_file import StudentSpec

TASK = "mpe/simple_spread"
TRAINING = "0000002a"  # of all bundles that are made here

TRAINING_RECIPE = {
    "task": TASK,
    "architecture": {"network": "mlp", "width": 16, "layers": 2},
    "env_steps": 1600,
    "num_envs": 16,
    "rollout_steps": 25,
    "epochs": 2,
    "minibatches": 2,
    "learning_rate": 3.0e-3,
    "final_learning_rate": 0.0,
    "clip": 0.2,
    "entropy": 0.01,
    "final_entropy": 0.0,
    "gamma": 0.95,
    "gae_lambda": 0.95,
    "reward_scale": 0.2,
    "max_grad_norm": 0.5,
    "precision": "float32",
}

# All terms of the students' objective, switched off.
OFF = {
    "ppo": 0.0,
    "kl": 0.0,
    "cross_entropy": 0.0,
    "soft_cross_entropy": 0.0,
    "structure": 0.0,
    "role": 0.0,
    "entropy": 0.0,
    "grounding": 0.0,
}
_WEIGHTS = OFF | {"ppo": 0.1, "kl": 1.0, "cross_entropy": 0.1}
DISTILLATION_RECIPE = {
    "temperature": 1.0,
    "clip": 0.2,
    "max_grad_norm": 1.0,
    "common_width": 8,
    "roles": 3,
    "offline": {
        "buffer_steps": 6400,
        "updates": 60,
        "minibatch": 256,
        "learning_rate": 1.0e-2,
        "weights": _WEIGHTS,
    },
    "on_policy": {
        "iterations": 3,
        "num_envs": 32,
        "rollout_steps": 25,
        "epochs": 1,
        "minibatches": 2,
        "learning_rate": 1.0e-3,
        "weights": _WEIGHTS,
    },
}

TEAM_FILE = {
    "task": TASK,
    "teacher": "mpe_simple_spread",
    "robots": {
        f"robot_{i}": {
            "agent": f"agent_{i}",
            "sensors": ["velocity", "position", "landmarks", "others"],
            "safe_action": "stay",
            "student": {"network": "mlp", "width": 8},
        }
        for i in range(3)
    },
}
# Everything different: sizes, delays, formats, losses, widths; one only listens, one only talks.
TALKING_TEAM = {
    "base": "simple_spread_lh",
    "defaults": {"student": {"network": "mlp"}},
    "robots": {
        "robot_0": {
            "student": {"width": 12},
            "messages": {
                "size": 3,
                "to": ["robot_1", "robot_2"],
                "format": "int4",
                "hold_steps": 4,
                "training": {
                    "loss": [0.2, 0.6],
                    "delay_steps": [1, 3],
                    "formats": ["int4", "int8"],
                },
            },
        },
        "robot_1": {
            "student": {"width": 8},
            "messages": {"size": 2, "to": ["robot_2"], "format": "float32", "delay_steps": 2},
        },
        "robot_2": {"student": {"width": 16}},
    },
}


def changed(document, path, value=None):
    """A copy of nested mappings with the entry at dotted `path` set, or removed if None."""
    key, _, rest = path.partition(".")
    copy = dict(document)
    if rest:
        copy[key] = changed(copy[key], rest, value)
    elif value is None:
        del copy[key]
    else:
        copy[key] = value
    return copy


def renamed(document, path, new):
    """A copy of nested mappings in which the last key of dotted `path` is called `new`."""
    key, _, rest = path.partition(".")
    if rest:
        return {k: renamed(v, rest, new) if k == key else v for k, v in document.items()}
    return {new if k == key else k: v for k, v in document.items()}


def name_of_case(value):
    """How a change of a document, `(function, path, value)`, is called in pytest's output."""
    if isinstance(value, tuple):
        return " ".join([value[0].__name__, *map(str, value[1:])])
    return str(value) if isinstance(value, dict) else None


def write_yaml(path: Path, document) -> Path:
    """Write a YAML file; returns its path."""
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


# Robots that differ in everything: sensors, widths, number of actions.
MAP = Block("map", 5, "m", idle=(1,))
MIXED_TASK = TaskSpec(
    name="test/mixed",
    agents=(
        AgentSpec("scout", (Block("own", 2, "m"), MAP), ("stay", "go")),
        AgentSpec("guard", (Block("own", 2, "m"), Block("door", 1, "1")), ("stay", "go", "shut")),
        AgentSpec("cook", (Block("own", 2, "m"), Block("pots", 3, "1"), MAP), ("stay",)),
    ),
    episode_steps=10,
    ends_early=False,
    state_size=21,
    rate_hz=5.0,
)


def mixed_team(network="mlp", random_features=(None, None, None)) -> Team:
    """A team on `MIXED_TASK`, of widths 16, 32 and 16; each lacks something it could sense.

    Of `random_features`, a robot has its own bounds, or None.
    """
    sensors_and_widths = [(["map"], 16), (["own", "door"], 32), (["map", "own"], 16)]
    robots = [
        Robot(
            f"robot_{agent.name}",
            agent,
            select_blocks(agent.blocks, sensors, agent.name),
            agent.actions[0],
            StudentSpec(network, width),
            bounds,
        )
        for agent, (sensors, width), bounds in zip(
            MIXED_TASK.agents, sensors_and_widths, random_features, strict=True
        )
    ]
    return Team(
        name="mixed",
        path=Path("mixed.yaml"),
        task=SimpleNamespace(spec=MIXED_TASK),
        teacher="nobody",
        recipe="distil",
        robots=tuple(robots),
    )


def opinionated(module, seed: int = 0):
    """Fill a teacher or students with weights of clear opinions; returns the module."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head = module.head if isinstance(module, StudentTeam) else module.actor.head
        # A student's padding must stay zero: only scale.
        head.weight *= 100
        for name, bias in module.named_parameters():
            if name.endswith("bias") and not isinstance(module, StudentTeam):
                bias += 0.1 * torch.randn(bias.shape, generator=generator)
    return module


def make_teacher(spec: TaskSpec, width: int = 16, seed: int = 0) -> tuple[Teacher, TeacherCard]:
    """An untrained teacher that nevertheless knows what it wants, and its card."""
    torch.manual_seed(seed)
    architecture = Architecture("mlp", width, 2)
    teacher = opinionated(Teacher(spec, architecture), seed)
    card = TeacherCard(
        task=spec.name,
        architecture=architecture,
        restriction=None,
        reward_scale=0.2,
        gamma=0.95,
        gae_lambda=0.95,
        observation_sizes=tuple(agent.observation_size for agent in spec.agents),
        num_actions=spec.num_actions,
        state_size=spec.state_size,
        weights_sha256="",
        command="kdmarl train",
        env_steps=0,
        seed=seed,
        training_seconds=0.0,
        evaluation=Evaluation(0.0, 0.0, 1, seed, None),
        fixture_sha256=spec.fixture_sha256,
    )
    return teacher.eval().requires_grad_(False), card


def write_teacher(folder: Path, width: int = 16, seed: int = 0) -> Path:
    """A folder that holds an untrained teacher of simple_spread."""
    teacher, card = make_teacher(make_task(TASK).spec, width, seed)
    save_teacher(teacher, card, folder, overwrite=False)
    return folder


def dense_layers(sizes, seed: int = 0, scale: float = 1.0):
    """Random weights [in, out] and biases [out] of a feed-forward net."""
    rng = np.random.default_rng(seed)
    return [
        Layer(
            (scale * rng.standard_normal((a, b))).astype(np.float32),
            (scale * rng.standard_normal(b)).astype(np.float32),
        )
        for a, b in itertools.pairwise(sizes)
    ]


def make_manifest(blocks=(("position", 2), ("landmarks", 6)), **changes) -> Manifest:
    """A manifest as export makes it."""
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        kdmarl_version="0",
        team="simple_spread",
        robot="robot_0",
        task=TASK,
        agent="agent_0",
        rate_hz=10.0,
        blocks=tuple(BlockEntry(name, size, "m") for name, size in blocks),
        actions=("stay", "left", "right", "down", "up"),
        safe_action="stay",
        legal_actions_vary=False,
        student=StudentEntry("mlp", 8, 0, 0, 0),
        teacher=TeacherEntry("nobody", "0" * 64),
        measured=None,
        model=ModelEntry(MODEL, "", 0),
        training=TRAINING,
    )
    return dataclasses.replace(manifest, **changes)


def gru_layers(features: int, width: int, actions: int, seed: int = 0):
    """Random weights of a hidden layer, a GRU and a head."""
    rng = np.random.default_rng(seed)
    first, head = dense_layers([features, width], seed), dense_layers([width, actions], seed)
    shapes = [(width, 3 * width), (3 * width,)] * 2
    gru = GruWeights(*(rng.standard_normal(shape).astype(np.float32) for shape in shapes))
    return [*first, gru, *head]


def make_model(manifest: Manifest, seed: int = 0, scale: float = 1.0) -> bytes:
    """An ONNX model of random weights that fits a manifest."""
    features, actions = manifest.observation_size, len(manifest.actions)
    if manifest.student.state_size:
        layers = gru_layers(features, manifest.student.state_size, actions, seed)
    else:
        layers = dense_layers([features, 8, actions], seed, scale)
    return student_model(layers, message_weights(manifest, layers[0].bias.size, seed))


def message_weights(manifest: Manifest, width: int, seed: int = 0) -> MessageWeights:
    """Random weights of what a student of one width reads of its peers, and tells them."""
    rng = np.random.default_rng(seed + 1)
    read = rng.standard_normal((manifest.messages_size, width)).astype(np.float32)
    told = dense_layers([width, manifest.message.size], seed + 2)[0] if manifest.message else None
    return MessageWeights(read if manifest.peers else None, told)


def make_learner(students, recipe):
    """A learner for students."""
    heads = CoordinationHeads(students, recipe.common_width, recipe.roles)
    return Learner(students, heads, recipe)


def _gru_step(core, x, state):
    """One step of GRUs, left to autograd."""
    new, reset, update = (core.input_weight @ x + core.input_bias).chunk(3, 1)
    by_state = (core.state_weight @ state + core.state_bias).chunk(3, 1)
    reset, update = torch.sigmoid(reset + by_state[0]), torch.sigmoid(update + by_state[1])
    new = torch.tanh(new + reset * by_state[2])
    return new + update * (state - new)


def unrolled_plainly(sensed, core, begins, state, talk, gaps):
    """What `kdmarl_core.distil.unroll` does, left to autograd."""
    robots, episodes = len(sensed), begins.shape[1]
    embeddings, messages, holdings = [], [], []
    recent, held = talk.recent, talk.held
    ages, hidden = (torch.split(field, episodes, -1) for field in (gaps.ages, gaps.hidden))
    for t, now in enumerate(torch.split(sensed, episodes, -1)):
        held = talk.stays[t] * held + talk.arrives[t] * recent.gather(0, talk.source[t])
        by_robot = held.view(robots, talk.values.shape[2], episodes)
        before = state * ~begins[t]
        x = now + talk.values @ by_robot
        if gaps.hidden.shape[1]:
            past = torch.cat([by_robot, ages[t], before], 1)
            x = x + gaps.features @ (hidden[t] * (gaps.bias + gaps.weight @ past))
        x = torch.relu(x)
        if isinstance(core, StackedGru):
            x = state = _gru_step(core, x, before)
        else:
            x = torch.relu(core(x))
        message = torch.tanh(talk.head_bias + talk.head_weight @ x)
        travelling = message
        if talk.levels.numel():
            travelling = (message * talk.levels[t, :, None]).round() / talk.levels[t, :, None]
        newest = (message + (travelling - message).detach()).flatten(0, 1)
        recent = torch.cat([recent[len(newest) :], newest])
        embeddings.append(x)
        messages.append(message)
        holdings.append(by_robot)
    stacked = torch.stack(messages), torch.stack(holdings)
    return Unrolled(torch.cat(embeddings, -1), *stacked, recent)


def interrupting(function, at):
    """The function, but Ctrl-C is pressed during its call of that number."""
    calls = []

    def wrapped(*arguments):
        calls.append(arguments)
        if len(calls) == at:
            signal.raise_signal(signal.SIGINT)
        return function(*arguments)

    return wrapped
