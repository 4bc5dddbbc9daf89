"""Students that tell each other something, step after step, with a backward of their own.

torch's autograd gives the same (tested), but multiplies and adds up every layer's weight gradients
step by step. Here the way back through time only passes on what each step owes to the messages
before it; weight gradients are one product per layer.

Shapes: `T` steps, `B` episodes side by side, `N` robots, `W` widest student, `M` widest message,
`V` most values that a robot receives, `D` steps that messages are late at most.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdmarl_core.distil.messages import Mail, Routes
from kdmarl_core.distil.recurrence import GruParameters, GruSteps, behind
from kdmarl_core.distil.stacked import StackedGru, StackedLinear

_relu_backward = torch.ops.aten.threshold_backward.grad_input


class Unrolled(NamedTuple):
    """What all steps gave."""

    embedding: Tensor  # [N, W, T * B]; gradients pass through it
    message: Tensor  # [T, N, M, B], before it is rounded; gradients pass through it, too
    held: Tensor  # [T, N, V, B]
    mail: Mail  # after the last step


def unroll(
    sensed: Tensor,
    values: Tensor,
    core: StackedGru | StackedLinear,
    head: StackedLinear,
    begins: Tensor,
    state: Tensor,
    routes: Routes,
    levels: Tensor,
    mail: Mail,
) -> Unrolled:
    """Run through time.

    Args:
        sensed: what all but the values of messages adds to the first layer, [N, W, T * B].
        values: the first layer's weights of values received, [N, W, V].
        core: the second layer.
        head: of messages.
        begins: whether episodes begin with a step, [T, B].
        state: of recurrent students before the first step, [N, W, B].
        routes: what becomes of messages.
        levels: to which they are rounded, [T, N, B].
        mail: before the first step.
    """
    late = len(mail.recent) // head.weight.shape[0] // head.weight.shape[1]
    weights = (values, head.weight, head.bias, *core.stacked())
    embedding, message, held, sent = _Unroll.apply(  # type: ignore[no-untyped-call]
        sensed, begins, state, *routes, levels, *mail, *weights
    )
    recent = sent[len(sent) - late :].flatten(0, 1)
    return Unrolled(embedding, message, held, Mail(recent, held[-1].flatten(0, 1)))


class _Unroll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        sensed: Tensor,
        begins: Tensor,
        state: Tensor,
        arrives: Tensor,
        stays: Tensor,
        source: Tensor,
        levels: Tensor,
        recent: Tensor,
        held_before: Tensor,
        values: Tensor,
        head_weight: Tensor,
        head_bias: Tensor,
        *of_core: Tensor,
    ) -> tuple[Tensor, ...]:
        steps, robots, episodes = levels.shape
        told = head_weight.shape[1]
        block = robots * told
        late = len(recent) // block
        core = _dense_or_gru(of_core, begins, state)
        first = sensed.new_empty(steps, robots, values.shape[1], episodes)  # after ReLU
        message = sensed.new_empty(steps, robots, told, episodes)
        held = sensed.new_empty(steps, *held_before.shape)
        # All that is ever sent lies behind one another, oldest first; `rows` points into it.
        sent = sensed.new_empty(late + steps, block, episodes)
        sent[:late] = recent.view(late, block, episodes)
        rows = source + block * torch.arange(steps)[:, None, None]
        everything = sent.view(-1, episodes)
        kept = held_before
        for t, now in enumerate(torch.split(sensed, episodes, -1)):
            read = everything.gather(0, rows[t])
            kept = torch.addcmul(stays[t] * kept, arrives[t], read, out=held[t])
            by_robot = kept.view(robots, -1, episodes)
            torch.baddbmm(now, values, by_robot, out=first[t]).relu_()
            second = core.forward(t, first[t])
            torch.baddbmm(head_bias, head_weight, second, out=message[t]).tanh_()
            scale = levels[t, :, None]
            travelling = sent[late + t].view(robots, told, episodes)
            torch.mul(message[t], scale, out=travelling).round_().div_(scale)
        embedding = behind(core.states)
        ctx.core, ctx.late = core, late
        ctx.save_for_backward(
            values, head_weight, of_core[0], arrives, stays, rows, first, embedding, message, held
        )
        outputs = (
            message,
            held.view(steps, robots, -1, episodes),
            sent.view(late + steps, robots, told, episodes).flatten(1, 2),
        )
        ctx.mark_non_differentiable(*outputs[1:])
        ctx.set_materialize_grads(False)
        return embedding, *outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        values, head_weight, core_weight, arrives, stays, rows, *outputs = ctx.saved_tensors
        first, embedding, message, held = outputs
        core: _Dense | GruSteps = ctx.core
        steps, robots, _, episodes = first.shape
        of_embedding, of_message = gradients[:2]
        if of_embedding is None:
            of_embedding = torch.zeros_like(embedding)
        told = message.shape[2]
        to_first, to_message = torch.empty_like(first), torch.empty_like(message)
        to_sent = first.new_zeros(ctx.late + steps, robots * told, episodes)
        everything = to_sent.view(-1, episodes)
        slope = 1 - message.square()  # of tanh; rounding is passed through
        by_step = torch.split(of_embedding, episodes, -1)
        to_held: Tensor | None = None
        core.turn()
        for t in reversed(range(steps)):
            sent = to_sent[ctx.late + t].view(robots, told, episodes)
            if of_message is not None:
                sent = sent + of_message[t]
            torch.mul(sent, slope[t], out=to_message[t])
            # What this step's embedding owes: to the loss, and to the messages that it sent.
            owed = torch.baddbmm(by_step[t], head_weight.transpose(1, 2), to_message[t])
            owed = torch.bmm(core_weight.transpose(1, 2), core.backward(t, owed))
            _relu_backward(owed, first[t], 0, grad_input=to_first[t])
            owed = torch.bmm(values.transpose(1, 2), to_first[t]).flatten(0, 1)
            to_held = owed if to_held is None else owed.addcmul_(stays[t + 1], to_held)
            everything.scatter_add_(0, rows[t], arrives[t] * to_held)
        flat_first, flat_message = behind(to_first), behind(to_message)
        received = behind(held.view(steps, robots, -1, episodes))
        _, of_core = core.gradients(behind(first))
        return (
            *(flat_first, None, core.to_state, *[None] * 6),
            flat_first @ received.transpose(1, 2),
            flat_message @ embedding.transpose(1, 2),
            flat_message.sum(2, keepdim=True),
            *of_core,
        )


class _Dense:
    """A layer with ReLU, as `GruSteps`: what it gives is the state that nothing remembers."""

    def __init__(self, weight: Tensor, bias: Tensor, begins: Tensor) -> None:
        self._weight, self._bias = weight, bias
        shape = len(begins), *weight.shape[:2], begins.shape[1]
        self.states = weight.new_empty(shape)
        self.to_state: Tensor | None = None

    def forward(self, t: int, x: Tensor) -> Tensor:
        return torch.baddbmm(self._bias, self._weight, x, out=self.states[t]).relu_()

    def turn(self) -> None:
        self._by_step = torch.empty_like(self.states)

    def backward(self, t: int, gradient: Tensor) -> Tensor:
        owed: Tensor = _relu_backward(gradient, self.states[t], 0, grad_input=self._by_step[t])
        return owed

    def gradients(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        flat = behind(self._by_step)
        return flat, (flat @ x.transpose(1, 2), flat.sum(2, keepdim=True))


def _dense_or_gru(
    parameters: tuple[Tensor, ...], begins: Tensor, state: Tensor
) -> _Dense | GruSteps:
    if len(parameters) == len(GruParameters._fields):
        return GruSteps(GruParameters(*parameters), begins, state)
    weight, bias = parameters
    return _Dense(weight, bias, begins)
