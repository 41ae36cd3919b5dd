"""A full disk, as the processes of a tracker see it."""

from __future__ import annotations

import contextlib
import resource

import psutil

from tests.support.warm_shippers import around


class FullDisk:
    """Prevents the processes of a tracker from growing any file beyond a size, until it is freed.

    A full disk would need a file system of its own, and so root. The kernel's file-size limit for a process
    refuses writes in the same way, for any user; only the error message differs.
    """

    def __init__(self, tracker: str) -> None:
        self._tracker = tracker

    def fill(self, size: int) -> None:
        """Set the limit, for processes that are running and those that start later."""
        own = around[self._tracker]
        own.limits = [(resource.RLIMIT_FSIZE, size)]
        assert own.pid is not None
        limited: set[psutil.Process] = set()
        # A process inherits its parent's limit, unless it started before the parent had one.
        with contextlib.suppress(psutil.Error):  # a process that ends meanwhile
            found = {psutil.Process(own.pid)}
            while new := found - limited:
                for process in new:
                    with contextlib.suppress(psutil.Error):
                        process.rlimit(psutil.RLIMIT_FSIZE, (size, size))
                limited |= new
                found = set(psutil.Process(own.pid).children(recursive=True))

    def free(self) -> None:
        """Lift the limit for new processes; a process that has it keeps it."""
        around[self._tracker].limits = []

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *error: object) -> None:
        self.free()
