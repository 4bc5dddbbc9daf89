"""Fixtures that several test modules share."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch
from helpers import write_yaml
from hypothesis import settings

from kdmarl_core.errors import UserError
from kdmarl_core.tasks.mpe import MpeTask
from kdmarl_core.team import load_team
from kdmarl_ros.cli import main

# The same examples each time, however slow the machine is today.
settings.register_profile("steady", deadline=None, derandomize=True, database=None)
settings.load_profile("steady")


def pytest_configure():
    """Ctrl+C counts here and in what tests start, even where a background job ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """The longest tests first, so that nobody waits for them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def _one_thread():
    """Small nets are fastest on one thread, and sums then have one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _compiled_once(tmp_path_factory):
    """JAX keeps what it compiled: many tests make simulators of the same sizes.

    Processes that share the work of one run share the folder, too.
    """
    folder = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        folder = folder.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        yield


@pytest.fixture
def load(tmp_path):
    """Loads a team from a document with changes."""

    def make(document, *changes):
        return load_team(str(write_yaml(tmp_path / "team.yaml", document)), changes)

    return make


_made = {}  # simulators by task, opponent and size


@pytest.fixture(scope="module")
def simulators_made_once():
    """Where every rollout begins with new episodes, nothing passes from one user to the next.

    Not even between modules, which share what has been made of MPE.
    """
    original = MpeTask.make_batch

    def make_batch(task, num_envs):
        key = task.spec.name, task.spec.fixture_sha256, num_envs
        if key not in _made:
            _made[key] = original(task, num_envs)
        return _made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MpeTask, "make_batch", make_batch)
        yield


@pytest.fixture
def kdmarl(tmp_path, monkeypatch, capfd):
    """Runs a `kdmarl` command in an empty folder; returns exit code, outputs and what was left."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(*arguments):
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        left = sorted(os.path.relpath(p, work) for p in work.rglob("*"))
        return SimpleNamespace(code=code, out=captured.out, err=captured.err, left=left)

    return run


@pytest.fixture
def refusal():
    """Runs a function that must refuse its input; returns the message, which is one line."""

    def message_of(function, *arguments, **keywords) -> str:
        with pytest.raises(UserError) as caught:
            function(*arguments, **keywords)
        message = str(caught.value)
        assert len(message.splitlines()) == 1
        return message

    return message_of
