"""What a process shares with the children that it forks: one lock, and a few counters.

A lock of `threading` is copied by a fork, held or not; one of `flock` is shared by it, so that it keeps
nobody out. A record lock of POSIX belongs to a process and ends with it: it keeps parent and children
apart, however they die. It is on a file that has no name, so that nobody gives it back by closing another.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import tempfile
import time

_SECONDS_TO_WAIT = 2.0
"""A process that is stopped while it has the lock must not stop the training."""
_SLEEP = 0.0005

LAST, END, GENERATION, UNWRITTEN, SEALED, LATE = range(6)
"""The counters: the number of the last event; where the next line begins, in bytes; how often the journal was
written again, or below 0 when its writer has closed it; events of children that are not in the journal;
whether the run has its status, so that nothing may follow; events of children that came after it."""


class Family:
    """Counters that parent and children see and change, one at a time between `acquire` and `release`."""

    def __init__(self) -> None:
        self.counters = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")
        self.is_shared = False
        """Whether there was a child yet; without one, nobody has to be kept out."""
        self.gave_up = False
        """Whether the lock was not to be had at the last try: until it is, nobody waits for it again."""
        self._file = _nameless()
        self._inode = os.fstat(self._file).st_ino

    def acquire(self) -> bool:
        """Get the lock, or say that it is not to be had in time. Of tries in a row that fail the first one
        waits: a process that stays stopped must not cost the training a wait at each event."""
        until = 0.0
        while True:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                until = until or time.monotonic() + _SECONDS_TO_WAIT
                if self.gave_up or time.monotonic() > until:
                    self.gave_up = True
                    return False
                time.sleep(_SLEEP)
            except OSError:  # somebody has closed all files of this process: children are not kept apart
                return True
            else:
                self.gave_up = False
                return True

    def release(self) -> None:
        """Give the lock to the next one."""
        with contextlib.suppress(OSError):  # as in `acquire`
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the lock of this process; its children keep theirs."""
        with contextlib.suppress(OSError):
            if os.fstat(self._file).st_ino == self._inode:
                os.close(self._file)


def _nameless() -> int:
    if hasattr(os, "memfd_create"):  # on Linux: it needs no disk
        return os.memfd_create("fmstune-journal", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
