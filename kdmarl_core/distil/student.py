"""A team of students, computed as one: every layer is a batched product over robots.

Shapes: `T` steps, `B` episodes side by side, `N` robots, `I` widest student input, `W` widest
student, `A` actions, `M` widest message; of messages received `V` values and `P` ages.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdmarl_core.distil.encoding import Encoding
from kdmarl_core.distil.imputation import Imputation
from kdmarl_core.distil.messages import Delivery, Mail, Wiring
from kdmarl_core.distil.stacked import StackedGru, StackedLinear, stacked_weight
from kdmarl_core.distil.unroll import Talk, Unrolled, no_gaps, silence, unroll
from kdmarl_core.export import (
    SILENT,
    Encodings,
    GruWeights,
    ImputeWeights,
    Layer,
    MessageWeights,
)
from kdmarl_core.restriction import Restriction
from kdmarl_core.teacher.teacher import mask_logits
from kdmarl_core.team import Team


class StudentOutput(NamedTuple):
    """What students give for sequences."""

    logits: Tensor  # [T, B, N, A], of all actions
    log_probs: Tensor  # [T, B, N, A], of legal actions; very negative for others
    embedding: Tensor  # phi_S, [T, B, N, W]
    state: Tensor  # [N, W, B] after the last step; empty for feed-forward students
    mail: Mail | None = None  # after the last step, where robots tell each other anything
    message: Tensor | None = None  # [T, B, N, M], before it is rounded
    held: Tensor | None = None  # [T, B, N, V], values received


class StudentTeam(nn.Module):
    """Decentralised actors, one per robot, each on its own blocks.

    Each is: aligner g_i (linear, o_S,i -> W_i), hidden layer with ReLU, then a second one or a
    GRU, and a linear head. The aligner only helps training: two linear maps in a row are one, so
    export folds it into the first hidden layer.

    Where robots tell each other anything, what a robot receives enters its first hidden layer
    beside its own features, and a bounded linear head gives what it sends. Then steps follow one
    another, since a message depends on those before; gradients follow them back to the senders.
    So they do where robots impute, from their memory and from messages, what an episode hides.

    Where robots encode what blocks list, the aligner reads the other blocks only, unless these
    rows are to be read as they are, too.
    """

    def __init__(self, team: Team) -> None:
        super().__init__()
        widths = [robot.student.width for robot in team.robots]
        actions = [len(robot.agent.actions) for robot in team.robots]
        self.restriction = Restriction(team)
        self.widths = widths
        self.encoding = Encoding(team.robots, self.restriction.sizes)
        self.aligner = StackedLinear(self.encoding.rest_sizes, widths, 1.0)
        self.hidden = StackedLinear(widths, widths, math.sqrt(2))
        self.recurrent = team.robots[0].student.network == "gru"
        self.core: StackedGru | StackedLinear = (
            StackedGru(widths) if self.recurrent else StackedLinear(widths, widths, math.sqrt(2))
        )
        self.head = StackedLinear(widths, actions, 0.01)
        self.wiring: Wiring | None = None
        if any(robot.messages for robot in team.robots):
            wiring = self.wiring = Wiring(team)
            self.message_head = StackedLinear(widths, wiring.sizes, 1.0)
            self.message_values = nn.Parameter(stacked_weight(wiring.values, widths, 1.0))
            self.message_ages = nn.Parameter(
                torch.zeros(len(widths), max(widths), max(wiring.peers))
            )
        self.imputation: Imputation | None = None
        if any(robot.student.impute for robot in team.robots):
            self.imputation = Imputation(team.robots, self.restriction.sensed, self.wiring)

    def initial_state(self, episodes: int) -> Tensor:
        """The recurrent state before anything was seen, [N, W, B]; empty without recurrence."""
        width = max(self.widths) if self.recurrent else 0
        return torch.zeros(len(self.widths), width, episodes)

    def initial_mail(self, episodes: int) -> Mail | None:
        """What is on its way before anything was sent; None where nobody sends."""
        return self.wiring.empty(episodes) if self.wiring else None

    def forward(
        self,
        inputs: Tensor,
        action_mask: Tensor,
        begins: Tensor,
        state: Tensor,
        delivery: Delivery | None = None,
        mail: Mail | None = None,
    ) -> StudentOutput:
        """Logits and embeddings of sequences.

        Args:
            inputs: [T, B, N, I], from `restriction`.
            action_mask: [T, B, N, A].
            begins: [T, B], whether an episode begins with a step.
            state: as `initial_state` or an earlier output's.
            delivery: what becomes of messages, where there are some.
            mail: as `initial_mail` or an earlier output's.
        """
        (steps, episodes), robots = begins.shape, len(self.widths)
        features = inputs.permute(2, 3, 0, 1).flatten(2)
        encodings = self.encoding(features)
        x = self.hidden(self.aligner(self.encoding.rest(features)))
        x = self.encoding.add_pooled(x, encodings)
        if self.wiring or self.imputation:
            unrolled = self._step_by_step(x, inputs, begins, state, delivery, mail)
            x = unrolled.embedding
            state = x[..., -episodes:] if self.recurrent else state
        elif isinstance(self.core, StackedGru):
            x, state = self.core(torch.relu(x), begins, state)
        else:
            x = torch.relu(self.core(torch.relu(x)))
        logits = self.encoding.add_scores(self.head(x), encodings, x)
        legal = action_mask.permute(2, 3, 0, 1).flatten(2)
        log_probs = torch.log_softmax(mask_logits(logits, legal), 1)

        def by_step(values: Tensor) -> Tensor:
            return values.view(robots, -1, steps, episodes).permute(2, 3, 0, 1)

        output = StudentOutput(by_step(logits), by_step(log_probs), by_step(x), state)
        if not self.wiring:
            return output
        return output._replace(
            mail=Mail(unrolled.recent, unrolled.held[-1].flatten(0, 1)),
            message=unrolled.message.permute(0, 3, 1, 2),
            held=unrolled.held.permute(0, 3, 1, 2),
        )

    def _step_by_step(
        self,
        sensed: Tensor,
        inputs: Tensor,
        begins: Tensor,
        state: Tensor,
        delivery: Delivery | None,
        mail: Mail | None,
    ) -> Unrolled:
        """What messages and imputation need: only what depends on them is computed in there.

        `sensed` is what sensors add to the first hidden layer, [N, W, T * B]; the others are as in
        `forward`.
        """
        wiring, imputation = self.wiring, self.imputation
        robots, width, columns = sensed.shape
        talk, ages = silence(robots, width, *begins.shape), sensed.new_zeros(robots, 0, columns)
        if wiring:
            assert delivery is not None
            assert mail is not None
            ages = wiring.ages(delivery)
            sensed = torch.baddbmm(sensed, self.message_ages, ages)
            head = self.message_head.stacked()
            routes = wiring.routes(delivery)
            talk = Talk(self.message_values, *head, *routes, delivery.levels, *mail)
        gaps = no_gaps(robots, width, columns)
        if imputation:
            hidden = self.restriction.hidden(inputs)
            gaps = imputation.gaps(hidden, self.hidden.weight @ self.aligner.weight, ages)
        return unroll(sensed, self.core, begins, state, talk, gaps)

    def layers(self, robot: int) -> list[Layer | GruWeights]:
        """The deployed network of one robot: without padding, the aligner folded in."""
        aligner, hidden = self.aligner.of_robot(robot), self.hidden.of_robot(robot)
        folded = Layer(aligner.weight @ hidden.weight, aligner.bias @ hidden.weight + hidden.bias)
        core, head = self.core.of_robot(robot), self.head.of_robot(robot)
        return [folded.single(), core.single(), head.single()]

    def message_weights(self, robot: int) -> MessageWeights:
        """The deployed weights of what one robot reads and tells, in an `Inbox`'s order."""
        wiring = self.wiring
        if wiring is None:
            return SILENT
        of_values, of_ages = (
            weight[robot, : self.widths[robot]].T
            for weight in (self.message_values, self.message_ages)
        )
        read = wiring.in_order(robot, of_values, of_ages).detach().numpy()
        told = self.message_head.of_robot(robot).single() if wiring.sizes[robot] else None
        return MessageWeights(read if len(read) else None, told)

    def encodings(self, robot: int) -> Encodings | None:
        """The deployed weights with which one robot encodes blocks; None if it does not."""
        return self.encoding.of_robot(robot)

    def impute_weights(self, robot: int) -> ImputeWeights | None:
        """The deployed weights with which one robot imputes; None if it does not."""
        return self.imputation.of_robot(robot) if self.imputation else None
