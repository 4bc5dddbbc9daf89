"""What it is worth that units which were shot go on telling others what they hear.

    python benchmarks/fallen.py --team TEAM_FILE --bundles DIR

In a battle, a unit that has fallen senses nothing, but its student still runs and passes on what
others tell it. A destroyed robot would not. The same students play the same episodes as they are,
and with the fallen silent: those whom one action alone is left.
"""

from __future__ import annotations

import argparse
import sys

from common import add_students, load_students

from kdmarl_core.cli.common import run
from kdmarl_core.errors import UserError
from kdmarl_core.evaluate import BundlePlayer, play, scores
from kdmarl_core.metrics import Returns, mean_difference
from kdmarl_core.tasks import View


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_students(parser, "one of SMAX that tells each other something")
    return run(measure, parser.parse_args())


def measure(arguments: argparse.Namespace) -> None:
    """Print the wins with and without the fallen, and the difference."""
    team, policies = load_students(arguments)
    if not (team.talks and team.task.spec.can_be_won):
        raise UserError(f"{team.path}: nobody falls, or tells anything, there; give one of SMAX")
    env = team.task.make_reference()

    def score(player: type[BundlePlayer]) -> Returns:
        return scores(list(play(env, player(policies, team), arguments.episodes, arguments.seed)))

    told, silent = score(BundlePlayer), score(FallenSilent)
    change, low, high = (100 * part for part in mean_difference([silent], [told]))
    print(f"won {told.mean():.1%} as they are, {silent.mean():.1%} with the fallen silent")
    print(f"change {change:+.1f} points [{low:+.1f}, {high:+.1f}]")


class FallenSilent(BundlePlayer):
    """Students of whom only those tell something who have a choice of actions."""

    _choosing: tuple[bool, ...] = ()

    def act(self, view: View) -> list[int]:
        """Greedy actions."""
        self._choosing = tuple(mask.sum() > 1 for mask in view.action_masks)
        return super().act(view)

    def _told(self) -> dict[str, bytes]:
        robots = zip(self.manifests, self._choosing, strict=True)
        choosing = {manifest.robot for manifest, choosing in robots if choosing}
        return {robot: data for robot, data in super()._told().items() if robot in choosing}


if __name__ == "__main__":
    sys.exit(main())
