"""Lock a run's directory, so that of two runs that want the same one, only one writes into it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

from fmstune.access import reason
from fmstune.delivery.journal.reader import lock_path, writer
from fmstune.errors import ConfigError, RunError
from fmstune.launch.environment import is_main_process
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.run.directory import RunDirectory, clear
from fmstune.system import locks


@contextlib.contextmanager
def locked(directory: RunDirectory, *, overwrite: bool) -> Iterator[tuple[RunDirectory, locks.Lock | None]]:
    """Lock the directory for this run, and yield it with the lock, which the journal's writer then holds;
    with `overwrite`, remove the files of an earlier run.

    If another run has the directory, one with a generated name gets another name; otherwise raises
    `ConfigError`. A directory created for a run that does not start is removed again.
    """
    if not is_main_process():
        yield directory, None
        return
    made = False
    try:
        directory, made = _create(directory)
        (directory.path / TRACKING_DIR).mkdir(exist_ok=True)
        lock = _lock(directory)
    except OSError as error:
        if made:
            with contextlib.suppress(OSError):
                directory.path.rmdir()
        raise RunError(f"{directory.path} cannot be written to: {reason(error, directory.path)}.") from error
    try:
        if overwrite:
            clear(directory.path)
        yield directory, lock
    finally:
        lock.release()
        if made:
            _remove_if_unused(directory.path, lock.path)


def _create(directory: RunDirectory) -> tuple[RunDirectory, bool]:
    """Create the directory; return it, and whether it is new."""
    path = directory.path
    if not directory.has_generated_name:
        existed = path.exists()
        path.mkdir(parents=True, exist_ok=True)
        return directory, not existed
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        name = path if number == 1 else path.with_name(f"{path.name}-{number}")
        with contextlib.suppress(FileExistsError):
            name.mkdir()  # of two processes in the same second, only one succeeds
            return dataclasses.replace(directory, path=name), True
    raise AssertionError  # the loop is infinite


def _lock(directory: RunDirectory) -> locks.Lock:
    path = directory.path
    journal = path / TRACKING_DIR / JOURNAL_NAME
    lock = locks.acquire(lock_path(journal))
    if lock is None:
        raise ConfigError(
            f"{path}: {writer(journal)} is running this run; wait until it ends, or use another --output-dir."
        )
    if directory.is_new and journal.exists():  # the other run has ended already
        lock.release()
        raise ConfigError(f"{path}: another run was started there meanwhile; use another --output-dir.")
    return lock


def _remove_if_unused(path: Path, lock: Path) -> None:
    """Remove the directory if nothing was written into it."""
    tracking = path / TRACKING_DIR
    with contextlib.suppress(OSError):
        if {*path.iterdir()} <= {tracking} and {*tracking.iterdir()} <= {lock}:
            lock.unlink(missing_ok=True)
            tracking.rmdir()
            path.rmdir()
