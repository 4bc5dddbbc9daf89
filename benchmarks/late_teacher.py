"""What a step's delay costs in simple_spread, however good students are.

    python benchmarks/late_teacher.py

The teacher plays with what the robots of `simple_spread_lh` could know at best if every message
came one step late and told everything. A robot that does not sense the landmarks stays in the
first step, in which it has heard nothing; then it knows them, since they do not move and it feels
its own way. Where the others are it knows as of the step before. Each handicap is measured alone,
then both.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import torch

from kdmarl_core.cli.common import run
from kdmarl_core.evaluate import RandomPlayer, TeamPlayer, play, returns
from kdmarl_core.metrics import Returns, normalised_retention, percent
from kdmarl_core.tasks import View, block_columns
from kdmarl_core.teacher.player import TeacherPlayer
from kdmarl_core.teacher.teacher import find_teacher, load_teacher
from kdmarl_core.team import load_team

TEAM = "simple_spread_lh"


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=1000, help="default 1000")
    parser.add_argument("--seed", type=int, default=0, help="of the episodes (default 0)")
    return run(measure, parser.parse_args())


def measure(arguments: argparse.Namespace) -> None:
    """Print one line for each handicap."""
    torch.set_num_threads(1)
    team = load_team(TEAM)
    task = team.task
    teacher, _ = load_teacher(find_teacher(team.teacher), task.spec)
    sensed = [{block.name for block in robot.sensors} for robot in team.robots]
    uninformed = [index for index, names in enumerate(sensed) if "landmarks" not in names]
    columns = block_columns(task.spec.agents[0].blocks)  # all sense alike
    env = task.make_reference()

    def score(player: TeamPlayer) -> Returns:
        return returns(list(play(env, player, arguments.episodes, arguments.seed)))

    best, random = score(TeacherPlayer(teacher, task.spec)), score(RandomPlayer())
    for name, late, blind in (
        ("others known a step late", True, False),
        ("nothing known in the first step", False, True),
        ("both", True, True),
    ):
        plays = TeacherPlayer(teacher, task.spec)
        player = LateTeacher(plays, columns, uninformed, late=late, blind=blind)
        found = score(player)
        kept = normalised_retention(found, best, random)
        print(f"{name}: return {found.mean():.2f}, retention {percent(kept) if kept else '-'}")


class LateTeacher:
    """The teacher, of whose robots some learn from others what they do not sense."""

    def __init__(
        self,
        teacher: TeacherPlayer,
        columns: dict[str, slice],
        uninformed: list[int],
        *,
        late: bool,
        blind: bool,
    ) -> None:
        """With one handicap or both.

        Args:
            teacher: who plays.
            columns: where blocks lie in an observation.
            uninformed: numbers of the robots that sense neither landmarks nor others.
            late: they know where others were a step ago.
            blind: they stay in the first step.
        """
        self._teacher, self._columns, self._uninformed = teacher, columns, uninformed
        self._late, self._blind = late, blind
        self._before: np.ndarray | None = None  # where all were a step ago, [N, 2]

    def reset(self, seed: int) -> None:
        """Begin an episode."""
        self._teacher.reset(seed)
        self._before = None

    def act(self, view: View) -> list[int]:
        """Greedy actions."""
        observations = [observation.copy() for observation in view.observations]
        here = np.stack([observation[self._columns["position"]] for observation in observations])
        before, self._before = self._before, here
        if self._late and before is not None:
            for robot in self._uninformed:
                others = np.delete(before, robot, 0) - here[robot]
                observations[robot][self._columns["others"]] = others.ravel()
        actions = self._teacher.act(view._replace(observations=tuple(observations)))
        if self._blind and before is None:
            for robot in self._uninformed:
                actions[robot] = 0  # stay
        return actions


if __name__ == "__main__":
    sys.exit(main())
