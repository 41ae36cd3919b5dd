"""Trackers used standalone, in a script or in the user's own Trainer.

They have no journal and no process of their own, so this module keeps their exceptions from the training.
It cannot do that for a hang.
"""

from __future__ import annotations

import atexit
import functools
import logging
import multiprocessing
import multiprocessing.util
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from fmstune.access import in_words
from fmstune.errors import is_stop
from fmstune.secrets.redaction import hide
from fmstune.text import counted
from fmstune.trackers.records import Receiver, Status, TrackerError
from fmstune.trackers.terminated import close_when_terminated, restore

logger = logging.getLogger("fmstune")

# In an outage each call may take its SDK's full time limit; a refused call costs nothing.
_MOST_OUTAGES, _MOST_REFUSALS = 3, 20
MOST_APPEARED = 100
"""How many metrics a tracker is asked to make visible; each takes Aim up to a tenth of a second."""
_BEFORE_OTHERS = 1000
"""The priority of closing a run, before what the SDK ends at the same time."""


class Guard:
    """Call a tracker without ever raising into the caller's code, unless `strict`.

    The first error is logged. A tracker that cannot be opened, or that fails several times in a row, is not
    called again. `lost` counts the values that were not delivered.
    """

    def __init__(self, name: str, *, strict: bool = False) -> None:
        self.lost = 0
        self.given_up = False
        self._name = name
        self._strict = strict
        self._in_a_row = 0
        self._errors = False
        self._told: set[str] = set()

    def attempt(
        self, call: Callable[..., Any], *arguments: Any, values: int = 1, vital: bool = False
    ) -> bool:
        """Whether the call, which delivers this many values, was made and did not raise. If a `vital` call
        fails, no other calls follow."""
        if self.given_up:
            self.lost += values
            return False
        try:
            call(*arguments)
        except BaseException as error:
            if self._strict or _is_from_outside(error):
                raise
            self.lost += values
            self._in_a_row += 1
            most = _MOST_OUTAGES if isinstance(error, OSError) else _MOST_REFUSALS
            self.given_up = vital or self._in_a_row >= most
            self._report_error(error)
            return False
        self._in_a_row = 0
        return True

    def shield(self, call: Callable[[], Any]) -> None:
        """Run code that does not call the tracker: an error is reported but not counted against the
        tracker."""
        try:
            call()
        except BaseException as error:
            if self._strict or _is_from_outside(error):
                raise
            self._report_error(error)

    def refuse(self, why: str) -> None:
        """Report, once, why no more calls are made; the number of lost values is logged when the process
        ends."""
        if why not in self._told:
            self.report(why)
            atexit.register(self.report_lost)

    def report_lost(self) -> None:
        """Report how many values did not reach the tracker, if any."""
        if self.lost:
            self.report(f"not delivered: {counted(self.lost, 'value')}.")

    def close(self, tracker: Receiver, status: Status, error: str | None) -> None:
        """Close the tracker's run; report what the tracker changed or left out, and how many values were not
        delivered."""
        self.attempt(tracker.close, status, error, values=0)
        self.shield(lambda: self._report_adapted(tracker))
        self.report_lost()

    def _report_adapted(self, tracker: Receiver) -> None:
        for change in tracker.adapted:
            self.report(adapted(change))

    def report(self, text: str) -> None:
        """Log a message about the tracker, once, without secrets."""
        if text in self._told:
            return
        self._told.add(text)
        try:
            logger.warning("%s: %s", self._name, hide(text))
        except Exception:  # a user's log handler; there is nowhere else to report it
            self._told.discard(text)

    def _report_error(self, error: BaseException) -> None:
        cause = described(error).rstrip(".")
        if self.given_up:
            self.report(f"{cause}. The training continues without this tracker.")
        elif not self._errors:
            self.report(f"{cause}. The training continues; later errors are counted.")
        self._errors = True


def described(error: BaseException) -> str:
    """An error in one line: its type, and its message if `str` works."""
    try:
        text = in_words(error) or str(error)
    except BaseException as worse:
        if _is_from_outside(worse):
            raise
        text = ""
    kind = "" if isinstance(error, TrackerError) else type(error).__name__
    return ": ".join(part for part in (kind, text) if part)


def _is_from_outside(error: BaseException) -> bool:
    """Whether an error comes from the user or from a signal handler of the process rather than from the
    called code: a handler of SIGTERM that calls `sys.exit` interrupts whatever is running."""
    if is_stop(error):
        return True
    handlers = (signal.getsignal(number) for number in signal.valid_signals())
    codes = {getattr(getattr(each, "__func__", each), "__code__", None) for each in handlers} - {None}
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))


def adapted(change: str) -> str:
    """The message about a change by the normaliser or the tracker, for a run without a journal."""
    left_out = re.sub(r"(kept )?in the journal only", "left out", change)
    return re.sub(r" \(\d+ values\)$", "", left_out)  # reported at the first one


@dataclass
class _Ending:
    """How the run of a tracker is closed at the end of the process."""

    tracker: Receiver
    guard: Guard
    pid: int
    training: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _finalizer: multiprocessing.util.Finalize | None = None

    def register(self) -> None:
        """Have the run closed when this process ends. One that `multiprocessing` has forked ends without the
        handlers of `atexit`."""
        if multiprocessing.parent_process() is None:
            atexit.register(self.close)
        else:
            self._finalizer = multiprocessing.util.Finalize(None, self.close, exitpriority=_BEFORE_OTHERS)

    def unregister(self) -> None:
        """Undo `register`."""
        atexit.unregister(self.close)
        if self._finalizer is not None:
            self._finalizer.cancel()

    def close(self) -> None:
        """Close the run with the status known so far. Does nothing in a forked child."""
        self.close_as(*_status(self.training))

    def close_as(self, status: Status, error: str | None = None) -> None:
        """Close the run with this status. Does nothing in a forked child."""
        if os.getpid() != self.pid:
            return
        with self._lock:  # the process must not end while a thread closes the run
            self.guard.close(self.tracker, status, error)


_endings: dict[int, _Ending] = {}


def close_at_exit(tracker: Receiver, guard: Guard | None = None) -> None:
    """Close the tracker's run when the process ends: `failed` after an uncaught error or in the middle of a
    training, `interrupted` by Ctrl-C, SIGTERM or SIGHUP, else `finished`.

    Call it once the run is open, so that it runs before the exit handlers that the SDK has registered.
    """
    ending = _endings.get(id(tracker))
    if ending is None:
        ending = _endings[id(tracker)] = _Ending(tracker, guard or Guard(tracker.name), os.getpid())
        ending.register()
        close_when_terminated(_interruptions, _is_closing)
    elif guard is not None:
        ending.guard = guard


def are_used() -> bool:
    """Whether trackers are used standalone in this process."""
    return any(ending.pid == os.getpid() for ending in _endings.values())


def closed(tracker: Receiver) -> None:
    """Forget a tracker whose run has been closed."""
    if (ending := _endings.pop(id(tracker), None)) is not None:
        ending.unregister()
    if not _endings:
        restore()


def _interruptions() -> list[Callable[[], None]]:
    return [functools.partial(ending.close_as, "interrupted") for ending in _endings.values()]


def _is_closing(frame: FrameType | None) -> bool:
    """Whether code at this frame closes one of the trackers."""
    while frame is not None:
        if frame.f_code.co_name in ("close", "close_as"):
            found = frame.f_locals.get("self")
            if any(found is ending or found is ending.tracker for ending in _endings.values()):
                return True
        frame = frame.f_back
    return False


def note_training(tracker: Receiver, *, going: bool) -> None:
    """Record whether a training is running: a process that ends in the middle of one has failed."""
    if (ending := _endings.get(id(tracker))) is not None:
        ending.training = going


def status_so_far(tracker: Receiver) -> tuple[Status, str | None]:
    """How a run that is closed now has ended: in the middle of a training, it has failed, with the exception
    that is being handled, or was interrupted by it."""
    ending = _endings.get(id(tracker))
    return _status_after(sys.exc_info()[1]) if ending is not None and ending.training else ("finished", None)


def _status(training: bool) -> tuple[Status, str | None]:
    # The interpreter keeps the exception that ended it; a notebook keeps the last one that it displayed.
    # A worker of `multiprocessing` is still handling it.
    error = getattr(sys, "last_value", None) or sys.exc_info()[1]
    if isinstance(error, SystemExit):
        error = None
    if not training and (error is None or hasattr(sys, "ps1")):
        return "finished", None
    return _status_after(error)


def _status_after(error: BaseException | None) -> tuple[Status, str | None]:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", None
    return "failed", None if error is None else hide(described(error))
