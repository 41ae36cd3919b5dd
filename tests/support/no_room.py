"""A disk without room, as the processes of a tracker see it."""

from __future__ import annotations

import contextlib
import resource

import psutil

from tests.support.warm_shippers import around


class NoRoom:
    """Lets no file of any process of a tracker's grow beyond a size, until it is freed.

    A full disk would need a file system of its own, and so root. The kernel's limit for a process refuses
    what is written just so, whoever the user is; only the error's text differs.
    """

    def __init__(self, tracker: str) -> None:
        self._tracker = tracker

    def fill(self, size: int) -> None:
        """Begin, for the processes that there are and those that are started later."""
        own = around[self._tracker]
        own.limits = [(resource.RLIMIT_FSIZE, size)]
        assert own.pid is not None
        limited: set[psutil.Process] = set()
        # A process has its parent's limit, unless it was started before that had one.
        with contextlib.suppress(psutil.Error):  # one that ends meanwhile
            found = {psutil.Process(own.pid)}
            while new := found - limited:
                for process in new:
                    with contextlib.suppress(psutil.Error):
                        process.rlimit(psutil.RLIMIT_FSIZE, (size, size))
                limited |= new
                found = set(psutil.Process(own.pid).children(recursive=True))

    def free(self) -> None:
        """End; a process that has the limit keeps it."""
        around[self._tracker].limits = []

    def __enter__(self) -> NoRoom:
        return self

    def __exit__(self, *error: object) -> None:
        self.free()
