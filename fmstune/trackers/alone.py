"""Trackers used by themselves, in a script or in a Trainer of somebody's own.

There is no journal and no process of their own then, so what they raise is kept from the training here.
A hang can't be.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fmstune.config.wording import counted
from fmstune.trackers.base import Status, Tracker, TrackerError

logger = logging.getLogger("fmstune")

# An outage may cost each call its SDK's time limit; what is refused costs nothing.
_MOST_OUTAGES, _MOST_REFUSALS = 3, 20


class Guard:
    """Calls of a tracker that never raise into the caller's code, unless `strict`.

    The first error is logged. A tracker that can't be opened, or that fails several times in a row, is not
    called again. `lost` counts what did not reach it.
    """

    def __init__(self, name: str, *, strict: bool = False) -> None:
        self.lost = 0
        self.given_up = False
        self._name = name
        self._strict = strict
        self._in_a_row = 0
        self._told: set[str] = set()

    def attempt(
        self, call: Callable[..., Any], *arguments: Any, values: int = 1, vital: bool = False
    ) -> bool:
        """Whether the call, which hands over so many values, was made and did not raise. After one that is
        `vital` there are no others."""
        if self.given_up:
            self.lost += values
            return False
        try:
            call(*arguments)
        # An SDK that calls sys.exit must not end the training either.
        except (Exception, SystemExit) as error:
            if self._strict:
                raise
            self.lost += values
            self._in_a_row += 1
            most = _MOST_OUTAGES if isinstance(error, OSError) else _MOST_REFUSALS
            self.given_up = vital or self._in_a_row >= most
            self._tell_error(error)
            return False
        self._in_a_row = 0
        return True

    def tell_lost(self) -> None:
        """Say how much did not reach the tracker, if anything."""
        if self.lost:
            self.tell(f"{counted(self.lost, 'value')} did not reach it.")

    def tell(self, text: str) -> None:
        """Say something of the tracker, once."""
        if text not in self._told:
            self._told.add(text)
            logger.warning("%s: %s", self._name, text)

    def _tell_error(self, error: BaseException) -> None:
        kind = "" if isinstance(error, TrackerError) else type(error).__name__
        cause = ": ".join(part for part in (kind, str(error).rstrip(".")) if part)
        if self.given_up:
            self.tell(f"{cause}. The training goes on without this tracker.")
        elif not self._told:
            self.tell(f"{cause}. The training goes on; later errors are counted.")


def adapted(change: str) -> str:
    """What the normaliser says of a change, for somebody who has no journal."""
    left_out = re.sub(r"(; those points are| and is) (kept )?in the journal only", " and is left out", change)
    return re.sub(r" \(\d+ values\)$", "", left_out)  # said at the first one


@dataclass
class _Ending:
    """How the run of a tracker is closed at the end of the process."""

    tracker: Tracker
    guard: Guard
    pid: int
    training: bool = False

    def close(self) -> None:
        """Close the run with what is known of its end. Does nothing in a forked child."""
        if os.getpid() != self.pid:
            return
        status, error = _status(self.training)
        self.guard.attempt(self.tracker.close, status, error, values=0)
        self.guard.tell_lost()


_endings: dict[int, _Ending] = {}


def close_at_exit(tracker: Tracker, guard: Guard | None = None) -> None:
    """Close the tracker's run when the process ends: `failed` with an error that nobody caught or in the
    middle of a training, `interrupted` by Ctrl-C, else `finished`.

    Call it when the run is open, so that what the SDK has registered for the end of the process comes later.
    """
    ending = _endings.get(id(tracker))
    if ending is None:
        ending = _endings[id(tracker)] = _Ending(tracker, guard or Guard(tracker.name), os.getpid())
        atexit.register(ending.close)
    elif guard is not None:
        ending.guard = guard


def closed(tracker: Tracker) -> None:
    """Forget a tracker whose run has been closed."""
    if (ending := _endings.pop(id(tracker), None)) is not None:
        atexit.unregister(ending.close)


def note_training(tracker: Tracker, *, going: bool) -> None:
    """Note whether a training is going on: a process that ends in the middle of one has failed."""
    if (ending := _endings.get(id(tracker))) is not None:
        ending.training = going


def _status(training: bool) -> tuple[Status, str | None]:
    # The interpreter keeps the exception that it ends with; a notebook, the last one that it has shown.
    error = getattr(sys, "last_value", None)
    if not training and (error is None or hasattr(sys, "ps1")):
        return "finished", None
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", None
    return "failed", None if error is None else f"{type(error).__name__}: {error}"
