"""Trackers that crash or hang their process: SIGKILL, SIGSEGV, `os._exit`, and a call that never returns.

A process that dies cannot say at which event. So the first death of a shipper makes its successors careful:
they note in the ledger which event they are about to hand over. From then on a death counts as what an
exception is, a failed attempt at that event, and it is written down here by whoever started the process.
A process that hangs is ended by whoever started it, and counts as dead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path

from fmstune.delivery.journal.reader import final_status
from fmstune.delivery.ledger import Ledger, load_ledger
from fmstune.delivery.suspicion import MOST_ATTEMPTS
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR

_MOST_DEATHS = 100
"""Processes in a row that may die, at one event after the other with nothing taken, before it is given up."""


def note_death(directory: Path, tracker: str, cause: str) -> Ledger:
    """Enter into the ledger that the process which wrote it has died of `cause`, and return it as it is now.

    The process must have ended. A disk that has no room for the ledger changes nothing but what is reported.
    """
    ledger = after_death(load_ledger(directory, tracker) or Ledger(tracker), cause)
    with contextlib.suppress(OSError):
        ledger.save(directory)
    return ledger


def after_death(ledger: Ledger, cause: str) -> Ledger:
    """The ledger after the process that wrote it has died."""
    suspicion = ledger.suspicion
    if ledger.trying:
        suspicion = suspicion.failed(ledger.trying, cause, "died", leads=True)
    return dataclasses.replace(
        ledger,
        careful=True,
        suspicion=suspicion.ended(),
        state="behind",
        error=cause,
        error_time=time.time(),
    )


def may_get_further(directory: Path, before: Ledger, now: Ledger) -> bool:
    """After a death, with the ledger `before` and after it: whether another process may get further, or find
    out at which event they die."""
    if not before.careful:
        return True
    mark = now.suspicion.mark(now.trying)
    if mark is None or now.suspicion.rounds >= _MOST_DEATHS:
        return False  # it dies before any event, or has died at many without taking one
    final = final_status(directory / TRACKING_DIR / JOURNAL_NAME)
    at_close = final is not None and final.seq == now.trying
    return not (at_close and mark.fails >= MOST_ATTEMPTS)
