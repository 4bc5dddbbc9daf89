"""Where the project's own files are, and writing that never leaves half a file behind."""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kdmarl_core.errors import UserError, unknown
from kdmarl_core.schema import is_yaml


def share_folder() -> Path:
    """The folder that holds `config/`, `models/` and `launch/`.

    A source checkout holds them at its root, an installation (pip or colcon) in
    `<prefix>/share/kdmarl_ros`; both are found from where this module lies.

    Raises:
        UserError: the package was installed without its data files.
    """
    for parent in Path(__file__).resolve().parents:
        installed = parent / "share" / "kdmarl_ros"
        if (installed / "config").is_dir():
            return installed
        if (parent / "package.xml").is_file() and (parent / "config").is_dir():
            return parent
    raise UserError(
        f"no share/kdmarl_ros above {Path(__file__).parent}; install the package again"
    )


def config_file(
    kind: str,
    shipped: str,
    name_or_path: str,
    where: str = "",
    folder: Path = Path(),
) -> Path:
    """A configuration that ships, by its name, or any YAML file by its path.

    Args:
        kind: what it is, for messages.
        shipped: those that ship, as a pattern below `config/`.
        name_or_path: such as `simple_spread`, or a YAML file.
        where: who asks for it, for messages.
        folder: where a relative path begins.

    Raises:
        UserError: there is none of that name.
    """
    if is_yaml(name_or_path):
        return folder / name_or_path
    if "/" in name_or_path:
        prefix = f"{where}: " if where else ""
        raise UserError(f"{prefix}{kind} '{name_or_path}': a path must end in .yaml; correct it")
    known = share_folder() / "config" / shipped
    path = known.parent / f"{name_or_path}.yaml"
    if not path.is_file():
        names = sorted(file.stem for file in known.parent.glob(known.name))
        raise unknown(kind, name_or_path, names, where)
    return path


@contextlib.contextmanager
def atomic_folder(target: Path, marker: str, *, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that becomes `target` only when the block ends without an exception.

    Raises:
        UserError: as `refuse_existing` does.
    """
    refuse_existing(target, marker, overwrite=overwrite)
    with _refusing_to_write(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    temporary.chmod(0o755)
    try:
        yield temporary
        with _refusing_to_write(target):
            _replace_folder(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def atomic_write(target: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part.

    Raises:
        UserError: the folder cannot be written.
    """
    with atomic_file(target) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A temporary file that becomes `target` only when the block ends without an exception.

    Raises:
        UserError: the folder cannot be written.
    """
    with _refusing_to_write(target), lasting_file(target) as temporary:
        yield temporary


@contextlib.contextmanager
def lasting_file(target: Path) -> Iterator[Path]:
    """As `atomic_file`, for those who say themselves what an `OSError` means to them.

    When it has become `target`, it outlives a loss of power.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix, suffix = f".{target.name}.", target.suffix  # which says what it holds
    handle, name = tempfile.mkstemp(suffix, prefix, target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        temporary.chmod(0o644)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_listing(target)


def sync_listing(target: Path) -> None:
    """That a file is there, or is gone, outlives a loss of power, where that can be had."""
    for folder in (target.parent, target.parent.parent):  # of which the first may be new
        with contextlib.suppress(OSError):  # not all folders can be read, or synced
            _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_existing(target: Path, marker: str, *, overwrite: bool) -> None:
    """Refuse an output folder early, before a long run finds it in its way.

    Args:
        target: the folder to be written.
        marker: glob of a file that shows that a folder is one of ours. Others are never replaced.
        overwrite: whether the user agrees to replace it.

    Raises:
        UserError: `target` exists and may not or must not be replaced, or cannot be written.
    """
    with _refusing_to_write(target):
        if target.exists() and not target.is_dir():
            raise UserError(f"{target}: is not a folder; give another --output")
        if target.exists() and not overwrite:
            raise UserError(f"{target}: exists already; give another --output, or --overwrite")
        if target.exists() and any(target.iterdir()) and not any(target.glob(marker)):
            raise UserError(
                f"{target}: holds no {marker}, so it was not written by this command and is not "
                "replaced; give another --output"
            )
    refuse_unwritable(target)


def refuse_unwritable(target: Path) -> None:
    """Refuse a place to write to before a long run finds that nothing can be written there.

    Raises:
        UserError: neither file nor folder could be made there.
    """
    with _refusing_to_write(target):
        existing = next(parent for parent in target.absolute().parents if parent.exists())
        # Permission bits do not tell the whole truth: try it.
        tempfile.TemporaryDirectory(prefix=".kdmarl.", dir=existing).cleanup()


def _replace_folder(source: Path, target: Path) -> None:
    if not target.exists():
        source.rename(target)
        return
    retired = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    kept = retired / target.name
    try:
        target.rename(kept)
        source.rename(target)
    except BaseException:  # an interruption among them
        if kept.exists() and not target.exists():
            kept.rename(target)
        raise
    finally:
        shutil.rmtree(retired, ignore_errors=True)


@contextlib.contextmanager
def _refusing_to_write(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{target}: cannot be written ({reason}); name another place, or make room in this one"
        ) from None


def executable_prefix() -> Path:
    """The prefix whose `lib/kdmarl_ros` holds the node executables."""
    for prefix in (share_folder().parent.parent, Path(sys.prefix)):
        if (prefix / "lib" / "kdmarl_ros").is_dir():
            return prefix
    raise UserError("no lib/kdmarl_ros beside the package; run 'make build' or 'colcon build'")


def bundles_folder(team: str) -> Path:
    """Where a team's bundles are written and looked for unless another folder is named."""
    return Path("runs") / "bundles" / team
