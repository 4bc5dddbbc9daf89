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
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from kdmarl_core.distil.coordination import fit_roles
from kdmarl_core.distil.losses import REVISIONS
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
_PLACES = torch.arange(8, dtype=torch.uint8)  # of bits in a byte


@dataclass(frozen=True)
class Origin:
    """What a buffer was made from."""

    task: str
    teacher_sha256: str
    steps: int
    roles: int
    seed: int
    fixture_sha256: str = ""  # `TaskSpec.fixture_sha256`
    role_revision: int = 1  # of `REVISIONS`


class ExpertBuffer(NamedTuple):
    """Sequences of steps in which the teacher acted; each begins with an episode."""

    origin: Origin
    projection: Tensor  # U_T, [K, W + 1]
    observation: Tensor  # [T, B, N, D] full observations; students cut out their own
    labels: Labels  # [T, B, ...]
    # [T, B, N, D / 8], bits: which features were shown to a teacher that some are hidden from at
    # random. Its students must judge by the same; None of others, whose can be shown anything.
    shown: Tensor | None = None


def plan_buffer(spec: TaskSpec, card: TeacherCard, steps: int, roles: int, seed: int) -> Origin:
    """What a buffer of at least `steps` environment steps is made from.

    Raises:
        UserError: it would take more than half of this machine's memory.
    """
    whole = spec.episode_steps * spec.envs(ENVS)
    planned = math.ceil(steps / whole) * whole
    each, most = bytes_per_step(spec, card, roles), _machine_bytes() // 2
    if planned * each > most:
        raise UserError(
            f"offline.buffer_steps: {steps} steps of {spec.name} take {planned * each / 1e9:,.1f} "
            "GB, more than half of this machine's memory; give at most "
            f"{most // each // whole * whole}"
        )
    return Origin(
        spec.name,
        card.weights_sha256,
        planned,
        roles,
        seed,
        spec.fixture_sha256,
        REVISIONS["role"],
    )


def fill_buffer(
    task: Task,
    teacher: Teacher,
    card: TeacherCard,
    origin: Origin,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> ExpertBuffer:
    """A buffer as planned: the teacher acts, drawn from its policy; `report` counts rollouts."""
    horizon, roles, seed = task.spec.episode_steps, origin.roles, origin.seed
    envs = task.spec.envs(ENVS)
    collector = Collector(task.spec, task.make_batch(envs), horizon, seed, anew=True)
    policy = Acting(teacher, contextlib.nullcontext)
    rollouts = origin.steps // (horizon * envs)
    observation, labels, shown = _allocate(task.spec, card, horizon, rollouts * envs, roles)
    projection = None
    for number in range(rollouts):
        policy.begin(derive_seed(seed, 2, number))
        rollout = collector.collect(policy, number)
        visible = policy.visible()
        if projection is None:
            projection = _fit_roles(teacher, policy.inputs(), rollout.begins, roles, seed)
        rows = slice(number * envs, (number + 1) * envs)
        _refuse_large(rollout.observation, task.spec.name)
        observation[:, rows] = rollout.observation
        found = label(rollout, teacher, card, projection, visible)
        for kept, field in zip(labels, found, strict=True):
            kept[:, rows] = field
        if shown is not None:
            assert visible is not None
            shown[:, rows] = packed(visible)
        report(number + 1, rollouts)
    assert projection is not None
    return ExpertBuffer(origin, projection, observation, labels, shown)


def _refuse_large(observation: Tensor, task: str) -> None:
    largest, most = float(observation.abs().max()), torch.finfo(torch.float16).max
    if largest > most:
        raise UserError(
            f"{task}: observations as large as {largest:.3g} do not fit into the expert buffer's "
            f"half precision; scale them below {most:.0f}"
        )


def bytes_per_step(spec: TaskSpec, card: TeacherCard, roles: int) -> int:
    """Memory that one environment step of this teacher takes."""
    observation, labels, shown = _allocate(spec, card, 1, 1, roles)
    fields = (observation, *labels) if shown is None else (observation, *labels, shown)
    return sum(field.nbytes for field in fields)


def packed(visible: Tensor) -> Tensor:
    """Zeros and ones [..., D] as bits, [..., D / 8], the first one lowest."""
    bits = torch.nn.functional.pad(visible.to(torch.uint8), (0, -visible.shape[-1] % 8))
    by_byte = bits.view(*visible.shape[:-1], -1, 8)
    return (by_byte << _PLACES).sum(-1, dtype=torch.uint8)


def unpacked(bits: Tensor, features: int) -> Tensor:
    """What `packed` was given, [..., D]."""
    return ((bits[..., None] >> _PLACES) & 1).flatten(-2)[..., :features].float()


def save_buffer(buffer: ExpertBuffer, path: Path) -> None:
    """Write a buffer (safetensors); the file appears complete or not at all.

    Raises:
        UserError: the folder cannot be written, or has no room for it.
    """
    tensors = buffer.labels._asdict() | {
        "projection": buffer.projection,
        "observation": buffer.observation,
    }
    if buffer.shown is not None:
        tensors["shown"] = buffer.shown
    origin = json.dumps(dataclasses.asdict(buffer.origin))
    with atomic_file(path) as temporary:
        try:
            save_file(tensors, temporary, {"origin": origin})
        except SafetensorError as error:  # of the disk, with the system's reason in it
            raise OSError(str(error)) from None


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
    for name, is_, should in (
        ("task", origin.task, card.task),
        ("opponent", origin.fixture_sha256[:12], spec.fixture_sha256[:12]),
        ("teacher", origin.teacher_sha256[:12], card.weights_sha256[:12]),
        ("roles", origin.roles, roles),
        ("role_revision", origin.role_revision, REVISIONS["role"]),
    ):
        if is_ != should:
            raise UserError(
                f"{path}: {name}: the expert buffer was made with '{is_}', not with '{should}'; "
                "name another --buffer file, or remove this one"
            )
    observation, labels, shown = _allocate(spec, card, 1, 1, roles)
    sequences = origin.steps // spec.episode_steps
    examples = {"observation": observation, **labels._asdict()}
    if shown is not None:
        examples["shown"] = shown
    for name, example in examples.items():
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
    return ExpertBuffer(
        origin,
        tensors["projection"],
        tensors["observation"],
        Labels(**fields),
        None if shown is None else tensors["shown"],
    )


def _machine_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _allocate(
    spec: TaskSpec, card: TeacherCard, steps: int, sequences: int, roles: int
) -> tuple[Tensor, Labels, Tensor | None]:
    """Room for observations, labels and, where the teacher is shown features at random, those."""
    agents, actions = spec.num_agents, spec.num_actions

    def empty(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        return torch.empty(steps, sequences, *shape, dtype=dtype)

    labels = Labels(
        action_mask=empty(agents, actions, dtype=torch.bool),
        action=empty(agents, dtype=torch.uint8 if actions <= 256 else torch.int32),
        behaviour=empty(agents, dtype=torch.float32),
        begins=empty(dtype=torch.bool),
        advantage=empty(dtype=torch.float32),
        teacher=empty(agents, actions),
        cosines=empty(agents * (agents - 1) // 2),
        roles=empty(agents, roles),
    )
    sensed = (card.restriction or {}).values()
    shown = None
    if any(agent.random_features for agent in sensed):
        shown = empty(agents, math.ceil(spec.observation_size / 8), dtype=torch.uint8)
    return empty(agents, spec.observation_size), labels, shown


def _fit_roles(teacher: Teacher, inputs: Tensor, begins: Tensor, roles: int, seed: int) -> Tensor:
    """U_T from some embeddings of a rollout of inputs [T, B, N, I], whose steps differ."""
    with torch.no_grad():
        past = teacher.no_past(inputs.shape[1])
        embedding = teacher.through_time(inputs, begins, past).embedding.flatten(0, 2)
    generator = torch.Generator().manual_seed(derive_seed(seed, 2))
    some = torch.randperm(len(embedding), generator=generator)[:ROLE_SAMPLES]
    return fit_roles(embedding[some], roles, derive_seed(seed, 1))
