"""Taking a run's directory: of two runs that want the same one, one gets it before either writes into it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

from fmstune.delivery.journal.reader import lock_path, writer
from fmstune.errors import ConfigError, RunError
from fmstune.launch.environment import is_main_process
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.run.directory import RunDirectory, clear
from fmstune.system import locks


@contextlib.contextmanager
def taken(directory: RunDirectory, *, overwrite: bool) -> Iterator[tuple[RunDirectory, locks.Lock | None]]:
    """The directory, which no other run has, and the lock that the journal's writer then holds; with
    `overwrite`, what an earlier run wrote into it is gone.

    A directory whose name was made up here gets the next one when another run has it. What was made for a run
    that doesn't begin is removed again. Raises `ConfigError` when another run has the directory.
    """
    if not is_main_process():
        yield directory, None
        return
    try:
        directory, made = _made(directory)
        (directory.path / TRACKING_DIR).mkdir(exist_ok=True)
        lock = _lock(directory)
    except OSError as error:
        raise RunError(f"{directory.path} cannot be written to: {error.strerror or error}.") from error
    try:
        if overwrite:
            clear(directory.path)
        yield directory, lock
    finally:
        lock.release()
        if made:
            _remove_if_unused(directory.path, lock.path)


def _made(directory: RunDirectory) -> tuple[RunDirectory, bool]:
    """The directory, and whether it was made here."""
    path = directory.path
    if not directory.named_here:
        existed = path.exists()
        path.mkdir(parents=True, exist_ok=True)
        return directory, not existed
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        name = path if number == 1 else path.with_name(f"{path.name}-{number}")
        with contextlib.suppress(FileExistsError):
            name.mkdir()  # one of two processes at the same second makes it
            return dataclasses.replace(directory, path=name), True
    raise AssertionError  # the numbers have no end


def _lock(directory: RunDirectory) -> locks.Lock:
    path = directory.path
    journal = path / TRACKING_DIR / JOURNAL_NAME
    lock = locks.take(lock_path(journal))
    if lock is None:
        raise ConfigError(
            f"{path}: {writer(journal)} is at this run; wait for its end, or give another --output-dir."
        )
    if directory.is_new and journal.exists():  # and has ended, by now
        lock.release()
        raise ConfigError(f"{path}: another run was started there meanwhile; give another --output-dir.")
    return lock


def _remove_if_unused(path: Path, lock: Path) -> None:
    """Remove the directory when nothing was written into it."""
    tracking = path / TRACKING_DIR
    with contextlib.suppress(OSError):
        if {*path.iterdir()} <= {tracking} and {*tracking.iterdir()} <= {lock}:
            lock.unlink(missing_ok=True)
            tracking.rmdir()
            path.rmdir()
