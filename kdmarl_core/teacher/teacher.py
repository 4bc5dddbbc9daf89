"""The teacher: one actor for all agents, one critic on the joint state, and their files.

Shapes: `T` steps, `E` environments, `N` agents, `D` features, `I` inputs, `A` actions, `S` joint
state, `W` width; `...` any leading axes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kdmarl_core.errors import UserError, unknown
from kdmarl_core.files import atomic_folder, share_folder
from kdmarl_core.metrics import Evaluation
from kdmarl_core.nets.gru import GruNet
from kdmarl_core.nets.mlp import Mlp
from kdmarl_core.nets.units import UnitsActor, UnitsCritic
from kdmarl_core.schema import from_mapping, read_json
from kdmarl_core.tasks import TaskSpec
from kdmarl_core.teacher.architecture import Architecture
from kdmarl_core.teacher.reads import FullReads, Reads, RestrictedReads
from kdmarl_core.team import SensedBlocks, Team

CARD = "card.json"
WEIGHTS = "weights.safetensors"
MASKED = -1e9


class Thoughts(NamedTuple):
    """What an actor makes of sequences, in the precision that was computed with."""

    embedding: Tensor  # phi_T, the last hidden layer, [T, E, N, W]
    logits: Tensor  # before masking, [T, E, N, A]
    past: Tensor  # of what comes next, as `no_past`


class TeacherCost(NamedTuple):
    """What one decision of one agent takes, to compare with students."""

    parameters: int
    flops: int  # 2 x multiply-accumulates
    bytes: int  # of the parameters


class Teacher(nn.Module):
    """Actor pi_T with parameters shared by all agents, and critic V_T on the joint state.

    Of a team, the actor reads what the robots sense and hear (`RestrictedReads`) and nothing else.
    Trained like that it shows what can be done under the team's restriction: its bound.
    """

    def __init__(
        self, spec: TaskSpec, architecture: Architecture, team: Team | None = None
    ) -> None:
        super().__init__()
        hidden = [architecture.width] * architecture.layers
        self.reads: Reads = FullReads(spec) if team is None else RestrictedReads(team)
        self.actor: Mlp | GruNet | UnitsActor
        self.critic: Mlp | UnitsCritic
        if architecture.network == "units":
            if spec.units is None or team is not None:
                raise UserError(
                    "architecture: network: 'units' is for teachers of battles, which read "
                    f"everything, not for {f'team {team.name!r}' if team else spec.name}; "
                    "use mlp or gru"
                )
            self.actor = UnitsActor(spec.units, hidden, head_gain=0.01)
            self.critic = UnitsCritic(spec.units, hidden)
        else:
            network = Mlp if architecture.network == "mlp" else GruNet
            self.actor = network(self.reads.size, hidden, spec.num_actions, head_gain=0.01)
            self.critic = Mlp(spec.state_size, hidden, 1, head_gain=1.0)
        self.spec = spec
        self.architecture = architecture
        self.team = team

    @property
    def recurrent(self) -> bool:
        """Whether the actor has a past."""
        return isinstance(self.actor, GruNet)

    def no_past(self, environments: int) -> Tensor:
        """The actor's state before anything was seen, [E, N, W]; empty without recurrence."""
        width = self.architecture.width if self.recurrent else 0
        return torch.zeros(environments, self.spec.num_agents, width)

    def through_time(self, inputs: Tensor, begins: Tensor, past: Tensor) -> Thoughts:
        """The actor's outputs in sequences.

        Args:
            inputs: [T, E, N, I], from `reads`.
            begins: [T, E], whether an episode begins with a step.
            past: as `no_past`, or what an earlier call gave.
        """
        if isinstance(self.actor, UnitsActor):
            # Step by step: all pairs of units of one step fit into the processor's cache.
            steps = [self.actor(step) for step in inputs]
            embeddings, logits = (torch.stack(of_steps) for of_steps in zip(*steps, strict=True))
            return Thoughts(embeddings, logits, past)
        if isinstance(self.actor, Mlp):
            embedding = self.actor.embed(inputs)
            return Thoughts(embedding, self.actor.head(embedding), past)
        agents = inputs.shape[2]
        begins_of_agents = begins.repeat_interleave(agents, 1)
        states = self.actor.embed(inputs.flatten(1, 2), begins_of_agents, past.flatten(0, 1))
        embedding = states.view(*inputs.shape[:3], -1)
        return Thoughts(embedding, self.actor.head(embedding), embedding[-1])

    def logits(self, observation: Tensor, state: Tensor, action_mask: Tensor) -> Tensor:
        """Unnormalised log-probabilities [..., N, A], very negative where the mask is false.

        Of first steps, whose observations are [..., N, D] and whose joint state is [..., S], for
        an actor that reads everything.
        """
        inputs = self.reads(observation, state, None)
        sequences = inputs.reshape(1, -1, *inputs.shape[-2:])
        begins = torch.ones(sequences.shape[:2], dtype=torch.bool)
        raw = self.through_time(sequences, begins, self.no_past(sequences.shape[1])).logits
        return mask_logits(raw.float().view(*inputs.shape[:-1], -1), action_mask)

    def cost(self) -> TeacherCost:
        """What the actor costs."""
        agents = self.spec.num_agents
        inputs, begins = torch.zeros(1, 1, agents, self.reads.size), torch.ones(1, 1).bool()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.through_time(inputs, begins, self.no_past(1))
        weights = list(self.actor.parameters())
        return TeacherCost(
            parameters=sum(weight.numel() for weight in weights),
            flops=counter.get_total_flops() // agents,
            bytes=sum(weight.nbytes for weight in weights),
        )

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
    restriction: dict[str, SensedBlocks] | None  # by agent; None: the actor reads everything
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
    fixture_sha256: str = ""  # `TaskSpec.fixture_sha256`: the opponent that it has met


def save_teacher(
    teacher: Teacher, card: TeacherCard, folder: Path, *, overwrite: bool
) -> TeacherCard:
    """Write weights (safetensors) and card (JSON) so that both appear at once.

    Returns the card with the weights' SHA-256.
    """
    content = save({name: tensor.contiguous() for name, tensor in teacher.state_dict().items()})
    card = dataclasses.replace(card, weights_sha256=hashlib.sha256(content).hexdigest())
    with atomic_folder(folder, CARD, overwrite=overwrite) as temporary:
        (temporary / WEIGHTS).write_bytes(content)
        (temporary / CARD).write_text(json.dumps(dataclasses.asdict(card), indent=2) + "\n")
    return card


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
        UserError: files missing, cut short or altered, or made for another task; or what is there
            cannot teach.
    """
    card = read_card(folder)
    if card.restriction is not None:
        raise UserError(
            f"{folder / CARD}: restriction: was trained on a team's restricted sensors: an "
            "assistant at best; give a teacher that was trained without --team"
        )
    _refuse_other_task(folder, card, spec)
    return _load(folder, card, Teacher(spec, card.architecture))


def load_bound(folder: Path, team: Team) -> tuple[Teacher, TeacherCard]:
    """The frozen policy in `folder`, trained under the restriction of `team`.

    It hears what the robots do, or nothing.

    Raises:
        UserError: files missing, cut short or altered, or made for another task or restriction.
    """
    card = read_card(folder)
    _refuse_other_task(folder, card, team.task.spec)
    for known in (team, team.silent()):
        if card.restriction == known.restriction():
            return _load(folder, card, Teacher(team.task.spec, card.architecture, known))
    raise UserError(
        f"{folder / CARD}: restriction: is not that of team '{team.name}'; train with "
        f"--team {team.name}"
    )


def _refuse_other_task(folder: Path, card: TeacherCard, spec: TaskSpec) -> None:
    if card.task != spec.name:
        raise UserError(
            f"{folder / CARD}: task is '{card.task}', not '{spec.name}'; "
            "give a teacher of the same task"
        )
    if card.fixture_sha256 != spec.fixture_sha256:
        raise UserError(
            f"{folder / CARD}: fixture_sha256: was trained against the opponent "
            f"'{card.fixture_sha256[:12]}', the task's is '{spec.fixture_sha256[:12]}'; train the "
            "teacher again"
        )


def _load(folder: Path, card: TeacherCard, teacher: Teacher) -> tuple[Teacher, TeacherCard]:
    spec = teacher.spec
    sizes = tuple(agent.observation_size for agent in spec.agents)
    found = (card.observation_sizes, card.num_actions, card.state_size)
    if found != (sizes, spec.num_actions, spec.state_size):
        raise UserError(
            f"{folder / CARD}: observation, action and state sizes {found} are not the task's "
            f"{(sizes, spec.num_actions, spec.state_size)}; train the teacher again"
        )
    path = folder / WEIGHTS
    load_into(teacher, read_tensors(path, card.weights_sha256)[0], path)
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
    within = sorted(str(card.parent) for card in path.glob(f"*/{CARD}"))
    if within:
        raise UserError(f"{path}: holds no {CARD}; give {' or '.join(within)}")
    shipped = share_folder() / "models"
    names = sorted(card.parent.name for card in shipped.glob(f"*/{CARD}"))
    if "/" in name_or_path:
        raise UserError(
            f"{path}: holds no {CARD}; give a folder that `kdmarl train` wrote, or the name of a "
            f"teacher that ships: {', '.join(names)}"
        )
    if name_or_path not in names:
        raise unknown("teacher", name_or_path, names)
    return shipped / name_or_path
