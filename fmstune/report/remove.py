"""Remove runs: only the files that a run has written."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fmstune.access import reason
from fmstune.delivery.journal.reader import JournalError, is_being_written, lock_path, writer
from fmstune.delivery.ledger import load_ledgers
from fmstune.delivery.report import report
from fmstune.errors import ConfigError, RunError
from fmstune.report.curves import require_run
from fmstune.report.index import RunIndex, index_path
from fmstune.report.summary import journal_of
from fmstune.run.directory import clear, run_files
from fmstune.run.locking import being_delivered, deliveries_locked, delivery_locks
from fmstune.system import locks
from fmstune.text import shown_path


@dataclass(frozen=True, slots=True)
class Removal:
    """A run to remove: the files and folders that it wrote, their total bytes, the `others` in its directory,
    which stay, and how much its trackers have of it, those that lack something."""

    directory: Path
    entries: Sequence[Path]
    bytes: int
    others: Sequence[Path]
    undelivered: Sequence[str] = ()


def planned(directory: Path) -> Removal:
    """The files that removing a run would delete. Raises `ConfigError` if the directory is not a run, or a
    process is running or delivering it."""
    require_run(directory)
    if directory.is_symlink():
        raise ConfigError(
            f"{shown_path(directory)} is a link to {shown_path(directory.resolve())}; use that directory."
        )
    _require_not_running(directory)
    for path in delivery_locks(directory):
        if (holder := locks.holder(path)) is not None:
            raise being_delivered(directory, path, holder)
    entries = sorted(run_files(directory))
    others = sorted(set(directory.iterdir()) - set(entries))
    return Removal(directory, entries, sum(map(_size, entries)), others, _undelivered(directory))


def remove(removal: Removal) -> None:
    """Delete the files of a run, and its directory if nothing else is in it. The run cannot be resumed
    meanwhile. An empty directory that cannot be removed, such as a mount point, stays. Raises `ConfigError`
    if a process is running or delivering it, `RunError` if something cannot be deleted."""
    directory = removal.directory
    try:
        lock = locks.acquire(lock_path(journal_of(directory)))
    except OSError as error:
        raise _not_removed(directory, error) from error
    if lock is None:
        _require_not_running(directory)
        raise ConfigError(f"{shown_path(directory)}: another process is using this run; wait until it ends.")
    try:
        _require_removable(removal)
        with deliveries_locked(directory):
            clear(directory)
        lock_path(journal_of(directory)).unlink(missing_ok=True)
        for folder in (journal_of(directory).parent, directory):
            with contextlib.suppress(FileNotFoundError if folder != directory else OSError):
                if not any(folder.iterdir()) and not folder.samefile(Path.cwd()):
                    folder.unlink() if folder.is_symlink() else folder.rmdir()
    except OSError as error:
        raise _not_removed(directory, error) from error
    finally:
        lock.release()
    index = RunIndex(index_path())
    index.forget([os.path.realpath(directory)])
    index.close()


def _undelivered(directory: Path) -> list[str]:
    names = [ledger.tracker for ledger in load_ledgers(directory)]
    try:
        lines = report(directory, names)
    except (OSError, JournalError):  # nothing can be delivered from it
        return []
    return [f"{line.tracker} {line.delivered}/{line.total}" for line in lines if line.delivered < line.total]


def _require_removable(removal: Removal) -> None:
    """Raise `RunError` if a directory of the run does not let its files be removed: half of it would stay."""
    folders = [each for each in removal.entries if each.is_dir() and not each.is_symlink()]
    below = [name for top in folders for name, _, _ in os.walk(top)]
    for folder in (str(removal.directory), *below):
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
            raise _not_removed(removal.directory, denied)


def _not_removed(directory: Path, error: OSError) -> RunError:
    return RunError(
        f"{shown_path(directory)} cannot be removed: {reason(error, Path(error.filename or directory))}."
    )


def _require_not_running(directory: Path) -> None:
    journal = journal_of(directory)
    if is_being_written(journal):
        raise ConfigError(
            f"{shown_path(directory)}: {writer(journal)} is running this run; wait until it ends, or stop it."
        )


def _size(path: Path) -> int:
    """The size of a file, or of all files in a folder, in bytes."""
    files = [path] if path.is_symlink() or not path.is_dir() else list(path.rglob("*"))
    return sum(each.lstat().st_size for each in files if each.is_symlink() or each.is_file())
