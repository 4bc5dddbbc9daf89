"""`kdmarl tasks`: what can be played, and which blocks its agents have."""

from __future__ import annotations

import argparse
from typing import Any

from kdmarl_core.cli.common import add_json, print_json, print_table
from kdmarl_core.tasks import Block


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("tasks", help="list tasks, agents, blocks and actions")
    parser.add_argument("tasks", nargs="*", metavar="task", help="only these; default all listed")
    add_json(parser)
    parser.set_defaults(command=list_tasks)


def list_tasks(arguments: argparse.Namespace) -> None:
    """Print every task's description, from the same source as masks, topics and manifests."""
    from kdmarl_core.tasks import make_task, task_names
    from kdmarl_core.tasks.registry import OPEN_FAMILIES, OPEN_TASKS

    specs = [make_task(name).spec for name in arguments.tasks or task_names()]
    if arguments.json:
        print_json(
            {
                spec.name: {
                    agent.name: {
                        "blocks": {block.name: block.size for block in agent.blocks},
                        "rows": {b.name: b.rows for b in agent.blocks if b.lists},
                        "aims": {b.name: list(b.aims) for b in agent.blocks if b.aims},
                        "actions": list(agent.actions),
                    }
                    for agent in spec.agents
                }
                for spec in specs
            }
        )
        return
    for spec in specs:
        rows = [
            [
                agent.name,
                ", ".join(map(_shown, agent.blocks)),
                ", ".join(agent.actions),
            ]
            for agent in spec.agents
        ]
        title = f"{spec.name}: {spec.episode_steps} steps at {spec.rate_hz:g} Hz"
        print_table(title, ["agent", "blocks", "actions"], rows)
    if not arguments.tasks:
        families = [*OPEN_TASKS.values(), *OPEN_FAMILIES.values()]
        patterns = ", ".join(family.pattern for family in families)
        print(f"Also {patterns}; with options: '<task>?<option>=<value>&<option>=<value>'")


def _shown(block: Block) -> str:
    size = f"{block.rows} x {block.size // block.rows}" if block.rows > 1 else block.size
    return f"{block.name}[{size}] {block.unit}"
