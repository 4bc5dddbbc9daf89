"""How much of a battle teacher's choice of targets is habit: known from slots, without looking.

    python benchmarks/habits.py smax_8m smax_8m_plain

Teachers play greedily. Of all attacks that had a choice, the share is counted that hit the enemy
which a fixed order of slots would name: the one order, for all agents, that fits the teacher's own
choices best (Bradley and Terry 1952). Chance is the share of an order drawn at random. A habit can
be followed by a robot that senses little; a choice that depends on what it does not sense cannot.
"""

from __future__ import annotations

import argparse
import sys
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from kdmarl_core.cli.common import run
from kdmarl_core.errors import UserError
from kdmarl_core.tasks import Task, make_task
from kdmarl_core.teacher.teacher import Teacher, find_teacher, load_teacher, read_card

FITTING_STEPS = 200


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teachers", nargs="+", help="teachers of battles: names or folders")
    parser.add_argument("--envs", type=int, default=128, help="battles at once (default 128)")
    parser.add_argument("--steps", type=int, default=60, help="of each (default 60)")
    return run(measure, parser.parse_args())


def measure(arguments: argparse.Namespace) -> None:
    """Print one line for each teacher."""
    torch.set_num_threads(1)
    for name in arguments.teachers:
        folder = find_teacher(name)
        task = make_task(read_card(folder).task)
        teacher, _ = load_teacher(folder, task.spec)
        if task.spec.units is None:
            raise UserError(
                f"{name}: teaches {task.spec.name}, which is no battle; give one of SMAX"
            )
        made = choices(teacher, task, task.spec.units.moves, arguments.envs, arguments.steps)
        named = np.where(made.possible, fixed_order(made), -np.inf).argmax(-1)
        print(
            f"{name}: {(named == made.target).mean():.0%} of targets known from slots "
            f"(chance {(1 / made.possible.sum(-1)).mean():.0%}), of {len(named):,} attacks that "
            f"had a choice; attacks in {made.attacked:.0%} of the decisions in which it can"
        )


class Choices(NamedTuple):
    """What greedy agents did where they could attack."""

    target: npt.NDArray[np.int64]  # of attacks that had a choice, [C]
    possible: npt.NDArray[np.bool_]  # of those, whom else they could have hit, [C, V]
    attacked: float  # share of the decisions with an enemy in range that were attacks


def choices(teacher: Teacher, task: Task, moves: int, envs: int, steps: int) -> Choices:
    """What a teacher chooses in so many battles, whose actions are so many moves, then attacks."""
    env = task.make_batch(envs)
    step, targets, possible, attacked = env.reset(0), [], [], []
    for _ in range(steps):
        shown = (torch.from_numpy(part) for part in step[:3])
        with torch.no_grad():
            action = teacher.logits(*shown).argmax(-1).numpy()
        in_range = step.action_mask[..., moves:]
        attacks = action >= moves
        attacked.append(attacks[in_range.any(-1)])
        choice = attacks & (in_range.sum(-1) > 1)
        targets.append(action[choice] - moves)
        possible.append(in_range[choice])
        step = env.step(action)
    share = float(np.concatenate(attacked).mean())
    return Choices(np.concatenate(targets), np.concatenate(possible), share)


def fixed_order(made: Choices) -> npt.NDArray[np.float64]:
    """Strength of each slot [V]: log odds that it is hit rather than another one."""
    slots = made.possible.shape[1]
    wins = np.ones((slots, slots))  # a draw in advance, so that all odds are finite
    for target, possible in zip(made.target, made.possible, strict=True):
        wins[target] += possible
    np.fill_diagonal(wins, 0)
    met = wins + wins.T
    strength = np.zeros(slots)
    for _ in range(FITTING_STEPS):
        expected = met / (1 + np.exp(strength[None] - strength[:, None]))
        strength += 0.5 * (wins - expected).sum(1) / met.sum(1)
    return strength


if __name__ == "__main__":
    sys.exit(main())
