"""A disk without room, as processes that a test starts see it."""

from __future__ import annotations

import contextlib
import threading

import psutil

from tests.support.warm_shippers import interpreters


class NoRoom:
    """Lets no file of any process that this one has started grow beyond a size, until it is freed.

    A full disk would need a file system of its own, and so root. The kernel's limit for a process refuses
    what is written just so, whoever the user is; only the error's text differs.
    """

    def __init__(self) -> None:
        self._freed = threading.Event()
        self._watcher: threading.Thread | None = None
        self._spared = set(psutil.Process().children(recursive=True))  # servers that other tests share

    def fill(self, size: int) -> None:
        """Begin; processes that are started later are found within milliseconds."""
        self._limit(size)
        self._watcher = threading.Thread(target=self._watch, args=(size,))
        self._watcher.start()

    def free(self) -> None:
        """End; a process that has the limit keeps it."""
        self._freed.set()
        if self._watcher is not None:
            self._watcher.join()

    def __enter__(self) -> NoRoom:
        return self

    def __exit__(self, *error: object) -> None:
        self.free()

    def _watch(self, size: int) -> None:
        while not self._freed.wait(0.01):
            self._limit(size)

    def _limit(self, size: int) -> None:
        # What is limited is so for ever, and so would be the shippers of later tests.
        found = set(psutil.Process().children(recursive=True)) - self._spared
        warm = interpreters()
        for process in found:
            with contextlib.suppress(psutil.Error):
                if process.pid in warm:
                    continue
                process.rlimit(psutil.RLIMIT_FSIZE, (size, size))
