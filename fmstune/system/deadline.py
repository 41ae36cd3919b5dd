"""Calls of foreign code with a deadline, and a process that ends on time after such calls.

A deadline needs a second thread: Python can interrupt no call from outside. It is safe for whoever waits: the
caller stands still meanwhile, so that nothing is read while it is being changed, and what is given up gets an
exception at its next instruction, so that it does nothing more behind the caller's back. What can't be helped
is code that hangs inside an extension and keeps Python's lock: then no thread runs, the caller's neither.
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
"""The longest deadline of those that calls had in this process."""


_SLICE = 0.5
"""A signal that comes just before a wait begins does not interrupt it: Ctrl-C waits so long at most."""


class DeadlineOver(Exception):
    """A call did not return in time; its thread makes no further one."""


class GivenUp(BaseException):
    """What a call is given up with, in its own thread."""


class DeadlineThread:
    """Makes calls one after the other in a thread of their own: SDKs keep connections and stacks by thread.

    The thread is a daemon, and so are those that are started from it, unless they are made otherwise: none of
    them keeps the process from its end.
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
        """What the function returns. Raises what it raises, `DeadlineOver` when it takes too long.

        A call that is made from within a call is made at once. In a forked child, which has no such thread,
        nothing is called.
        """
        if threading.current_thread() is self._thread:
            return function()
        if os.getpid() != self._pid:
            return None
        done: Future[Any] = Future()
        self._calls.put((done, function))
        until = time.monotonic() + self.seconds
        while (left := until - time.monotonic()) > 0 or done.done():
            try:
                return done.result(max(0.0, min(left, _SLICE)))
            except FutureTimeoutError:
                if done.done() and done.exception() is not None:  # the function's own
                    raise
        self._over = True
        self.insist()
        raise DeadlineOver(f"it did not return within {self.seconds:g} s")

    def insist(self) -> None:
        """Have a call that was given up end at its next instruction. To be repeated now and then, for code
        that catches everything."""
        if self._over and self._thread.is_alive() and os.getpid() == self._pid:
            ident = ctypes.c_ulong(self._thread.ident or 0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(GivenUp))

    def close(self) -> None:
        """Let the thread end after the calls that were made."""
        self._calls.put(None)

    def _work(self) -> None:
        with contextlib.suppress(GivenUp):
            while not self._over and (task := self._calls.get()) is not None:
                done, function = task
                try:
                    result = function()
                except BaseException as error:
                    done.set_exception(error)
                else:
                    done.set_result(result)


def end_in_time(code: int) -> None:
    """Have this process end with the exit code, now that nothing is left to do, within the deadline of the
    foreign code that was called here: threads that an SDK has left, and what it does at the end of the
    interpreter (Aim joins a queue there), may take for ever."""
    if not _longest:
        return

    def end() -> None:
        time.sleep(_longest)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)

    threading.Thread(target=end, daemon=True, name="end").start()
