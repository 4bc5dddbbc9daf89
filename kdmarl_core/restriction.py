"""A team's sensors for batches: what `sensors.py` does for one robot and one step, in torch.

Shapes: `N` robots, `D` features of the widest full observation, `I` of the widest student input;
`...` any leading axes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdmarl_core.tasks import live_columns, select_columns
from kdmarl_core.team import Team


class Restriction(nn.Module):
    """Cuts every robot's input out of full observations."""

    def __init__(self, team: Team) -> None:
        super().__init__()
        size = team.task.spec.observation_size
        robots = team.robots
        kept = [
            torch.from_numpy(select_columns(robot.agent.blocks, robot.sensors)) for robot in robots
        ]
        self.random = any(robot.random_features is not None for robot in robots)
        # Columns 0 to D-1 are the observation's, D to 2D-1 tell which are visible, and the last
        # one is a zero: what padding reads.
        columns = [
            own if robot.random_features is None else torch.cat([own, own + size])
            for own, robot in zip(kept, robots, strict=True)
        ]
        self.sensed = [len(own) for own in kept]  # features of each robot, which come first
        self.sizes = [len(own) for own in columns]  # of each robot's input
        gather = torch.full((len(robots), max(self.sizes)), 2 * size if self.random else size)
        for row, own in zip(gather, columns, strict=True):
            row[: len(own)] = own
        drawable = torch.zeros(len(robots), size, dtype=torch.bool)
        always = torch.zeros(len(robots), size)
        bounds = torch.zeros(len(robots), 2, dtype=torch.long)
        # Of each robot's own features: where its input tells whether they are visible, and which
        # of them can be hidden.
        flags = torch.zeros(len(robots), max(self.sensed), dtype=torch.long)
        hideable = torch.zeros(flags.shape)
        for index, (own, robot) in enumerate(zip(kept, robots, strict=True)):
            if robot.random_features is None:
                always[index, own] = 1.0
            else:
                live = torch.from_numpy(live_columns(robot.sensors))
                drawable[index, own[live]] = True
                flags[index, : len(own)] = torch.arange(len(own), 2 * len(own))
                hideable[index, live] = 1.0
                bounds[index] = torch.tensor(robot.random_features)
        self.register_buffer("gather", gather)
        self.register_buffer("always", always)
        self.register_buffer("drawable", drawable)
        self.register_buffer("bounds", bounds)
        # Not parts of a checkpoint, which may be older: they follow from the team.
        self.register_buffer("flags", flags, persistent=False)
        self.register_buffer("hideable", hideable, persistent=False)

    def draw(self, episodes: int, generator: torch.Generator) -> Tensor:
        """Which features so many episodes show, [episodes, N, D], one or zero each.

        The distribution is that of `sensors.draw_visible`.
        """
        always: Tensor = self.always  # type: ignore[assignment]
        if not self.random:
            return always.expand(episodes, -1, -1)
        drawable: Tensor = self.drawable  # type: ignore[assignment]
        low, high = self.bounds.unbind(-1)  # type: ignore[operator]
        shape = (episodes, *drawable.shape)
        share = torch.rand(shape[:2], generator=generator)
        number = low + (share * (high + 1 - low)).long()
        order = torch.rand(shape, generator=generator).masked_fill_(~drawable, 2.0)
        first = order.topk(min(int(high.max()), shape[-1]), largest=False).indices
        taken = torch.arange(first.shape[-1]) < number[..., None]
        drawn = torch.zeros(shape, dtype=torch.bool).scatter_(-1, first, taken) & drawable
        return drawn.to(always.dtype) + always

    def inputs(self, observation: Tensor, visible: Tensor | None) -> Tensor:
        """Student inputs [..., N, I], zero-padded, from full observations [..., N, D].

        `visible` [..., N, D] comes from `draw`; None where nothing is drawn at random.
        """
        if self.random:
            assert visible is not None
            everything = torch.cat([observation * visible, visible], -1)
        else:
            everything = observation
        padded = nn.functional.pad(everything, (0, 1))
        gather: Tensor = self.gather  # type: ignore[assignment]
        return padded.gather(-1, gather.expand(*observation.shape[:-2], -1, -1))

    def hidden(self, inputs: Tensor) -> Tensor:
        """One where a feature could be seen and is hidden, else zero, [..., N, F].

        Of student inputs [..., N, I], as `inputs` gives them; `F` features of who senses most.
        """
        flags: Tensor = self.flags  # type: ignore[assignment]
        visible = inputs.gather(-1, flags.expand(*inputs.shape[:-2], -1, -1))
        hidden: Tensor = self.hideable * (1 - visible)  # type: ignore[operator]
        return hidden
