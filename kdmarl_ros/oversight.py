"""People above the policy: stops that outlive the process, and a manual override. No ROS here."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from kdmarl_core.errors import UserError
from kdmarl_core.files import lasting_file, sync_listing
from kdmarl_core.schema import read_json

ROBOT = "robot"  # who can stop: the robot's own topic, its service, or the swarm's
SERVICE = "service"
SWARM = "swarm"


def state_folder(given: str) -> Path:
    """Where a node keeps what must outlive it; by default one folder per user and ROS domain."""
    if given:
        return Path(given)
    home = Path(os.environ.get("ROS_HOME") or "~/.ros").expanduser()
    return home / "kdmarl" / f"domain_{os.environ.get('ROS_DOMAIN_ID') or 0}"


class StopLatch:
    """Who stopped something and has not released it, kept in a file.

    The file outlives the process and the machine's power: what was stopped starts again stopped.
    Without the file nothing is stopped; a file that cannot be understood stops.
    """

    def __init__(self, path: Path, owner: str = ROBOT) -> None:
        """Read the file, if there is one; who releases one that is damaged is its `owner`."""
        self.path = path
        self._since: dict[str, str] = {}
        self._kept = True  # the file says the same
        if path.exists():
            try:
                self._since = {str(who): str(when) for who, when in read_json(path).items()}
            except UserError:
                self._since = {owner: "an unknown time: its record is damaged"}

    @property
    def stopped(self) -> bool:
        """Whether anybody holds it stopped."""
        return bool(self._since)

    @property
    def reason(self) -> str:
        """Who holds it stopped, and since when; empty if nobody does."""
        return ", ".join(f"by {who} since {when}" for who, when in self._since.items())

    def says(self, who: str, stopped: bool) -> bool:
        """Whether this one holds it stopped, or does not, and the file says the same."""
        return self._kept and stopped == (who in self._since)

    def set(self, who: str, stopped: bool) -> str:
        """Stop, or release what the same one has stopped.

        Returns what became of a request that could not be kept, and why, or nothing. A stop that
        cannot be kept is a stop nevertheless; a release that cannot be kept is none.
        """
        if self.says(who, stopped):
            return ""
        wanted = {name: when for name, when in self._since.items() if name != who}
        if stopped:
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            self._since = wanted = wanted | {who: self._since.get(who, now)}
        try:
            self._keep(wanted)
        except OSError as error:
            self._kept = not stopped and self._kept
            why = f"{self.path}: cannot be written ({error.strerror})"
            if not stopped and who in self._since:
                return f"it stays stopped, since its release cannot be kept: {why}"
            return f"the stop will not outlive this process: {why}"
        self._since, self._kept = wanted, True
        return ""

    def _keep(self, since: dict[str, str]) -> None:
        if since:
            with lasting_file(self.path) as temporary:
                temporary.write_text(json.dumps(since))
        else:
            self.path.unlink(missing_ok=True)
            sync_listing(self.path)


def latch(state_directory: str, name: str, owner: str = ROBOT) -> StopLatch:
    """The latch of a robot by its name, or of the swarm; an empty folder is the default one."""
    return StopLatch(state_folder(state_directory) / f"{name}.stop.json", owner)


class Override:
    """A person's action, valid for a short while after it was last sent."""

    def __init__(self, actions: int, timeout_s: float) -> None:
        """For a robot with so many actions."""
        self._actions = actions
        self._timeout_s = timeout_s
        self._action = -1
        self._received_s = 0.0

    def set(self, action: int, now_s: float) -> bool:
        """Take an action's index, or -1 to end the override; False if there is no such action."""
        if not -1 <= action < self._actions:
            return False
        self._action, self._received_s = action, now_s
        return True

    def action(self, now_s: float) -> int | None:
        """The action to use in place of the policy's, if there is one."""
        valid = self._action >= 0 and now_s - self._received_s <= self._timeout_s
        return self._action if valid else None
