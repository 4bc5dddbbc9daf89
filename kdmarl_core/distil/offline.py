"""Offline phase: minibatches from the expert buffer (Algorithm 1, lines 3-16)."""

from __future__ import annotations

import torch

from kdmarl_core.distil.expert_buffer import ExpertBuffer, unpacked
from kdmarl_core.distil.learner import Learner
from kdmarl_core.distil.losses import Terms
from kdmarl_core.distil.messages import draw_delivery
from kdmarl_core.distil.recipe import OfflinePhase, decay
from kdmarl_core.distil.samples import Batch, Labels
from kdmarl_core.seeding import derive_seed


def learn_offline(
    learner: Learner, buffer: ExpertBuffer, phase: OfflinePhase, update: int, seed: int
) -> Terms:
    """Update number `update` of the phase.

    What it draws depends on the seed and its number only, whatever ran before it.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, update))
    batch = _draw(learner, buffer, phase.minibatch, generator)
    return learner.update(batch, phase.weights, decay(phase.learning_rate, update, phase.updates))


def _draw(learner: Learner, buffer: ExpertBuffer, steps: int, generator: torch.Generator) -> Batch:
    """So many environment steps: whole sequences where the past matters, else single steps.

    Features that a restriction hides at random are those that were hidden from the teacher or, if
    it saw everything, drawn anew for every sequence or step.
    """
    students = learner.students
    horizon, sequences = buffer.labels.begins.shape
    whole = students.recurrent or students.wiring is not None
    count = max(1, steps // horizon) if whole else steps
    step = None if whole else torch.randint(horizon, (count,), generator=generator)
    index = torch.randint(sequences, (count,), generator=generator)

    def drawn(field: torch.Tensor) -> torch.Tensor:
        return field[:, index] if step is None else field[step, index][None]

    labels = Labels(*map(drawn, buffer.labels))
    observation = drawn(buffer.observation).float()
    if buffer.shown is None:
        visible = _visible(learner, labels.begins, generator)
    else:
        visible = unpacked(drawn(buffer.shown), observation.shape[-1])
    inputs = students.restriction.inputs(observation, visible)
    delivery = None
    if students.wiring:
        delivery = draw_delivery(students.wiring, labels.begins, generator)
    return Batch(
        inputs, students.initial_state(count), labels, delivery, students.initial_mail(count)
    )


def _visible(
    learner: Learner, begins: torch.Tensor, generator: torch.Generator
) -> torch.Tensor | None:
    """One draw per episode of the sequences, [T, B, N, D]."""
    restriction = learner.students.restriction
    if not restriction.random:
        return None
    drawn = [restriction.draw(begins.shape[1], generator)]
    for now in begins[1:]:
        fresh = restriction.draw(begins.shape[1], generator) if bool(now.any()) else drawn[-1]
        drawn.append(torch.where(now[:, None, None], fresh, drawn[-1]))
    return torch.stack(drawn)
