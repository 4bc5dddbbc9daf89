"""The expert buffer: what the teacher saw, did and would have preferred (Algorithm 1).

Holds per step the full observations and the teacher's `Labels`, in half precision where nothing
is lost by it. The joint state is used up in the advantage, and the teacher's embeddings in cosines
and role scores, which take a thirtieth to a fiftieth of their space.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from kdmarl_core.distil.coordination import fit_roles
from kdmarl_core.distil.samples import Labels, label
from kdmarl_core.errors import UserError
from kdmarl_core.files import atomic_file
from kdmarl_core.schema import from_mapping, parse_json
from kdmarl_core.seeding import derive_seed
from kdmarl_core.tasks import Task, TaskSpec
from kdmarl_core.teacher.acting import Acting
from kdmarl_core.teacher.rollout import Collector
from kdmarl_core.teacher.teacher import Teacher, TeacherCard, read_tensors

ENVS = 256
ROLE_SAMPLES = 6000  # teacher embeddings from which roles are fitted


@dataclass(frozen=True)
class Origin:
    """What a buffer was made from."""

    task: str
    teacher_sha256: str
    steps: int
    roles: int
    seed: int
    fixture_sha256: str = ""  # `TaskSpec.fixture_sha256`


class ExpertBuffer(NamedTuple):
    """Sequences of steps in which the teacher acted; each begins with an episode."""

    origin: Origin
    projection: Tensor  # U_T, [K, W]
    observation: Tensor  # [T, B, N, D] full observations; students cut out their own
    labels: Labels  # [T, B, ...]
    # [T, B, N, D], which features were shown to a teacher that some are hidden from at random: its
    # students must judge by the same. None of others, whose students can be shown anything.
    visible: Tensor | None = None


def plan_buffer(spec: TaskSpec, card: TeacherCard, steps: int, roles: int, seed: int) -> Origin:
    """What a buffer of at least `steps` environment steps is made from."""
    whole = spec.episode_steps * ENVS
    planned = math.ceil(steps / whole) * whole
    return Origin(spec.name, card.weights_sha256, planned, roles, seed, spec.fixture_sha256)


def fill_buffer(task: Task, teacher: Teacher, card: TeacherCard, origin: Origin) -> ExpertBuffer:
    """A buffer as planned: the teacher acts, drawn from its policy."""
    horizon, roles, seed = task.spec.episode_steps, origin.roles, origin.seed
    collector = Collector(task.spec, task.make_batch(ENVS), horizon, seed, anew=True)
    policy = Acting(teacher, contextlib.nullcontext)
    rollouts = origin.steps // (horizon * ENVS)
    observation, labels = _allocate(task.spec, horizon, rollouts * ENVS, roles)
    projection, shown = None, []
    for number in range(rollouts):
        policy.begin(derive_seed(seed, 2, number))
        rollout = collector.collect(policy, number)
        visible = policy.visible()
        if projection is None:
            projection = _fit_roles(teacher, policy.inputs(), rollout.begins, roles, seed)
        rows = slice(number * ENVS, (number + 1) * ENVS)
        observation[:, rows] = rollout.observation
        found = label(rollout, teacher, card, projection, visible)
        for kept, field in zip(labels, found, strict=True):
            kept[:, rows] = field
        if visible is not None:
            shown.append(visible.bool())
    assert projection is not None
    together = torch.cat(shown, 1) if shown else None
    return ExpertBuffer(origin, projection, observation, labels, together)


def bytes_per_step(spec: TaskSpec, roles: int) -> int:
    """Memory that one environment step takes, where nothing is hidden at random."""
    observation, labels = _allocate(spec, 1, 1, roles)
    return sum(field.numel() * field.element_size() for field in (observation, *labels))


def save_buffer(buffer: ExpertBuffer, path: Path) -> None:
    """Write a buffer (safetensors); the file appears complete or not at all."""
    tensors = buffer.labels._asdict() | {
        "projection": buffer.projection,
        "observation": buffer.observation,
    }
    if buffer.visible is not None:
        tensors["visible"] = buffer.visible
    origin = json.dumps(dataclasses.asdict(buffer.origin))
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, {"origin": origin})


def load_buffer(path: Path, spec: TaskSpec, card: TeacherCard, roles: int) -> ExpertBuffer:
    """Read a buffer.

    Raises:
        UserError: the file is missing or damaged, or was made in another task, by another teacher
            or for another number of roles.
    """
    tensors, metadata = read_tensors(path)
    if "origin" not in metadata:
        raise UserError(f"{path}: not an expert buffer; name another --buffer file")
    origin = from_mapping(Origin, parse_json(metadata["origin"], path), str(path))
    names = ("task", "opponent", "teacher", "roles")
    stated = (origin.task, origin.fixture_sha256[:12], origin.teacher_sha256[:12], origin.roles)
    expected = (card.task, spec.fixture_sha256[:12], card.weights_sha256[:12], roles)
    for name, is_, should in zip(names, stated, expected, strict=True):
        if is_ != should:
            raise UserError(
                f"{path}: {name}: the expert buffer was made with '{is_}', not with '{should}'; "
                "name another --buffer file, or remove this one"
            )
    observation, labels = _allocate(spec, 1, 1, roles)
    sequences = origin.steps // spec.episode_steps
    for name, example in {"observation": observation, **labels._asdict()}.items():
        shape = (spec.episode_steps, sequences, *example.shape[2:])
        held = tensors.get(name)
        if held is None or (held.shape, held.dtype) != (shape, example.dtype):
            found = "missing" if held is None else f"{held.dtype} {tuple(held.shape)}"
            raise UserError(
                f"{path}: {name}: {found}, not {example.dtype} {shape}; the file is damaged, "
                "remove it and it will be made again"
            )
    if "projection" not in tensors:
        raise UserError(f"{path}: projection: missing; remove the file, it will be made again")
    fields = {name: tensors[name] for name in Labels._fields}
    visible = tensors.get("visible")
    return ExpertBuffer(
        origin, tensors["projection"], tensors["observation"], Labels(**fields), visible
    )


def _allocate(spec: TaskSpec, steps: int, sequences: int, roles: int) -> tuple[Tensor, Labels]:
    agents, actions = spec.num_agents, spec.num_actions

    def empty(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        return torch.empty(steps, sequences, *shape, dtype=dtype)

    labels = Labels(
        action_mask=empty(agents, actions, dtype=torch.bool),
        action=empty(agents, dtype=torch.uint8),
        behaviour=empty(agents, dtype=torch.float32),
        begins=empty(dtype=torch.bool),
        advantage=empty(dtype=torch.float32),
        teacher=empty(agents, actions),
        cosines=empty(agents * (agents - 1) // 2),
        roles=empty(agents, roles),
    )
    return empty(agents, spec.observation_size), labels


def _fit_roles(teacher: Teacher, inputs: Tensor, begins: Tensor, roles: int, seed: int) -> Tensor:
    """U_T from the first embeddings of a rollout of inputs [T, B, N, I]."""
    _, episodes, agents, _ = inputs.shape
    steps = math.ceil(ROLE_SAMPLES / agents)
    rows = math.ceil(steps / episodes)
    with torch.no_grad():
        embedding = teacher.through_time(
            inputs[:rows], begins[:rows], teacher.no_past(episodes)
        ).embedding
    return fit_roles(embedding.flatten(0, 1)[:steps].flatten(0, 1), roles, derive_seed(seed, 1))
