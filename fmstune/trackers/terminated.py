"""Runs that are open in somebody's own process when a scheduler ends it with SIGTERM, or a closed terminal
with SIGHUP: Python's default for both ends the process at once, without what is registered with `atexit`.

A disposition that is not the default belongs to somebody, and is left alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
# Schedulers kill 10 (Docker) to 30 seconds (Slurm, Kubernetes, torchrun) later.
_SECONDS_TO_CLOSE = 5.0

_find: Callable[[], list[Callable[[], None]]] = list
_registered = False
_mask = threading.local()


def close_when_terminated(find: Callable[[], list[Callable[[], None]]]) -> None:
    """From here on, a signal that would end the process first calls what `find` finds, for some seconds.

    Does nothing in a thread, where Python can set no handler.
    """
    global _find, _registered
    _find = find
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _SIGNALS:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _terminated)
    if not _registered:
        os.register_at_fork(
            before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
        )
        _registered = True


def restore() -> None:
    """Restore the default, where the handler is still ours."""
    for number in _SIGNALS:
        if signal.getsignal(number) is _terminated:
            with contextlib.suppress(ValueError):  # in a thread; the handler then has nothing to close
                signal.signal(number, signal.SIG_DFL)


def _before_fork() -> None:
    # A signal that comes between the fork and `restore` would be lost: Python forgets in a child what its
    # handlers have not been called for yet, and who has sent SIGTERM to a worker waits without a limit.
    if any(signal.getsignal(number) is _terminated for number in _SIGNALS):
        _mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def _after_fork() -> None:
    before = _mask.__dict__.pop("before", None)
    if before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _after_fork_in_child() -> None:
    restore()  # a worker of a data loader has nothing to close, and ends at once as it did before
    _after_fork()


def _terminated(number: int, frame: FrameType | None) -> None:
    # A second signal ends the process now.
    for each in _SIGNALS:
        if signal.getsignal(each) is _terminated:
            signal.signal(each, signal.SIG_DFL)
    try:
        # In threads: what the signal has interrupted here may hold a lock that closing needs, and one
        # service that does not answer keeps no other run open.
        closing = [threading.Thread(target=close, daemon=True) for close in _find()]
        for thread in closing:
            thread.start()
        until = time.monotonic() + _SECONDS_TO_CLOSE
        for thread in closing:
            thread.join(max(until - time.monotonic(), 0))
    finally:
        os.kill(os.getpid(), number)
