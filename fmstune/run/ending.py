"""Handle the signals that stop a run, from the first line of its journal to the last."""

from __future__ import annotations

import signal
import threading

from fmstune.errors import Interrupted
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

    def leave(self) -> None:
        """Restore the previous handlers; an ignored SIGHUP stays ignored."""
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._handlers.remove(ignore=[signal.SIGHUP] if ignored else [])

    def _handle(self, signum: int) -> None:
        if not self._on_hold:
            raise Interrupted(signum)
        self._pending = signum
