"""What students put in the place of features that an episode hides from them.

Which features a robot is shown differs from episode to episode, and layers that read zeros in
the place of those that are hidden must have learned what to make of each choice. One that imputes
reads something in all places: what is visible, and else a linear map of what it holds of others'
messages, of their ages, and of what it remembers (recurrent imputation: BRITS, Cao et al. 2018).
The map is learned from the students' objective alone.

Shapes: `T` steps, `B` episodes side by side, `N` robots, `W` widest student, `I` widest student
input, `F` features of who senses most.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdmarl_core.distil.messages import Wiring
from kdmarl_core.distil.unroll import Gaps
from kdmarl_core.export import ImputeWeights
from kdmarl_core.team import Robot


class Imputation(nn.Module):
    """The maps of those robots that impute. They begin with zeros: as if nothing was imputed."""

    def __init__(
        self, robots: Sequence[Robot], sensed: Sequence[int], wiring: Wiring | None
    ) -> None:
        """For robots that sense so many features each."""
        super().__init__()
        self._sensed, self._wiring = sensed, wiring
        self._imputes = torch.tensor([robot.student.impute for robot in robots])[:, None, None]
        self._widths = [r.student.width if r.student.network == "gru" else 0 for r in robots]
        self._received = (max(wiring.values), max(wiring.peers)) if wiring else (0, 0)
        features, past = max(sensed), sum(self._received) + max(self._widths)
        self.weight = nn.Parameter(torch.zeros(len(robots), features, past))
        self.bias = nn.Parameter(torch.zeros(len(robots), features, 1))

    def gaps(self, hidden: Tensor, first_layer: Tensor, ages: Tensor) -> Gaps:
        """What is to be imputed in sequences.

        Args:
            hidden: one where a feature is hidden, [T, B, N, F].
            first_layer: weights of the first layer, [N, W, I], of which features come first.
            ages: of messages, as `Wiring.ages` gives them; [N, 0, T * B] where there are none.
        """
        missing = hidden.permute(2, 3, 0, 1).flatten(2) * self._imputes
        features = first_layer[:, :, : missing.shape[1]]
        return Gaps(features, self.weight, self.bias, missing, ages)

    def of_robot(self, robot: int) -> ImputeWeights | None:
        """One robot's map without padding; None if it imputes nothing."""
        if not self._imputes[robot]:
            return None
        features = self._sensed[robot]
        weight, bias = self.weight.detach()[robot, :features].T, self.bias.detach()[robot]
        values, ages, state = torch.split(weight, [*self._received, max(self._widths)])
        of_messages = self._wiring.in_order(robot, values, ages) if self._wiring else values
        of_state = state[: self._widths[robot]]
        return ImputeWeights(
            of_messages.numpy() if len(of_messages) else None,
            of_state.numpy() if len(of_state) else None,
            bias[:features, 0].numpy(),
        )
