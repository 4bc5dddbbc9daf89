"""Finding a task by its name, `family/name`."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from kdmarl_core.errors import UserError, unknown
from kdmarl_core.tasks import mpe, pettingzoo, pymarl, smax
from kdmarl_core.tasks.task import Task

# One entry per simulator family; a family's tasks are listed by its own module.
FAMILIES: Mapping[str, Callable[[], Mapping[str, Callable[[], Task]]]] = {
    "mpe": mpe.tasks,
    "smax": smax.tasks,
}


class OpenFamily(NamedTuple):
    """A family that makes a task of whatever the rest of the name says."""

    pattern: str  # how its tasks are named, for people
    make: Callable[[str, str], Task]  # from the whole name, and where it stands for errors


OPEN_FAMILIES: Mapping[str, OpenFamily] = {
    "pettingzoo": OpenFamily("pettingzoo/<module>[:<callable>]", pettingzoo.make),
    "pymarl": OpenFamily("pymarl/<module>:<class>", pymarl.make),
    "smac": OpenFamily("smac/<map>", pymarl.make_smac),
    "smaclite": OpenFamily("smaclite/<map>", pymarl.make_smaclite),
}


# Tasks of which there is one per number: what their names begin with.
OPEN_TASKS: Mapping[str, OpenFamily] = {
    mpe.SPREAD_OF: OpenFamily(f"{mpe.SPREAD_OF}<robots>", mpe.simple_spread_of),
}


def task_names() -> list[str]:
    """Every task of the families that list theirs, sorted."""
    return sorted(f"{family}/{name}" for family, tasks in FAMILIES.items() for name in tasks())


def make_task(name: str, where: str = "") -> Task:
    """The task of that name.

    Raises:
        UserError: no such task; `where` says in which file it was named.
    """
    family, _, short = name.partition("/")
    if family in OPEN_FAMILIES:
        place = f"{where}: {name}" if where else name
        if not short:
            raise UserError(f"{place}: not a whole name; write {OPEN_FAMILIES[family].pattern}")
        return OPEN_FAMILIES[family].make(name, place)
    for begin, tasks in OPEN_TASKS.items():
        if name.startswith(begin):
            return tasks.make(name, f"{where}: {name}" if where else name)
    makers = FAMILIES[family]() if family in FAMILIES else {}
    if short not in makers:
        raise unknown("task", name, task_names(), where)
    return makers[short]()
