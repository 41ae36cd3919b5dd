"""Ends the workers of a session in which nothing happens any more, so that it ends, too, and names its tests.

The time limit of a test (pytest-timeout) is a signal that the worker's main thread has to handle. A process
that is stopped, waits in C code or has the timer changed never does, and the session would wait forever.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import select
import signal
import sys
import threading
from pathlib import Path

_ENDS = signal.SIGXCPU
"""Makes a worker print what its threads do, and ends it. No test sets its handler."""
_PIDS = "*.worker"


def can_be_ended(folder: Path, name: str) -> None:
    """Let the controller end this process, a worker."""
    faulthandler.register(_ENDS, file=os.dup(2), chain=True)  # not to the file in which pytest captures 2
    (folder / f"{name}.worker").write_text(str(os.getpid()))


class Hung:
    """The controller's plugin: ends the workers once no test has begun or ended for so many seconds. xdist
    reports each test that ran in them as failed, and starts other workers for the rest."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self._folder, self._seconds = folder, seconds
        self._running: set[str] = set()
        self._progress = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test has begun: watch from the first one on."""
        self._running.add(nodeid)
        self._progress.set()
        if not self._thread.ident:
            self._thread.start()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """A test has ended."""
        self._running.discard(nodeid)
        self._progress.set()

    def pytest_unconfigure(self) -> None:
        """End the watch."""
        self._ended = True
        self._progress.set()

    def _watch(self) -> None:
        while not self._ended:
            self._progress.clear()
            if not self._progress.wait(self._seconds):
                self._end_workers()

    def _end_workers(self) -> None:
        running = ", ".join(sorted(self._running)) or "no test"
        print(f"\nnothing for {self._seconds:g} s; running: {running}", file=sys.stderr, flush=True)
        for path in self._folder.glob(_PIDS):
            pid = int(path.read_text())
            path.unlink()
            with contextlib.suppress(ProcessLookupError):
                _end(pid)


def _end(pid: int) -> None:
    file = os.pidfd_open(pid)
    os.kill(pid, _ENDS)
    os.kill(pid, signal.SIGCONT)
    if not select.select([file], [], [], 60)[0]:
        os.kill(pid, signal.SIGKILL)
    os.close(file)
