"""Speed of the student update against the time of its matrix products alone.

    python benchmarks/student.py --team simple_spread --team smax_8m

The floor runs every matrix product of one update, forward and backward, on tensors of the same
shapes and nothing else; those of messages, of what is imputed, and of scores to actions are left
out. Both alternate in one process, and the ratio is of their medians. With `--messages SIZE`,
`--impute` or `--encoding SIZE`, the update of the team with that change is measured against its
update without it: robots tell each other so many values, grounded as in the recipes of messages,
impute what is hidden from them, or encode rows in so many values (0: read them as they are).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch

from kdmarl_core.cli.common import run
from kdmarl_core.distil.coordination import CoordinationHeads
from kdmarl_core.distil.encoding import EncodedBlock
from kdmarl_core.distil.learner import Learner
from kdmarl_core.distil.messages import draw_delivery
from kdmarl_core.distil.on_policy import message_steps
from kdmarl_core.distil.recipe import Recipe, load_recipe
from kdmarl_core.distil.samples import Batch, Labels
from kdmarl_core.distil.student import StudentTeam
from kdmarl_core.process import prepare_training
from kdmarl_core.team import Team, load_team


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--team", action="append", help="default simple_spread and smax_8m")
    parser.add_argument("--network", choices=["mlp", "gru"], help="instead of the team's")
    parser.add_argument("--messages", type=int, metavar="SIZE", help="values that robots tell")
    parser.add_argument("--impute", action="store_true", help="what is hidden at random")
    parser.add_argument("--encoding", type=int, metavar="SIZE", help="of rows of blocks")
    parser.add_argument("--rounds", type=int, default=60, help="default 60")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--json", action="store_true")
    return run(measure, parser.parse_args())


def measure(arguments: argparse.Namespace) -> None:
    """Measure each team and print one line for it."""
    prepare_training(arguments.threads)
    found = []
    for name in arguments.team or ["simple_spread", "smax_8m"]:
        team = _with_network(load_team(name), arguments.network)
        recipe = load_recipe(team.recipe)
        changes = []
        if arguments.impute:
            changes.append("defaults.student.impute=true")
        if arguments.encoding is not None:
            changes.append(f"defaults.student.encoding={arguments.encoding}")
        if arguments.messages:
            changes.append(f"defaults.messages={{size: {arguments.messages}, to: all}}")
        if changes:
            changed = _with_network(load_team(name, changes), arguments.network)
            grounding = ["on_policy.weights.grounding=0.1"] if arguments.messages else []
            grounded = load_recipe(team.recipe, grounding)
            found.append(_cost_of_change((team, recipe), (changed, grounded), arguments.rounds))
        else:
            found.append(_measure(team, recipe, arguments.rounds))
        if not arguments.json:
            _print(found[-1])
    if arguments.json:
        print(json.dumps(found, indent=2))


def _update(team: Team, recipe: Recipe) -> tuple[Callable[[], None], StudentTeam, Batch]:
    """One update of the recipe's on-policy phase, its students and its minibatch."""
    torch.manual_seed(0)
    students = StudentTeam(team)
    heads = CoordinationHeads(students, recipe.common_width, recipe.roles)
    learner = Learner(students, heads, recipe)
    batch = _random_batch(team, students, recipe)

    def update() -> None:
        learner.update(batch, recipe.on_policy.weights, 1e-3)

    return update, students, batch


def _cost_of_change(
    before: tuple[Team, Recipe], after: tuple[Team, Recipe], rounds: int
) -> dict[str, object]:
    updates = [_update(team, recipe)[0] for team, recipe in (before, after)]
    seconds = _alternate(updates, rounds)
    return {
        "team": before[0].name,
        "network": before[0].robots[0].student.network,
        "as_it_is_ms": 1e3 * seconds[0],
        "changed_ms": 1e3 * seconds[1],
        "ratio": seconds[1] / seconds[0],
    }


def _measure(team: Team, recipe: Recipe, rounds: int) -> dict[str, object]:
    update, students, batch = _update(team, recipe)
    products = _products(students, batch)
    seconds = _alternate([update, products], rounds)
    steps = batch.labels.begins.numel()
    return {
        "team": team.name,
        "network": team.robots[0].student.network,
        "samples": steps * len(team.robots),
        "update_ms": 1e3 * seconds[0],
        "products_ms": 1e3 * seconds[1],
        "ratio": seconds[0] / seconds[1],
        "samples_per_second": steps * len(team.robots) / seconds[0],
    }


def _random_batch(team: Team, students: StudentTeam, recipe: Recipe) -> Batch:
    """A minibatch of the recipe's on-policy phase."""
    phase, spec = recipe.on_policy, team.task.spec
    envs, steps = phase.num_envs // phase.minibatches, phase.rollout_steps
    if students.wiring:
        part = message_steps(steps)
        envs, steps = envs * steps // part, part
    elif not students.recurrent:
        envs, steps = envs * steps, 1
    agents, actions = spec.num_agents, spec.num_actions
    begins = torch.zeros(steps, envs, dtype=torch.bool)
    begins[0] = True
    generator = torch.Generator().manual_seed(0)
    return Batch(
        inputs=torch.randn(steps, envs, agents, max(students.restriction.sizes)),
        state=students.initial_state(envs),
        labels=Labels(
            action_mask=torch.from_numpy(spec.action_exists).expand(steps, envs, -1, -1),
            action=torch.zeros(steps, envs, agents, dtype=torch.int64),
            behaviour=torch.full((steps, envs, agents), -1.5),
            begins=begins,
            advantage=torch.randn(steps, envs),
            teacher=torch.randn(steps, envs, agents, actions).log_softmax(-1),
            cosines=torch.rand(steps, envs, agents * (agents - 1) // 2),
            roles=torch.randn(steps, envs, agents, recipe.roles),
        ),
        delivery=draw_delivery(students.wiring, begins, generator) if students.wiring else None,
        mail=students.initial_mail(envs),
    )


def _products(students: StudentTeam, batch: Batch) -> Callable[[], None]:
    """All matrix products of one update: of each layer one forward, and two backward.

    What a GRU's states give, and owe, is one product per step each way.
    """
    robots, samples = len(students.widths), batch.labels.begins.numel()
    width = max(students.widths)
    inputs, actions = max(students.encoding.rest_sizes), batch.labels.action_mask.shape[-1]
    first = [(inputs, width, samples)]
    layers = [(width, width, samples), (width, actions, samples)]
    for block in cast("Sequence[EncodedBlock]", students.encoding.blocks):
        features, rows = block.cut.shape
        size = max(block.encoder.outputs)
        first.append((features, size, rows * samples))
        layers += [(size, width, samples), *([(width, size, samples)] if block.aim else [])]
    steps = batch.labels.begins.shape[0] if students.recurrent else 0
    layers += [(width, 3 * width, samples)] * 2 if steps else [(width, width, samples)]
    products = []
    for index, (a, b, n) in enumerate(first + layers):
        weight, x = torch.randn(robots, b, a), torch.randn(robots, a, n)
        gradient = torch.randn(robots, b, n)
        products.append((gradient, x.transpose(1, 2)))
        times = steps if steps and index == len(first + layers) - 1 else 1
        for part in torch.chunk(x, times, -1):
            products.append((weight, part.contiguous()))
        if index >= len(first):  # nothing learns below the first layers
            for part in torch.chunk(gradient, times, -1):
                products.append((weight.transpose(1, 2), part.contiguous()))

    def run() -> None:
        for one, other in products:
            torch.bmm(one, other)

    return run


def _alternate(jobs: Sequence[Callable[[], None]], rounds: int) -> list[float]:
    """Median seconds of each job; they take turns, so that other load meets all alike."""
    seconds: list[list[float]] = [[] for _ in jobs]
    for _ in range(rounds):
        for kept, job in zip(seconds, jobs, strict=True):
            begun = time.perf_counter()
            job()
            kept.append(time.perf_counter() - begun)
    return [statistics.median(kept) for kept in seconds]


def _with_network(team: Team, network: Literal["mlp", "gru"] | None) -> Team:
    if network is None:
        return team
    robots = tuple(
        dataclasses.replace(robot, student=dataclasses.replace(robot.student, network=network))
        for robot in team.robots
    )
    return dataclasses.replace(team, robots=robots)


def _print(found: dict[str, object]) -> None:
    if "changed_ms" in found:
        print(
            f"{found['team']} ({found['network']}): as it is {found['as_it_is_ms']:.2f} ms, "
            f"changed {found['changed_ms']:.2f} ms, ratio {found['ratio']:.2f}"
        )
        return
    print(
        f"{found['team']} ({found['network']}): update {found['update_ms']:.2f} ms, products "
        f"alone {found['products_ms']:.2f} ms, ratio {found['ratio']:.2f}; "
        f"{found['samples_per_second']:,.0f} robot samples/s"
    )


if __name__ == "__main__":
    sys.exit(main())
