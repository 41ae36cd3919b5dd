"""Call third-party code with a deadline, and exit the process in time after such calls.

A deadline needs a second thread: Python cannot interrupt a call from outside. It is safe for the caller,
which waits meanwhile, so that nothing is read while it is being changed. An abandoned call gets an exception
at its next bytecode instruction, so that it does not continue in the background. Code that hangs inside an
extension while holding the GIL cannot be handled: then no thread runs, including the caller's.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

_longest = 0.0
"""The longest deadline of all calls in this process."""


_SLICE = 0.5
"""A signal that arrives just before a wait does not interrupt it: this is the maximum delay of Ctrl-C."""
_MOST_DELAY = 1.0
"""How many seconds longer than it should a wait takes at most, unless the process is stopped meanwhile."""


class DeadlineOver(Exception):
    """A call did not return in time; its thread makes no further calls."""


class CallAbandoned(BaseException):
    """Raised in an abandoned call, in its own thread."""


class DeadlineThread:
    """Makes calls one after the other in a dedicated thread: SDKs keep connections and stacks per thread.

    The thread is a daemon, and by default so are threads started from it: none of them keeps the process from
    exiting.
    """

    def __init__(self, name: str, seconds: float) -> None:
        global _longest
        _longest = max(_longest, seconds)
        self.seconds = seconds
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._pid = os.getpid()
        self._over = False
        self._thread = threading.Thread(target=self._work, daemon=True, name=name)
        self._thread.start()

    def call(self, function: Callable[[], Any]) -> Any:
        """Return the function's result. Raises its exceptions, and `DeadlineOver` if it takes too long.

        A nested call runs immediately. A no-op in a forked child, which does not have the thread.
        """
        if threading.current_thread() is self._thread:
            return function()
        if os.getpid() != self._pid:
            return None
        done: Future[Any] = Future()
        self._calls.put((done, function))
        left, at = self.seconds, time.monotonic()
        while left > 0 or done.done():
            try:
                return done.result(max(0.0, min(left, _SLICE)))
            except FutureTimeoutError:
                if done.done() and done.exception() is not None:  # raised by the function
                    raise
            passed, at = time.monotonic() - at, time.monotonic()
            # A process that was stopped (Ctrl-Z) took no time.
            left -= passed if passed < _SLICE + _MOST_DELAY else _SLICE
        self._over = True
        self.interrupt()
        raise DeadlineOver(f"it did not return within {self.seconds:g} s")

    def interrupt(self) -> None:
        """Make an abandoned call end at its next instruction. Repeat it from time to time, for code that
        catches everything."""
        if self._over and self._thread.is_alive() and os.getpid() == self._pid:
            ident = ctypes.c_ulong(self._thread.ident or 0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(CallAbandoned))

    def close(self) -> None:
        """Let the thread end after the pending calls."""
        self._calls.put(None)

    def _work(self) -> None:
        with contextlib.suppress(CallAbandoned):
            while not self._over and (task := self._calls.get()) is not None:
                done, function = task
                try:
                    result = function()
                except BaseException as error:
                    done.set_exception(error)
                else:
                    done.set_result(result)


def end_in_time(code: int) -> None:
    """Make this process, whose work is done, exit with the code within the deadline of the third-party code
    that was called here: threads left by an SDK, and its exit handlers (Aim joins a queue), may take
    forever."""
    if not _longest:
        return

    def end() -> None:
        time.sleep(_longest)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)

    threading.Thread(target=end, daemon=True, name="end").start()
