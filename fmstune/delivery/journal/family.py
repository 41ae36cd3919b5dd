"""State that a process shares with its forked children: one lock, and a few counters.

A fork copies a `threading` lock, held or not; it shares a `flock` lock, which then excludes no process. A
POSIX record lock belongs to one process and ends with it: it separates parent and children, however they die.
It is on an unnamed file, so that no one releases it by closing another descriptor of the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import tempfile
import time

_SECONDS_TO_WAIT = 2.0
"""A process that is stopped while it holds the lock must not stop the training."""
_SLEEP = 0.0005

LAST, END, GENERATION, UNWRITTEN, SEALED, LATE = range(6)
"""The counters: the number of the last event; the byte at which the next line starts; how often the journal
was rewritten, negative once its writer has closed it; events of children that are not in the journal;
whether the run has its status, so that nothing may follow; events of children that came after it."""


class Family:
    """Counters that parent and children read and change, one at a time between `acquire` and `release`."""

    def __init__(self) -> None:
        self.counters = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")
        self.is_shared = False
        """Whether a child has existed; without one, no lock is needed."""
        self.gave_up = False
        """Whether the last attempt to lock failed: until one succeeds, further attempts do not wait."""
        self._file = _nameless()
        self._inode = os.fstat(self._file).st_ino

    def acquire(self) -> bool:
        """Acquire the lock; return `False` if it is not available in time. Of consecutive failed attempts
        only the first waits: a process that stays stopped must not cost the training a wait at each
        event."""
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
            except OSError:  # all files of this process were closed: children are not separated
                return True
            else:
                self.gave_up = False
                return True

    def release(self) -> None:
        """Release the lock."""
        with contextlib.suppress(OSError):  # as in `acquire`
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close this process's lock; its children keep theirs."""
        with contextlib.suppress(OSError):
            if os.fstat(self._file).st_ino == self._inode:
                os.close(self._file)


def _nameless() -> int:
    if hasattr(os, "memfd_create"):  # on Linux: needs no disk
        with contextlib.suppress(OSError):  # hardened kernels and sandboxes refuse it
            return os.memfd_create("fmstune-journal", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
