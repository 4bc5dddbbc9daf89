"""The GRUs of a team through time, with a backward of their own.

torch's autograd gives the same (tested), but keeps books about every small operation, and
multiplies and adds up weight gradients step by step. Here whatever needs no other step is computed
for all steps at once, which leaves five operations to a step, each way.

Shapes: `T` steps, `B` episodes side by side, `N` robots, `W` widest student.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

_SIDES = (slice(0, 3), slice(1, 4))  # the parts of inputs, and of states


class GruParameters(NamedTuple):
    """Of `StackedGru`: gates of inputs (new, reset, update), of states (reset, update, new)."""

    input_weight: Tensor  # [N, 3 W, W]
    input_bias: Tensor  # [N, 3 W, 1]
    state_weight: Tensor  # [N, 3 W, W]
    state_bias: Tensor  # [N, 3 W, 1]


class _Views(NamedTuple):
    """One step of what `GruSteps` keeps."""

    some_begin: bool
    goes_on: Tensor  # [B], one or zero
    before: Tensor  # [N, W, B]
    gates: Tensor  # [N, 3 W, B]: the next two behind one another, and `known`
    sigmoids: Tensor  # [N, 2 W, B]
    reset: Tensor  # [N, W, B], as all others
    update: Tensor
    known: Tensor  # what the state gives to the new one
    new: Tensor
    state: Tensor


class GruSteps:
    """One run through time: forward step by step, then backward step by step.

    A gate's sum is made of what the input and what the state gives. Only the new state needs both
    apart, so that there are four parts, which lie behind one another as (new of the input, reset,
    update, new of the state): the input gives the first three, the state the last three.
    """

    def __init__(self, parameters: GruParameters, begins: Tensor, state: Tensor) -> None:
        """The way forward.

        Args:
            parameters: of all robots.
            begins: [T, B]; the state is zero before a step that begins an episode.
            state: before the first step, [N, W, B].
        """
        robots, width, episodes = state.shape
        steps = len(begins)
        self._state, self._state_weight = state, parameters.state_weight
        # What inputs give to all parts, among which that of the state is a constant.
        room = (0, 0, 0, width)
        self._weight = torch.nn.functional.pad(parameters.input_weight, room)
        self._bias = torch.nn.functional.pad(parameters.input_bias, room)
        self._bias[:, width:] += parameters.state_bias
        self.states = state.new_empty(steps, robots, width, episodes)  # after each step
        self._before = torch.empty_like(self.states)
        self._new = torch.empty_like(self.states)
        # Of reset and update what their sigmoid gives, then the state's part of the new one.
        self._gates = state.new_empty(steps, robots, 3, width, episodes)
        reset, update, known = self._gates.unbind(2)
        views = (
            *((~begins).to(state.dtype), self._before, self._gates.flatten(2, 3)),
            *(self._gates[:, :, :2].flatten(2, 3), reset, update, known),
            *(self._new, self.states),
        )
        by_step = zip(begins.any(1).tolist(), *views, strict=True)
        self._steps = [_Views(*of_step) for of_step in by_step]

    def given(self, x: Tensor) -> Tensor:
        """What inputs [N, W, any] and biases give to all parts, [N, 4 W, any]."""
        return torch.baddbmm(self._bias, self._weight, x)

    def before(self, t: int) -> Tensor:
        """What a step begins with, [N, W, B]; comes first in every step."""
        step = self._steps[t]
        if step.some_begin:
            return torch.mul(self._state, step.goes_on, out=step.before)
        return step.before.copy_(self._state)

    def forward(self, t: int, x: Tensor) -> Tensor:
        """The state [N, W, B] after a step, of an input [N, W, B]."""
        return self.forward_given(t, self.given(x))

    def forward_given(self, t: int, given: Tensor) -> Tensor:
        """As `forward`, with a step of `given` [N, 4 W, B]."""
        step = self._steps[t]
        width = step.new.shape[1]
        of_input, of_state = torch.split(given, [width, 3 * width], 1)
        torch.baddbmm(of_state, self._state_weight, step.before, out=step.gates)
        step.sigmoids.sigmoid_()
        torch.addcmul(of_input, step.reset, step.known, out=step.new).tanh_()
        self._state = torch.lerp(step.new, step.before, step.update, out=step.state)
        return self._state

    def turn(self) -> None:
        """Begin the way back: how each part moves the state of its step."""
        reset, update, known = self._gates.unbind(2)
        steps, robots, width, episodes = self.states.shape
        self._parts = self._new.new_empty(steps, robots, 4, width, episodes)
        given, by_reset, by_update, by_known = self._parts.unbind(2)
        of_tanh, of_sigmoid = torch.ops.aten.tanh_backward, torch.ops.aten.sigmoid_backward
        of_tanh.grad_input(1 - update, self._new, grad_input=given)
        torch.mul(given, reset, out=by_known)
        through = given * known
        of_sigmoid.grad_input(through, reset, grad_input=by_reset)
        torch.sub(self._before, self._new, out=through)
        of_sigmoid.grad_input(through, update, grad_input=by_update)
        self._back = self._state_weight.transpose(1, 2)
        self.to_state = torch.zeros_like(self._state)  # what later steps owe to the state before
        of_input, of_state = (self._parts[:, :, some].flatten(2, 3) for some in _SIDES)
        by_step = zip(self._parts, of_input, of_state, strict=True)
        self._parts_by_step: list[tuple[Tensor, ...]] = list(by_step)

    def backward(self, t: int, gradient: Tensor) -> Tensor:
        """Gradients of the inputs' parts of a step, [N, 3 W, B].

        `gradient` [N, W, B] is what all but the steps behind it owe to the step's state.
        """
        parts, of_input, of_state = self._parts_by_step[t]
        step = self._steps[t]
        total = gradient + self.to_state
        parts.mul_(total[:, None])
        self.to_state = total.mul_(step.update).baddbmm_(self._back, of_state)
        if step.some_begin:
            self.to_state.mul_(step.goes_on)
        return of_input

    def owe(self, t: int, gradient: Tensor) -> None:
        """What else is owed to the state before a step, [N, W, B]; after its `backward`."""
        step = self._steps[t]
        self.to_state += gradient * step.goes_on if step.some_begin else gradient

    def gradients(self, x: Tensor) -> tuple[Tensor, GruParameters]:
        """Of the inputs' parts, [N, 3 W, T * B], and of parameters; `x` is [N, W, T * B]."""
        width = x.shape[1]
        flat = behind(self._parts.flatten(2, 3))
        of_input, of_state = flat[:, : 3 * width], flat[:, width:]
        bias = flat.sum(2, keepdim=True)
        return of_input, GruParameters(
            of_input @ x.transpose(1, 2),
            bias[:, : 3 * width],
            of_state @ behind(self._before).transpose(1, 2),
            bias[:, width:],
        )


class Recurrence(torch.autograd.Function):
    """GRUs that hear and impute nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, begins: Tensor, state: Tensor, *parameters: Tensor) -> Tensor:
        """States after each step, [N, W, T * B], of inputs [N, W, T * B]."""
        steps = ctx.steps = GruSteps(GruParameters(*parameters), begins, state)
        for t, now in enumerate(torch.split(steps.given(x), begins.shape[1], -1)):
            steps.before(t)
            steps.forward_given(t, now)
        ctx.save_for_backward(x, parameters[0])
        return behind(steps.states)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all but `begins`."""
        steps: GruSteps = ctx.steps
        x, input_weight = ctx.saved_tensors
        by_step = torch.split(gradients[0], steps.states.shape[-1], -1)
        steps.turn()
        for t in reversed(range(len(by_step))):
            steps.backward(t, by_step[t])
        of_input, of_parameters = steps.gradients(x)
        return input_weight.transpose(1, 2) @ of_input, None, steps.to_state, *of_parameters


def behind(by_step: Tensor) -> Tensor:
    """[T, N, any, B] as [N, any, T * B]."""
    return by_step.permute(1, 2, 0, 3).flatten(2)
