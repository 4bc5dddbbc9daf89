"""Finding a task by its name, `family/name`."""

from collections.abc import Callable, Mapping

from kdmarl_core.errors import unknown
from kdmarl_core.tasks import mpe
from kdmarl_core.tasks.task import Task

# One entry per simulator family; a family's tasks are listed by its own module.
FAMILIES: Mapping[str, Callable[[], Mapping[str, Callable[[], Task]]]] = {"mpe": mpe.tasks}


def task_names() -> list[str]:
    """Every task that can be made, sorted."""
    return sorted(f"{family}/{name}" for family, tasks in FAMILIES.items() for name in tasks())


def make_task(name: str, where: str = "") -> Task:
    """The task of that name.

    Raises:
        UserError: no such task; `where` says in which file it was named.
    """
    family, _, short = name.partition("/")
    makers = FAMILIES[family]() if family in FAMILIES else {}
    if short not in makers:
        raise unknown("task", name, task_names(), where)
    return makers[short]()
