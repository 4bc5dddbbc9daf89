"""Students whose first layer reads what depends on the step before, with a backward of their own.

That is what they tell each other, and what they impute (`imputation.py`). torch's autograd gives
the same (tested), but multiplies and adds up every layer's weight gradients step by step. Here the
way back through time only passes on what each step owes to those before it; weight gradients are
one product per layer.

Shapes: `T` steps, `B` episodes side by side, `N` robots, `W` widest student, `M` widest message,
`V` most values that a robot receives, `D` steps that messages are late at most, `F` features of
who senses most, `P` most numbers that are imputed from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdmarl_core.distil.recurrence import GruParameters, GruSteps, behind
from kdmarl_core.distil.stacked import StackedGru, StackedLinear

_relu_backward = torch.ops.aten.threshold_backward.grad_input


class Talk(NamedTuple):
    """What robots tell each other."""

    values: Tensor  # the first layer's weights of values received, [N, W, V]
    head_weight: Tensor  # [N, M, W]
    head_bias: Tensor  # [N, M, 1]
    arrives: Tensor  # [T, N * V, B], as `Routes` has it
    stays: Tensor  # [T, N * V, B]
    source: Tensor  # [T, N * V, B]
    levels: Tensor  # to which messages are rounded, [T, N, B]
    recent: Tensor  # [D * N * M, B], before the first step, as `Mail` has it
    held: Tensor  # [N * V, B]


class Gaps(NamedTuple):
    """What is imputed, from what a robot holds of messages, their ages, and what it remembers."""

    features: Tensor  # the first layer's weights of its features, [N, W, F]
    weight: Tensor  # [N, F, P]; `P` are values, ages and state, in this order
    bias: Tensor  # [N, F, 1]
    hidden: Tensor  # one where a feature is to be imputed, else zero, [N, F, T * B]
    ages: Tensor  # of messages, [N, any, T * B]


class Unrolled(NamedTuple):
    """What all steps gave."""

    embedding: Tensor  # [N, W, T * B]; gradients pass through it
    message: Tensor  # [T, N, M, B], before it is rounded; gradients pass through it, too
    held: Tensor  # [T, N, V, B]
    recent: Tensor  # after the last step


def silence(robots: int, width: int, steps: int, episodes: int) -> Talk:
    """No values at all."""
    values, nothing = torch.zeros(robots, width, 0), torch.zeros(0, episodes)
    by_step = torch.zeros(steps, 0, episodes)
    routes = by_step, by_step, by_step.long()
    head = values.transpose(1, 2), torch.zeros(robots, 0, 1)
    return Talk(values, *head, *routes, by_step, nothing, nothing)


def no_gaps(robots: int, width: int, columns: int) -> Gaps:
    """Nothing is imputed, in so many steps times episodes."""
    nothing = torch.zeros(robots, 0, columns)
    features, weight = torch.zeros(robots, width, 0), torch.zeros(robots, 0, 0)
    return Gaps(features, weight, torch.zeros(robots, 0, 1), nothing, nothing)


def unroll(
    sensed: Tensor,
    core: StackedGru | StackedLinear,
    begins: Tensor,
    state: Tensor,
    talk: Talk,
    gaps: Gaps,
) -> Unrolled:
    """Run through time.

    Args:
        sensed: what all but values received and imputed adds to the first layer, [N, W, T * B].
        core: the second layer.
        begins: whether episodes begin with a step, [T, B].
        state: of recurrent students before the first step, [N, W, B]; [N, 0, B] of others.
        talk: between robots; or `silence`.
        gaps: in what they sense; or `no_gaps`.
    """
    embedding, message, held, sent = _Unroll.apply(  # type: ignore[no-untyped-call]
        sensed, begins, state, *talk, *gaps, *core.stacked()
    )
    recent = sent[len(begins) :].flatten(0, 1)
    return Unrolled(embedding, message, held, recent)


class _Unroll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, sensed: Tensor, begins: Tensor, state: Tensor, *others: Tensor
    ) -> tuple[Tensor, ...]:
        talk, gaps, of_core = _sorted(others)
        robots, (steps, episodes) = len(sensed), begins.shape
        told, received = talk.head_weight.shape[1], talk.values.shape[2]
        imputes, aged = gaps.weight.shape[1], received + gaps.ages.shape[1]
        block = robots * told
        late = len(talk.recent) // block if told else 0
        core = _dense_or_gru(of_core, begins, state)
        first = sensed.new_empty(steps, robots, sensed.shape[1], episodes)  # after ReLU
        message = sensed.new_empty(steps, robots, told, episodes)
        held = sensed.new_empty(steps, *talk.held.shape)
        past = sensed.new_empty(steps, robots, gaps.weight.shape[2], episodes)
        imputed = sensed.new_empty(steps, robots, imputes, episodes)
        if imputes:
            past[:, :, received:aged] = _by_step(gaps.ages, episodes)
        # All that is ever sent lies behind one another, oldest first; `rows` points into it.
        sent = sensed.new_empty(late + steps, block, episodes)
        sent[:late] = talk.recent.view(late, block, episodes)
        rows = talk.source + block * torch.arange(steps)[:, None, None]
        everything = sent.view(-1, episodes)
        kept, hidden = talk.held, torch.split(gaps.hidden, episodes, -1)
        for t, now in enumerate(torch.split(sensed, episodes, -1)):
            x, before = first[t].copy_(now), core.before(t)
            if received:
                read = everything.gather(0, rows[t])
                kept = torch.addcmul(talk.stays[t] * kept, talk.arrives[t], read, out=held[t])
                x.baddbmm_(talk.values, kept.view(robots, received, episodes))
            if imputes:
                past[t, :, :received] = kept.view(robots, received, episodes)
                past[t, :, aged:] = before
                guess = torch.baddbmm(gaps.bias, gaps.weight, past[t])
                x.baddbmm_(gaps.features, torch.mul(guess, hidden[t], out=imputed[t]))
            second = core.forward(t, x.relu_())
            if told:
                torch.baddbmm(talk.head_bias, talk.head_weight, second, out=message[t]).tanh_()
                scale = talk.levels[t, :, None]
                travelling = sent[late + t].view(robots, told, episodes)
                torch.mul(message[t], scale, out=travelling).round_().div_(scale)
        embedding = behind(core.states)
        ctx.core, ctx.late, ctx.aged, ctx.rows = core, late, aged, rows
        ctx.save_for_backward(*others, first, embedding, message, held, past, imputed)
        outputs = (
            message,
            held.view(steps, robots, received, episodes),
            sent.view(late + steps, robots, told, episodes).flatten(1, 2),
        )
        ctx.mark_non_differentiable(*outputs[1:])
        ctx.set_materialize_grads(False)
        return embedding, *outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        *others, first, embedding, message, held, past, imputed = ctx.saved_tensors
        talk, gaps, (core_weight, *_) = _sorted(others)
        core: _Dense | GruSteps = ctx.core
        steps, robots, _, episodes = first.shape
        of_embedding, of_message = gradients[:2]
        if of_embedding is None:
            of_embedding = torch.zeros_like(embedding)
        told, received, imputes = message.shape[2], talk.values.shape[2], imputed.shape[2]
        to_first, to_message = torch.empty_like(first), torch.empty_like(message)
        to_guess = torch.empty_like(imputed)
        to_sent = first.new_zeros(ctx.late + steps, robots * told, episodes)
        everything = to_sent.view(-1, episodes)
        slope = 1 - message.square()  # of tanh; rounding is passed through
        by_step, hidden = (torch.split(x, episodes, -1) for x in (of_embedding, gaps.hidden))
        to_held: Tensor | None = None
        core.turn()
        for t in reversed(range(steps)):
            # What this step's embedding owes: to the loss, and to the messages that it sent.
            owed = by_step[t]
            if told:
                sent = to_sent[ctx.late + t].view(robots, told, episodes)
                if of_message is not None:
                    sent = sent + of_message[t]
                torch.mul(sent, slope[t], out=to_message[t])
                owed = torch.baddbmm(owed, talk.head_weight.transpose(1, 2), to_message[t])
            owed = torch.bmm(core_weight.transpose(1, 2), core.backward(t, owed))
            _relu_backward(owed, first[t], 0, grad_input=to_first[t])
            if imputes:
                by_feature = torch.bmm(gaps.features.transpose(1, 2), to_first[t])
                torch.mul(by_feature, hidden[t], out=to_guess[t])
                by_past = torch.bmm(gaps.weight.transpose(1, 2), to_guess[t])
                core.owe(t, by_past[:, ctx.aged :])
            if received:
                owed = torch.bmm(talk.values.transpose(1, 2), to_first[t])
                if imputes:
                    owed += by_past[:, :received]
                owed = owed.flatten(0, 1)
                to_held = owed if to_held is None else owed.addcmul_(talk.stays[t + 1], to_held)
                everything.scatter_add_(0, ctx.rows[t], talk.arrives[t] * to_held)
        flat_first, flat_message, flat_guess = map(behind, (to_first, to_message, to_guess))
        values = behind(held.view(steps, robots, received, episodes))
        _, of_core = core.gradients(behind(first))
        return (
            *(flat_first, None, core.to_state),
            flat_first @ values.transpose(1, 2),
            flat_message @ embedding.transpose(1, 2),
            flat_message.sum(2, keepdim=True),
            *[None] * 6,
            flat_first @ behind(imputed).transpose(1, 2),
            flat_guess @ behind(past).transpose(1, 2),
            flat_guess.sum(2, keepdim=True),
            *(None, None),
            *of_core,
        )


class _Dense:
    """A layer with ReLU, as `GruSteps`: what it gives is the state that nothing remembers."""

    def __init__(self, weight: Tensor, bias: Tensor, begins: Tensor) -> None:
        self._weight, self._bias = weight, bias
        robots, width, _ = weight.shape
        self.states = weight.new_empty(len(begins), robots, width, begins.shape[1])
        self.to_state: Tensor | None = None

    def before(self, t: int) -> Tensor:
        return self.states[t, :, :0]

    def forward(self, t: int, x: Tensor) -> Tensor:
        return torch.baddbmm(self._bias, self._weight, x, out=self.states[t]).relu_()

    def turn(self) -> None:
        self._by_step = torch.empty_like(self.states)

    def backward(self, t: int, gradient: Tensor) -> Tensor:
        owed: Tensor = _relu_backward(gradient, self.states[t], 0, grad_input=self._by_step[t])
        return owed

    def owe(self, t: int, gradient: Tensor) -> None:
        pass

    def gradients(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        flat = behind(self._by_step)
        return flat, (flat @ x.transpose(1, 2), flat.sum(2, keepdim=True))


def _dense_or_gru(
    parameters: Sequence[Tensor], begins: Tensor, state: Tensor
) -> _Dense | GruSteps:
    if len(parameters) == len(GruParameters._fields):
        return GruSteps(GruParameters(*parameters), begins, state)
    weight, bias = parameters
    return _Dense(weight, bias, begins)


def _sorted(tensors: Sequence[Tensor]) -> tuple[Talk, Gaps, Sequence[Tensor]]:
    """What was given to `_Unroll` behind one another; the core's parameters last."""
    of_talk, of_gaps = len(Talk._fields), len(Gaps._fields)
    rest = tensors[of_talk:]
    return Talk(*tensors[:of_talk]), Gaps(*rest[:of_gaps]), rest[of_gaps:]


def _by_step(values: Tensor, episodes: int) -> Tensor:
    """[N, any, T * B] as [T, N, any, B]: what `behind` undoes."""
    return torch.unflatten(values, -1, (-1, episodes)).permute(2, 0, 1, 3)
