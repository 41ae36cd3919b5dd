"""File locks between processes, held by one process and never by its children.

A `flock` lock belongs to an open file, which a fork shares: a dataloader worker, or a tracker's daemon, would
keep the lock of a process that is gone (F_OFD_SETLK is inherited in the same way). POSIX record locks are not
inherited, but they end as soon as this process closes the file anywhere, for example when the run's folder is
uploaded. So the file is closed on exec, and in each child that Python forks. For forks that Python does not
see, the file records its owner: a dead process does not hold the lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

_SECONDS_TO_SHARE = 0.3
"""How long to wait for a process that only inspects a lock, which takes microseconds."""
_SLEEP = 0.01
_MOST_REMOVALS = 100
"""How often a lock file may be found removed: on a file system without stable inode numbers, it always seems
to be."""
_SECONDS_FOR_FOLDER = 20.0


@dataclass(frozen=True, slots=True)
class Process:
    """A process, distinct from a later one with the same pid. `started` is its start time in the kernel's
    ticks, and `place` the scope of its pid: this boot of this machine, in this container. `pid` 0 means
    unknown."""

    pid: int = 0
    started: int = 0
    place: str = ""

    @property
    def ended(self) -> bool:
        """Whether it is known to have ended; nothing is known about processes on other machines."""
        if not self.pid or self.place != _place():
            return False
        if self.started:
            return _started(self.pid) != self.started
        try:  # without /proc, as on macOS, a later process with the same pid is taken for it
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


class Lock:
    """A lock that this process holds until `release`, or until it ends."""

    def __init__(self, path: Path, file: int) -> None:
        self.path = path
        self._file = file
        self._identity = _identity(file)
        _held.add(self)

    def release(self) -> None:
        """Release the lock. Idempotent."""
        if self in _held:
            _held.discard(self)
            self.close(clear_owner=True)

    def held_at_its_path(self) -> Lock:
        """This lock, or that of a new file if its own was removed or moved, maybe with its folder: others
        look at the path. Still this one if another process holds that, or the file cannot be created."""
        with contextlib.suppress(OSError):
            if _identity(self._file) != self._identity or _has_name(self._file, self.path):
                return self
            if holder(self.path) is None and (again := acquire(self.path)) is not None:
                self.release()
                return again
        return self

    def close(self, *, clear_owner: bool = False) -> None:
        """Close the file, unless it was closed elsewhere and its descriptor is now that of another file."""
        with contextlib.suppress(OSError):
            if _identity(self._file) == self._identity:
                if clear_owner:
                    os.ftruncate(self._file, 0)
                os.close(self._file)


_held: set[Lock] = set()


def acquire(path: Path) -> Lock | None:
    """Acquire the lock of the file at `path`, which is created; `None` if another process holds it.

    On a file system without locks, it always succeeds. Raises `OSError` if the file cannot be opened.
    """
    with _serialised(path.parent):
        left = _MOST_REMOVALS
        while (file := _locked(path)) is not None:
            left -= 1
            if _has_name(file, path) or not left:
                _write_owner(file)
                return Lock(path, file)
            os.close(file)  # its holder has removed it meanwhile
        return None


def _locked(path: Path) -> int | None:
    """The file at `path`, locked; `None` if another process holds it. Raises `OSError`."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    if _lock(file, fcntl.LOCK_EX, _SECONDS_TO_SHARE):
        return file
    left_over = _read_owner(file).ended
    os.close(file)
    if not left_over:
        return None
    # Descendants of a dead holder have it; they may keep the file, unlinked.
    path.unlink(missing_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    if _lock(file, fcntl.LOCK_EX, 0):
        return file
    os.close(file)
    return None


def holder(path: Path) -> Process | None:
    """The process that holds the lock of the file at `path`, or `None`."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        if _lock(file, fcntl.LOCK_SH, 0):
            return None
        process = _read_owner(file)
    finally:
        os.close(file)
    return None if process.ended else process


@contextlib.contextmanager
def folder_locked(folder: Path) -> Iterator[None]:
    """Lock a folder itself, without a lock file, while something is created in it.

    Continues without it after some seconds: a user's `flock . fmstune train` holds it until the end, and a
    file system may not support locks of folders (NFS). At worst, one of two attempts then fails. Raises
    `OSError` if the folder does not exist.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        until = time.monotonic() + _SECONDS_FOR_FOLDER
        while time.monotonic() < until:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:
                break
        yield
    finally:
        os.close(handle)


def describe(process: Process | None) -> str:
    """Describe the holder of a lock, with its pid, which means nothing here if it is on another machine."""
    if process is None or not process.pid:
        return "another process"
    where = "" if process.place == _place() else ", on another machine or in another container"
    return f"another process (pid {process.pid}{where})"


def this_process() -> Process:
    """This process."""
    return Process(os.getpid(), _started(os.getpid()) or 0, _place())


def write_owner(path: Path) -> None:
    """Record this process as the owner of a file that it has created, for `owner`."""
    with contextlib.suppress(OSError):  # as in `_write_owner`
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            _write_owner(file)
        finally:
            os.close(file)


def owner(path: Path) -> Process:
    """The process recorded as the owner of a file; unknown if there is none."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return Process()
    try:
        return _read_owner(file)
    finally:
        os.close(file)


def _lock(file: int, how: int, patience: float) -> bool:
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(_SLEEP)
        except OSError:  # a file system without locks
            return True
        else:
            return True


@contextlib.contextmanager
def _serialised(directory: Path) -> Iterator[None]:
    """Serialise processes that find a dead holder: the second must not remove the first one's new file."""
    try:
        file = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield  # opening the lock's own file reports the error
        return
    try:
        _lock(file, fcntl.LOCK_EX, 1.0)
        yield
    finally:
        os.close(file)


def _write_owner(file: int) -> None:
    with contextlib.suppress(OSError):  # a full disk: the lock holds, without a name
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(asdict(this_process())).encode(), 0)


def _read_owner(file: int) -> Process:
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        raw = json.loads(os.pread(file, 4096, 0))
        return Process(int(raw["pid"]), int(raw["started"]), str(raw["place"]))
    return Process()


def _started(pid: int) -> int | None:
    """The start time of a process, in the kernel's ticks; `None` if it has ended, or there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    # A zombie does not hold locks any more.
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return os.uname().nodename


def _identity(file: int) -> tuple[int, int]:
    found = os.fstat(file)
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else (0, 0)


def _has_name(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _release_in_child() -> None:
    for lock in _held:
        lock.close()
    _held.clear()


os.register_at_fork(after_in_child=_release_in_child)
