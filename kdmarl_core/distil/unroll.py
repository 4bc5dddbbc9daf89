"""Feed-forward students that tell each other something, step after step, with their own backward.

torch's autograd gives the same (tested), but multiplies and adds up every layer's weight gradients
step by step: an update takes 1.2 times as long, which is more than three silent ones. Here the way
back through time only passes on what each step owes to the messages before it; weight gradients
are one product per layer.

Shapes: `T` steps, `B` episodes side by side, `N` robots, `W` widest student, `M` widest message,
`V` most values that a robot receives, `D` steps that messages are late at most.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdmarl_core.distil.messages import Mail, Routes
from kdmarl_core.distil.stacked import StackedLinear


class Unrolled(NamedTuple):
    """What all steps gave."""

    embedding: Tensor  # [N, W, T * B]; gradients pass through it
    message: Tensor  # [T, N, M, B], before it is rounded; gradients pass through it, too
    held: Tensor  # [T, N, V, B]
    mail: Mail  # after the last step


def unroll(
    sensed: Tensor,
    values: Tensor,
    core: StackedLinear,
    head: StackedLinear,
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
        routes: what becomes of messages.
        levels: to which they are rounded, [T, N, B].
        mail: before the first step.
    """
    late = len(mail.recent) // head.weight.shape[0] // head.weight.shape[1]
    weights = (values, core.weight, core.bias, head.weight, head.bias)
    embedding, message, held, sent = _Unroll.apply(  # type: ignore[no-untyped-call]
        sensed, *weights, *routes, levels, *mail
    )
    recent = sent[len(sent) - late :].flatten(0, 1)
    return Unrolled(embedding, message, held, Mail(recent, held[-1].flatten(0, 1)))


class _Unroll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        sensed: Tensor,
        values: Tensor,
        core_weight: Tensor,
        core_bias: Tensor,
        head_weight: Tensor,
        head_bias: Tensor,
        arrives: Tensor,
        stays: Tensor,
        source: Tensor,
        levels: Tensor,
        recent: Tensor,
        held_before: Tensor,
    ) -> tuple[Tensor, ...]:
        steps, robots, episodes = levels.shape
        width, told = core_weight.shape[1], head_weight.shape[1]
        block = robots * told
        late = len(recent) // block
        first = sensed.new_empty(steps, robots, width, episodes)  # after ReLU
        second = torch.empty_like(first)
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
            torch.baddbmm(core_bias, core_weight, first[t], out=second[t]).relu_()
            torch.baddbmm(head_bias, head_weight, second[t], out=message[t]).tanh_()
            scale = levels[t, :, None]
            travelling = sent[late + t].view(robots, told, episodes)
            torch.mul(message[t], scale, out=travelling).round_().div_(scale)
        embedding = _behind(second)
        weights = (values, core_weight, head_weight)
        ctx.save_for_backward(
            *weights, arrives, stays, rows, first, second, embedding, message, held
        )
        ctx.late = late
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
        values, core_weight, head_weight, arrives, stays, rows, *outputs = ctx.saved_tensors
        first, second, embedding, message, held = outputs
        steps, robots, _, episodes = first.shape
        of_embedding, of_message = gradients[:2]
        if of_embedding is None:
            of_embedding = torch.zeros_like(embedding)
        told = message.shape[2]
        to_first, to_second = torch.empty_like(first), torch.empty_like(second)
        to_message = torch.empty_like(message)
        to_sent = first.new_zeros(ctx.late + steps, robots * told, episodes)
        everything = to_sent.view(-1, episodes)
        relu_backward = torch.ops.aten.threshold_backward.grad_input
        slope = 1 - message.square()  # of tanh; rounding is passed through
        by_step = torch.split(of_embedding, episodes, -1)
        to_held: Tensor | None = None
        for t in reversed(range(steps)):
            sent = to_sent[ctx.late + t].view(robots, told, episodes)
            if of_message is not None:
                sent = sent + of_message[t]
            torch.mul(sent, slope[t], out=to_message[t])
            # What this step's embedding owes: to the loss, and to the messages that it sent.
            owed = torch.baddbmm(by_step[t], head_weight.transpose(1, 2), to_message[t])
            relu_backward(owed, second[t], 0, grad_input=to_second[t])
            owed = torch.bmm(core_weight.transpose(1, 2), to_second[t])
            relu_backward(owed, first[t], 0, grad_input=to_first[t])
            owed = torch.bmm(values.transpose(1, 2), to_first[t]).flatten(0, 1)
            to_held = owed if to_held is None else owed.addcmul_(stays[t + 1], to_held)
            everything.scatter_add_(0, rows[t], arrives[t] * to_held)
        flat_first, flat_second = _behind(to_first), _behind(to_second)
        flat_message = _behind(to_message)
        received = _behind(held.view(steps, robots, -1, episodes))
        return (
            flat_first,
            flat_first @ received.transpose(1, 2),
            flat_second @ _behind(first).transpose(1, 2),
            flat_second.sum(2, keepdim=True),
            flat_message @ embedding.transpose(1, 2),
            flat_message.sum(2, keepdim=True),
            *[None] * 6,
        )


def _behind(by_step: Tensor) -> Tensor:
    """[T, N, any, B] as [N, any, T * B]."""
    return by_step.permute(1, 2, 0, 3).flatten(2)
