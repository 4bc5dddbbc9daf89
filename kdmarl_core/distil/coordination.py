"""What terms of the objective need beside the students: projections that are dropped at export.

Students may have different widths, so each one's embedding passes a linear head to a common width
before cosines between robots are taken (eq. 9), and a linear head U_S to K role scores (eq. 11).
The teacher's role projection U_T is fitted once and frozen: if it learned too, both sides could
meet by collapsing.

Where robots tell each other anything, a linear map reads from each one's message what it senses.

Shapes: `B` samples, `N` robots, `W` widest student, `C` common width, `K` roles, `M` widest
message, `I` widest student input; of robots that tell anything `S`, whose widest sensors have `F`
features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdmarl_core.distil.stacked import StackedLinear
from kdmarl_core.distil.student import StudentTeam

LLOYD_ITERATIONS = 50
TINY = 1e-12  # so that embeddings that are all alike can be drawn from, too


class CoordinationHeads(nn.Module):
    """Trained with the students, never deployed."""

    def __init__(self, students: StudentTeam, common_width: int, roles: int) -> None:
        """Heads for these students."""
        super().__init__()
        widths, wiring = students.widths, students.wiring
        robots = len(widths)
        self.common = StackedLinear(widths, [common_width] * robots, 1.0)
        self.roles = StackedLinear(widths, [roles] * robots, 1.0)
        told = wiring.sizes if wiring else []
        senders = [robot for robot, size in enumerate(told) if size]
        if senders:
            sensed = [students.restriction.sensed[robot] for robot in senders]
            self._senders = torch.tensor(senders)
            self._own = torch.arange(max(sensed)) < torch.tensor(sensed)[:, None]  # [S, F]
            self.reader = StackedLinear([told[robot] for robot in senders], sensed, 1.0)

    def structure(self, embedding: Tensor) -> Tensor:
        """phi_S [B, N, W] at the common width, [B, N, C]."""
        output: Tensor = self.common(embedding.permute(1, 2, 0))
        return output.permute(2, 0, 1)

    def scores(self, embedding: Tensor) -> Tensor:
        """U_S phi_S, [B, N, K]."""
        output: Tensor = self.roles(embedding.permute(1, 2, 0))
        return output.permute(2, 0, 1)

    def read(self, message: Tensor) -> Tensor:
        """What messages [B, N, M] say about what their senders sense, [B, S, F]."""
        output: Tensor = self.reader(message.permute(1, 2, 0).index_select(0, self._senders))
        return output.permute(2, 0, 1)

    def sensed_by_senders(self, inputs: Tensor) -> Tensor:
        """What senders sense, of student inputs [B, N, I], zero-padded to [B, S, F]."""
        # Laid out as `read` lays it out: what is compared then lies side by side.
        sensed = inputs[..., : self._own.shape[1]].permute(1, 2, 0).index_select(0, self._senders)
        return (sensed * self._own[..., None]).permute(2, 0, 1)


def role_scores(embedding: Tensor, roles: Tensor) -> Tensor:
    """U_T phi_T, [..., K], of embeddings [..., W] and what `fit_roles` gave."""
    return embedding @ roles[:, :-1].T + roles[:, -1]


def fit_roles(embedding: Tensor, roles: int, seed: int) -> Tensor:
    """U_T [K, W + 1], a bias in its last column: the best score is that of the nearest cluster.

    Clusters are k-means clusters of teacher embeddings [M, W] (Lloyd's iterations from samples far
    from one another: k-means++, Arthur and Vassilvitskii 2007). Of squared distances, what all
    roles share is left out: |phi - c|^2 becomes c phi - |c|^2 / 2, seen from the mean embedding.
    Scores are scaled so that those of an embedding differ by unit standard deviation, which gives
    the temperature the same meaning for every teacher.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(embedding), (1,), generator=generator))]
    while len(chosen) < roles:
        apart = torch.cdist(embedding, embedding[chosen]).amin(1).square().clamp(min=TINY)
        chosen.append(int(torch.multinomial(apart, 1, generator=generator)))
    centres = embedding[chosen].clone()
    for _ in range(LLOYD_ITERATIONS):
        nearest = torch.cdist(embedding, centres).argmin(1)
        for role in range(roles):
            members = embedding[nearest == role]
            if len(members):
                centres[role] = members.mean(0)
    mean = embedding.mean(0)
    directions = centres - mean
    bias = -directions @ mean - directions.square().sum(1) / 2
    fitted = torch.cat([directions, bias[:, None]], 1)
    scores = role_scores(embedding, fitted)
    return fitted / (scores - scores.mean(1, keepdim=True)).std().clamp(min=TINY)
