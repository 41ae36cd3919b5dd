"""Lock a run's directory, so that of two runs that want the same one, only one writes into it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from fmstune.access import reason
from fmstune.delivery.journal.reader import lock_path, writer
from fmstune.errors import ConfigError, RunError
from fmstune.launch.environment import is_main_process
from fmstune.layout import CONFIG_NAME, JOURNAL_NAME, TRACKING_DIR
from fmstune.run.directory import RunDirectory, clear, has_not_begun, journal_bytes
from fmstune.system import locks
from fmstune.text import shown_path


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
        lock = _lock(directory, overwrite=overwrite)
    except OSError as error:
        if made:
            with contextlib.suppress(OSError):
                directory.path.rmdir()
        raise RunError(f"{directory.path} cannot be written to: {reason(error, directory.path)}.") from error
    try:
        if overwrite:
            with deliveries_locked(directory.path):
                clear(directory.path)
        yield directory, lock
    finally:
        lock.release()
        if made:
            _remove_if_unused(directory.path, lock.path)


@contextlib.contextmanager
def deliveries_locked(directory: Path) -> Iterator[None]:
    """Hold the locks of the deliveries of a run while its files are removed: a shipper would go on with the
    next run in the directory. Raises `ConfigError` if a process is delivering it."""
    held = []
    try:
        for path in delivery_locks(directory):
            if (lock := locks.acquire(path)) is None:
                raise being_delivered(directory, path, locks.holder(path))
            held.append(lock)
        yield
    finally:
        for lock in held:
            lock.release()


def delivery_locks(directory: Path) -> list[Path]:
    """The locks that the deliveries of a run hold, one for each tracker."""
    tracking = directory / TRACKING_DIR
    return sorted(set(tracking.glob("*.lock")) - {lock_path(tracking / JOURNAL_NAME)})


def being_delivered(directory: Path, path: Path, holder: locks.Process | None) -> ConfigError:
    """The error that a process is delivering a run with the lock at `path`."""
    return ConfigError(
        f"{shown_path(directory)}: {locks.describe(holder)} is delivering it to {unquote(path.stem)}; wait "
        "until it ends, or stop it."
    )


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


def _lock(directory: RunDirectory, *, overwrite: bool) -> locks.Lock:
    path = directory.path
    journal = path / TRACKING_DIR / JOURNAL_NAME
    lock = locks.acquire(lock_path(journal))
    if lock is None:
        raise ConfigError(
            f"{path}: {writer(journal)} is running this run; wait until it ends, or use another --output-dir."
        )
    if not overwrite and journal_bytes(path) != directory.journal_bytes:  # the other run has ended already
        lock.release()
        if directory.checkpoint is not None:
            raise ConfigError(f"{path}: another process has continued this run meanwhile; resume it again.")
        raise ConfigError(f"{path}: another run was started there meanwhile; use another --output-dir.")
    return lock


def _remove_if_unused(path: Path, lock: Path) -> None:
    """Remove the directory if no run has begun in it, and no other run has it now."""
    with contextlib.suppress(OSError):
        if has_not_begun(path) and (held := locks.acquire(lock)) is not None:
            try:
                if has_not_begun(path):
                    lock.unlink()
                    lock.parent.rmdir()
                    (path / CONFIG_NAME).unlink(missing_ok=True)
                    path.rmdir()
            finally:
                held.release()
