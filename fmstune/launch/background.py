"""End the background activity that libraries start in a process during a run."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

_WORKERS = "torch.utils.data._utils.signal_handling"
"""torch's module that watches the workers of data loaders."""


def background() -> Callable[[], None]:
    """Return a function that undoes what libraries start from now on: tqdm's thread, torch's handler for the
    exit of a worker, and multiprocessing's choice of a start method."""
    threads = set(threading.enumerate())
    handler, watched = signal.getsignal(signal.SIGCHLD), _watched()
    method = multiprocessing.get_start_method(allow_none=True)

    def end() -> None:
        for thread in threading.enumerate():
            if thread not in threads and type(thread).__name__ == "TMonitor":
                monitor: Any = thread
                monitor.exit()  # the next bar starts another one
        if _watched() and not watched:
            # torch sets it only in the main thread, and Python can change it only there.
            with contextlib.suppress(ValueError):
                signal.signal(signal.SIGCHLD, handler if handler is not None else signal.SIG_DFL)
                sys.modules[_WORKERS]._SIGCHLD_handler_set = False  # type: ignore[attr-defined]
        if method is None and multiprocessing.get_start_method(allow_none=True) is not None:
            # Otherwise the program could no longer choose one.
            multiprocessing.set_start_method(None, force=True)

    return end


def _watched() -> bool:
    return bool(getattr(sys.modules.get(_WORKERS), "_SIGCHLD_handler_set", False))
