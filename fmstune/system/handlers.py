"""Signal handlers for this process that its forked children do not inherit."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Collection
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that stop a run. SIGHUP is the most common end of a long run: its terminal, or the connection
to it, is closed."""


class Handlers:
    """Calls `handle` with the number of each signal. Forked children inherit handlers, and whatever ends a
    child (`Pool`, daemonic processes at interpreter exit) sends SIGTERM and then waits without a timeout. So
    in a child SIGTERM has its previous effect, and so do the other signals, unless `in_child` returns true.

    Only the main thread can set handlers.
    """

    def __init__(
        self, handle: Callable[[int], None], in_child: Callable[[int], bool] = lambda signum: False
    ) -> None:
        self._of_process, self._of_child = handle, in_child
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Handle the signals that stop a run; SIGHUP stays ignored if it was (`nohup`)."""
        for signum in STOPPING:
            if signum != signal.SIGHUP or signal.getsignal(signum) is not signal.SIG_IGN:
                self._before.setdefault(signum, signal.signal(signum, self._handle))
        if self not in _open:
            _open.append(self)

    def remove(self, ignore: Collection[int] = ()) -> None:
        """Restore the previous handlers, but ignore the signals in `ignore` from here on."""
        for signum, handler in self._before.items():
            signal.signal(signum, signal.SIG_IGN if signum in ignore else handler)
        if self in _open:
            _open.remove(self)

    def become_child(self) -> None:
        # A handler that has replaced ours stays.
        if signal.getsignal(signal.SIGTERM) == self._handle:
            signal.signal(signal.SIGTERM, self._before[signal.SIGTERM])

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() == self._process:
            self._of_process(signum)
        elif signum == signal.SIGTERM or not self._of_child(signum):
            before = self._before[signum]
            if callable(before):
                before(signum, frame)
            elif before is not signal.SIG_IGN:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)


_open: list[Handlers] = []
_mask = threading.local()


def _before_fork() -> None:
    # A signal between the fork and `become_child` would be lost: in a child, Python drops signals whose
    # handlers have not been called yet.
    if _open:
        _mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)


def _after_fork() -> None:
    before = _mask.__dict__.pop("before", None)
    if before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _after_fork_in_child() -> None:
    for handlers in reversed(_open):
        handlers.become_child()
    _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
