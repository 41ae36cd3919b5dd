"""Close runs that are open in the user's own process when a scheduler ends it with SIGTERM, or a closed
terminal with SIGHUP: Python's default for both ends the process at once, without calling `atexit` handlers.

A disposition other than the default belongs to someone else and is left alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
# Schedulers kill 10 (Docker) to 30 seconds (Slurm, Kubernetes, torchrun) later.
_SECONDS_TO_CLOSE = 5.0

_find: Callable[[], list[Callable[[], None]]] = list
_is_closing: Callable[[FrameType | None], bool] = bool
_registered = False
_mask = threading.local()


def close_when_terminated(
    find: Callable[[], list[Callable[[], None]]], is_closing: Callable[[FrameType | None], bool]
) -> None:
    """From now on, a signal that would end the process first calls what `find` returns, for a few seconds.
    `is_closing` is whether code at this frame is closing a run already.

    Does nothing in a thread, where Python cannot set handlers.
    """
    global _find, _is_closing, _registered
    _find, _is_closing = find, is_closing
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
    """Restore the default, if the handler is still ours."""
    for number in _SIGNALS:
        if signal.getsignal(number) is _terminated:
            with contextlib.suppress(ValueError):  # in a thread; the handler then has nothing to close
                signal.signal(number, signal.SIG_DFL)


def _before_fork() -> None:
    # A signal between the fork and `restore` would be lost: in a child, Python discards pending signals whose
    # handlers have not run, and a parent that sends SIGTERM to a worker waits without a time limit.
    if any(signal.getsignal(number) is _terminated for number in _SIGNALS):
        _mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def _after_fork() -> None:
    before = _mask.__dict__.pop("before", None)
    if before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _after_fork_in_child() -> None:
    restore()  # a data loader worker has nothing to close, and ends at once as before
    _after_fork()


def _terminated(number: int, frame: FrameType | None) -> None:
    # A second signal ends the process at once.
    for each in _SIGNALS:
        if signal.getsignal(each) is _terminated:
            signal.signal(each, signal.SIG_DFL)
    if not _is_closing(frame):
        _close_and_end(number)
        return
    # The interrupted code goes on when this returns, such as that of a worker that a pool ends while it ends.
    with contextlib.suppress(RuntimeError):  # Python 3.12 starts no thread at its exit, and ends anyway
        threading.Thread(target=_close_and_end, args=(number,), daemon=True).start()


def _close_and_end(number: int) -> None:
    until = time.monotonic() + _SECONDS_TO_CLOSE
    try:
        # In threads: the code that the signal interrupted may hold a lock that closing needs, and one
        # service that does not answer must not keep other runs open.
        closing = [threading.Thread(target=close, daemon=True) for close in _find()]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join(max(until - time.monotonic(), 0))
        while _is_closing(_frame_of_main_thread()) and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        os.kill(os.getpid(), number)


def _frame_of_main_thread() -> FrameType | None:
    if threading.current_thread() is threading.main_thread():
        return None
    return sys._current_frames().get(threading.main_thread().ident or 0)
