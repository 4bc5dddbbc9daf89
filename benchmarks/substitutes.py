"""Which robots lose what a team of students loses: the teacher plays some of them.

    python benchmarks/substitutes.py --team TEAM --bundles DIR

The same seeded episodes are played by the students as they are, then with the teacher in the place
of each robot in turn, and of all who sense alike: percent of the teacher's wins or return, random
actions being 0. A student whose place is taken goes on sensing, and telling others what it would;
only its actions are the teacher's, who sees everything.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection

from common import add_students, load_students

from kdmarl_core.cli.common import run
from kdmarl_core.evaluate import BundlePlayer, RandomPlayer, TeamPlayer, play, scores
from kdmarl_core.metrics import Returns, normalised_retention, percent
from kdmarl_core.tasks import View
from kdmarl_core.teacher.player import TeacherPlayer
from kdmarl_core.teacher.teacher import find_teacher, load_teacher
from kdmarl_core.team import Team


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_students(parser, "a team that ships, or a YAML file")
    return run(measure, parser.parse_args())


def measure(arguments: argparse.Namespace) -> None:
    """Print one line for the students, and one for each substitution."""
    team, policies = load_students(arguments)
    env, spec = team.task.make_reference(), team.task.spec
    teacher = TeacherPlayer(load_teacher(find_teacher(team.teacher), spec)[0], spec)

    def score(player: TeamPlayer) -> Returns:
        return scores(list(play(env, player, arguments.episodes, arguments.seed)))

    best, random = score(teacher), score(RandomPlayer())

    def show(name: str, player: TeamPlayer) -> None:
        kept = normalised_retention(score(player), best, random)
        print(f"{name}: {percent(kept) if kept else '-'}", flush=True)

    show("students", BundlePlayer(policies, team))
    for who in _substitutions(team):
        names = " and ".join(team.robots[robot].name for robot in who)
        show(f"the teacher as {names}", Mixed(BundlePlayer(policies, team), teacher, who))


def _substitutions(team: Team) -> list[tuple[int, ...]]:
    """Each robot alone, then those that sense alike."""
    alike: dict[tuple[str, ...], list[int]] = {}
    for index, robot in enumerate(team.robots):
        alike.setdefault(tuple(block.name for block in robot.sensors), []).append(index)
    alone = [(index,) for index in range(len(team.robots))]
    return alone + [tuple(who) for who in alike.values() if 1 < len(who) < len(team.robots)]


class Mixed:
    """Students, some of whose places the teacher takes."""

    def __init__(
        self, students: BundlePlayer, teacher: TeacherPlayer, who: Collection[int]
    ) -> None:
        self._students, self._teacher, self._who = students, teacher, who

    def reset(self, seed: int) -> None:
        """Begin an episode."""
        self._students.reset(seed)
        self._teacher.reset(seed)

    def act(self, view: View) -> list[int]:
        """Greedy actions."""
        actions, taught = self._students.act(view), self._teacher.act(view)
        return [
            taught[robot] if robot in self._who else action for robot, action in enumerate(actions)
        ]


if __name__ == "__main__":
    sys.exit(main())
