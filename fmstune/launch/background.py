"""What libraries start in the background of a process while a run is in it, ended after the run."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

_WORKERS = "torch.utils.data._utils.signal_handling"
"""The module of torch that watches the workers of data loaders, from the first one on."""


def background() -> Callable[[], None]:
    """What ends all that is begun from now on: tqdm's thread, the handler that torch sets for the end of a
    worker, and the way to start processes that multiprocessing has settled for."""
    threads = set(threading.enumerate())
    handler, watched = signal.getsignal(signal.SIGCHLD), _watched()
    method = multiprocessing.get_start_method(allow_none=True)

    def end() -> None:
        for thread in threading.enumerate():
            if thread not in threads and type(thread).__name__ == "TMonitor":
                monitor: Any = thread
                monitor.exit()  # the next bar begins another one
        if _watched() and not watched:
            # torch sets it in the main thread alone, and Python changes it nowhere else.
            with contextlib.suppress(ValueError):
                signal.signal(signal.SIGCHLD, handler if handler is not None else signal.SIG_DFL)
                sys.modules[_WORKERS]._SIGCHLD_handler_set = False  # type: ignore[attr-defined]
        if method is None and multiprocessing.get_start_method(allow_none=True) is not None:
            # Else the program could not choose one any more.
            multiprocessing.set_start_method(None, force=True)

    return end


def _watched() -> bool:
    return bool(getattr(sys.modules.get(_WORKERS), "_SIGCHLD_handler_set", False))
