"""Which cells the table has, and what is kept of them: `config/results.yaml` read and resolved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from kdmarl_core.errors import UserError, refuse_unknown
from kdmarl_core.files import share_folder
from kdmarl_core.schema import check_at_least, check_share, from_mapping, read_yaml
from kdmarl_core.team import Team, load_team

ALL_ON = "all terms"
FULL = "FO"  # the setting in which robots see everything that their agents do


@dataclass(frozen=True)
class Source:
    """What the source reports of a task; wins in percent."""

    measure: Literal["return", "wins"]
    teacher: float
    limited: float  # LH
    limited_mixed: float  # LH+A

    def student(self, setting: str) -> float | None:
        """Its student in one of the table's settings; the source has no full-observation one."""
        if setting.startswith("LH+A"):
            return self.limited_mixed
        return self.limited if setting.startswith("LH") else None


@dataclass(frozen=True)
class TaskPlan:
    """One task's rows."""

    seeds: int
    teams: tuple[str, ...]  # one per setting
    source: Source

    def __post_init__(self) -> None:
        check_at_least(1, self, "seeds")


@dataclass(frozen=True)
class Variant:
    """How a team is distilled in another way."""

    team: tuple[str, ...] = ()  # changes of its file
    recipe: tuple[str, ...] = ()  # changes of its recipe
    without: tuple[str, ...] = ()  # terms that are off in both phases
    # By the policy of a bound: of what each robot senses, or also of what it hears.
    assistant: Literal["none", "silent", "hearing"] = "none"

    def assistant_of(self, team: Team) -> Team | None:
        """The team whose bound is the assistant, if there is one."""
        if self.assistant == "none":
            return None
        return team.silent() if self.assistant == "silent" else team


@dataclass(frozen=True)
class Ablation:
    """What is switched off in turn."""

    seeds: int
    teams: tuple[str, ...]
    all: tuple[str, ...]  # changes of the team's recipe that switch every term on
    without: tuple[str, ...]  # terms, each switched off alone
    others: dict[str, Variant]  # further ones, on top of every term on

    def __post_init__(self) -> None:
        check_at_least(1, self, "seeds")

    def variants(self) -> dict[str, Variant]:
        """All by name; the one with everything on comes first."""
        full = Variant(recipe=self.all)
        off = {f"without {term}": replace(full, without=(term,)) for term in self.without}
        others = {
            name: replace(other, recipe=(*self.all, *other.recipe))
            for name, other in self.others.items()
        }
        return {ALL_ON: full, **off, **others}


@dataclass(frozen=True)
class MessageDisturbance:
    """What happens to messages while students play."""

    loss: float = 0.0
    delay_steps: int = 0  # 0: as flown

    def __post_init__(self) -> None:
        check_share(self, "loss")
        check_at_least(0, self, "delay_steps")


@dataclass(frozen=True)
class Messages:
    """What robots tell each other, and what happens to it on its way."""

    seeds: int
    teams: dict[str, tuple[str, ...]]  # name -> changes of its file in all of its variants
    variants: dict[str, Variant]  # of every team
    causes: dict[str, dict[str, Variant]]  # team -> further ones, which tell causes apart
    disturbances: dict[str, MessageDisturbance]
    disturbed: dict[str, tuple[str, ...]]  # team -> variants that also play disturbed
    at_a_glance: tuple[str, ...]  # variants that say most

    def __post_init__(self) -> None:
        check_at_least(1, self, "seeds")
        for key, teams in (("causes", self.causes), ("disturbed", self.disturbed)):
            refuse_unknown("team", teams, self.teams, key)
        for team, names in self.disturbed.items():
            refuse_unknown("variant", names, self.variants_of(team), f"disturbed: {team}")
        refuse_unknown("variant", self.at_a_glance, self.variants, "at_a_glance")

    def variants_of(self, team: str) -> dict[str, Variant]:
        """All variants of a team, by name."""
        return self.variants | self.causes.get(team, {})


@dataclass(frozen=True)
class Plan:
    """The whole table."""

    episodes: int
    settings: tuple[str, ...]
    tasks: dict[str, TaskPlan]
    ablation: Ablation
    messages: Messages = Messages(1, {}, {}, {}, {}, {}, ())

    def __post_init__(self) -> None:
        check_at_least(1, self, "episodes")
        for task, rows in self.tasks.items():
            if len(rows.teams) != len(self.settings):
                raise UserError(
                    f"tasks: {task}: teams: {len(rows.teams)} teams for {len(self.settings)} "
                    "settings; name one team per setting"
                )


class Row:
    """One task in one setting, with or without an assistant between teacher and students."""

    def __init__(self, plan: Plan, task: str, setting: str, *, assisted: bool = False) -> None:
        """The row of that task and setting."""
        self.task, self.setting, self.rows = task, setting, plan.tasks[task]
        self.assisted = assisted
        self.team_name = self.rows.teams[plan.settings.index(setting)]

    def team(self) -> Team:
        """The row's team."""
        return load_team(self.team_name)

    @property
    def title(self) -> str:
        """What the row is called in the table."""
        return self.setting + (", assistant" if self.assisted else "")

    @property
    def restricted(self) -> bool:
        """Whether its students see less than the teacher."""
        return self.setting != FULL


def load_plan(path: Path | None = None) -> Plan:
    """The plan in a file, by default the one that ships.

    Raises:
        UserError: the file is missing or malformed.
    """
    file = path or share_folder() / "config" / "results.yaml"
    return from_mapping(Plan, read_yaml(file), str(file))


def rows(plan: Plan, tasks: list[str], settings: list[str]) -> Iterator[Row]:
    """The rows of these tasks and settings (none: all), in the plan's order.

    Raises:
        UserError: a task or setting is not in the plan.
    """
    refuse_unknown("task", tasks, plan.tasks)
    refuse_unknown("setting", settings, plan.settings)
    for task in plan.tasks:
        for setting in plan.settings:
            if (not tasks or task in tasks) and (not settings or setting in settings):
                row = Row(plan, task, setting)
                yield row
                if row.restricted:
                    yield Row(plan, task, setting, assisted=True)
