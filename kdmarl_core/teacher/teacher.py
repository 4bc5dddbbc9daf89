"""The teacher: one actor for all agents, one critic on the joint state, and their files.

Shapes: `N` agents, `D` features, `A` actions, `S` joint state, `W` width; `...` any leading axes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from kdmarl_core.errors import UserError, unknown
from kdmarl_core.files import atomic_folder, share_folder
from kdmarl_core.metrics import Evaluation
from kdmarl_core.nets.mlp import Mlp
from kdmarl_core.schema import check_at_least, from_mapping, read_json
from kdmarl_core.tasks import TaskSpec

CARD = "card.json"
WEIGHTS = "weights.safetensors"
MASKED = -1e9


@dataclass(frozen=True)
class Architecture:
    """Sizes of the teacher's networks."""

    width: int
    layers: int

    def __post_init__(self) -> None:
        check_at_least(1, self, "width", "layers")


class Teacher(nn.Module):
    """Actor pi_T with parameters shared by all agents, and critic V_T on the joint state.

    The actor sees everything: an agent's whole observation and, where all observations together do
    not tell the joint state, that as well. Agents that sense and act alike are not told apart: an
    index lets them settle for fixed roles, and measured worse in simple_spread. Others get a
    one-hot index behind their observation.
    """

    def __init__(self, spec: TaskSpec, architecture: Architecture) -> None:
        super().__init__()
        hidden = [architecture.width] * architecture.layers
        self._agent_index = torch.zeros(spec.num_agents, 0)
        if not spec.homogeneous:
            self._agent_index = torch.eye(spec.num_agents)
        privileged = spec.state_size if spec.partially_observable else 0
        inputs = spec.observation_size + privileged + self._agent_index.shape[1]
        self.actor = Mlp(inputs, hidden, spec.num_actions, head_gain=0.01)
        self.critic = Mlp(spec.state_size, hidden, 1, head_gain=1.0)
        self.spec = spec
        self.architecture = architecture

    def actor_inputs(self, observation: Tensor, state: Tensor) -> Tensor:
        """What the actor reads, of observation [..., N, D] and joint state [..., S]."""
        parts = [observation, self._agent_index.expand(*observation.shape[:-1], -1)]
        if self.spec.partially_observable:
            parts.insert(1, state[..., None, :].expand(*observation.shape[:-1], -1))
        return torch.cat(parts, -1)

    def logits(self, observation: Tensor, state: Tensor, action_mask: Tensor) -> Tensor:
        """Unnormalised log-probabilities [..., N, A], very negative where the mask is false."""
        inputs = self.actor_inputs(observation, state)
        return mask_logits(self.actor(inputs).float(), action_mask)

    def embed(self, observation: Tensor, state: Tensor) -> Tensor:
        """Last hidden embedding phi_T of each agent, [..., N, W]."""
        return self.actor.embed(self.actor_inputs(observation, state))

    def value(self, state: Tensor) -> Tensor:
        """V_T of the joint state [..., S], shape [...]; in the units of the training reward."""
        output: Tensor = self.critic(state).float().squeeze(-1)
        return output


def mask_logits(logits: Tensor, action_mask: Tensor) -> Tensor:
    """Logits so negative where the mask is false that the probability is exactly zero.

    Minus infinity would do the same and turn 0 x infinity in entropies and divergences into NaN.
    """
    return logits.masked_fill(~action_mask, MASKED)


@dataclass(frozen=True)
class TeacherCard:
    """What must be known of a teacher's weights; `card.json` beside them."""

    task: str
    architecture: Architecture
    reward_scale: float
    gamma: float
    gae_lambda: float
    observation_sizes: tuple[int, ...]
    num_actions: int
    state_size: int
    weights_sha256: str
    command: str
    env_steps: int
    seed: int
    training_seconds: float
    evaluation: Evaluation


def save_teacher(teacher: Teacher, card: TeacherCard, folder: Path, *, overwrite: bool) -> None:
    """Write weights (safetensors) and card (JSON) so that both appear at once."""
    content = save({name: tensor.contiguous() for name, tensor in teacher.state_dict().items()})
    card = dataclasses.replace(card, weights_sha256=hashlib.sha256(content).hexdigest())
    with atomic_folder(folder, CARD, overwrite=overwrite) as temporary:
        (temporary / WEIGHTS).write_bytes(content)
        (temporary / CARD).write_text(json.dumps(dataclasses.asdict(card), indent=2) + "\n")


def read_card(folder: Path) -> TeacherCard:
    """The card of the teacher in `folder`.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder / CARD
    return from_mapping(TeacherCard, read_json(path), str(path))


def load_teacher(folder: Path, spec: TaskSpec) -> tuple[Teacher, TeacherCard]:
    """The frozen teacher in `folder`, checked against the task that it is meant for.

    Raises:
        UserError: files missing, cut short or altered, or made for another task.
    """
    card = read_card(folder)
    if card.task != spec.name:
        raise UserError(
            f"{folder / CARD}: task is '{card.task}', the team's task is '{spec.name}'; "
            "give a teacher of the same task"
        )
    sizes = tuple(agent.observation_size for agent in spec.agents)
    found = (card.observation_sizes, card.num_actions, card.state_size)
    if found != (sizes, spec.num_actions, spec.state_size):
        raise UserError(
            f"{folder / CARD}: observation, action and state sizes {found} are not the task's "
            f"{(sizes, spec.num_actions, spec.state_size)}; train the teacher again"
        )
    path = folder / WEIGHTS
    tensors = read_tensors(path, card.weights_sha256)[0]
    teacher = Teacher(spec, card.architecture)
    load_into(teacher, tensors, path)
    return teacher.eval().requires_grad_(False), card


def read_tensors(
    path: Path, sha256: str | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        UserError: it is missing, cut short, or not the file that was hashed.
    """
    try:
        if sha256 is not None and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            raise UserError(f"{path}: SHA-256 is not the card's {sha256[:12]}...; copy it again")
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or cut short ({error}); copy it again") from None


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Fill a module from tensors of the same names and shapes.

    Raises:
        UserError: names or shapes differ.
    """
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: does not fit the network ({reason}); train again") from None


def find_teacher(name_or_path: str) -> Path:
    """A shipped teacher by its name, or any folder by its path.

    Raises:
        UserError: neither exists.
    """
    path = Path(name_or_path)
    if (path / CARD).is_file():
        return path
    shipped = share_folder() / "models"
    if not (shipped / name_or_path / CARD).is_file():
        raise unknown(
            "teacher", name_or_path, [card.parent.name for card in shipped.glob(f"*/{CARD}")]
        )
    return shipped / name_or_path
