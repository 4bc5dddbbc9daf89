"""Cooperative games behind one contract: named blocks in, actions out."""

from kdmarl_core.tasks.blocks import (
    Block,
    block_columns,
    live_columns,
    select_blocks,
    select_columns,
    visible_block,
)
from kdmarl_core.tasks.registry import make_task, task_names
from kdmarl_core.tasks.task import (
    AgentSpec,
    BatchEnv,
    BatchStep,
    Entity,
    Outcome,
    ReferenceEnv,
    Task,
    TaskSpec,
    Units,
    View,
)

__all__ = [
    "AgentSpec",
    "BatchEnv",
    "BatchStep",
    "Block",
    "Entity",
    "Outcome",
    "ReferenceEnv",
    "Task",
    "TaskSpec",
    "Units",
    "View",
    "block_columns",
    "live_columns",
    "make_task",
    "select_blocks",
    "select_columns",
    "task_names",
    "visible_block",
]
