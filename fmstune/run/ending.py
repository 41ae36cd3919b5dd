"""Handle the signals that stop a run, before its journal is begun, and from its first line to the last."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from fmstune.errors import Interrupted
from fmstune.launch.environment import is_main_process
from fmstune.system.handlers import Handlers


class StopSignals:
    """Raises `Interrupted` on a signal: by default, it would end the process, and the journal would have no
    end. While the end is written, a signal is held back until `release`.

    torchrun sends SIGTERM to the ranks when one has failed, at the same time as they find their own errors. A
    no-op in a thread, where Python cannot set handlers.
    """

    def __init__(self) -> None:
        self._handlers = Handlers(self._handle)
        self._on_hold = False
        self._pending: int | None = None
        self._raised: int | None = None

    def watch(self) -> None:
        """Start handling signals."""
        if threading.current_thread() is threading.main_thread():
            self._handlers.install()

    def hold(self) -> None:
        """Hold back signals from here on."""
        self._on_hold = True

    def release(self) -> None:
        """Raise `Interrupted` if a signal was held back, and on further signals."""
        self._on_hold = False
        if self._pending is not None:
            pending, self._pending = self._pending, None
            raise Interrupted(pending)

    def raise_again(self) -> None:
        """Raise `Interrupted` if a signal has come: the code that it interrupted may have dropped that, such
        as one of the finalisers that run during an import."""
        if self._raised is not None:
            raise Interrupted(self._raised)

    def leave(self) -> None:
        """Restore the previous handlers; an ignored SIGHUP stays ignored."""
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._handlers.remove(ignore=[signal.SIGHUP] if ignored else [])

    def _handle(self, signum: int) -> None:
        if not self._on_hold:
            self._raised = signum
            raise Interrupted(signum)
        self._pending = signum


@contextlib.contextmanager
def stoppable() -> Iterator[StopSignals]:
    """Raise `Interrupted` on a signal: by default, it would end the process, and leave what it has started
    and created. Only in rank zero: others wait for it in calls that no Python handler can interrupt."""
    signals = StopSignals()
    if is_main_process():
        signals.watch()
    try:
        yield signals
    finally:
        signals.leave()
