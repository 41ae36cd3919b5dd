"""Trackers that crash or hang their process: SIGKILL, SIGSEGV, `os._exit`, and a call that never returns.

A dying process cannot report the event at fault. So the death of a shipper makes its successors careful, up
to the last event that it can have known: they record in the ledger which event they are about to deliver.
Then a death counts like an exception, as a failed attempt at that event, and the process that started the
shipper records it here. That process also ends a shipper that hangs, which counts as dead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path

from fmstune.delivery.journal.reader import final_status, last_seq
from fmstune.delivery.ledger import Ledger, load_ledger
from fmstune.delivery.suspicion import MOST_ATTEMPTS
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR

_MOST_DEATHS = 100
"""How many consecutive processes may die, at successive events with nothing accepted, before giving up."""


def note_death(directory: Path, tracker: str, cause: str) -> Ledger:
    """Record in the ledger that the process that wrote it died of `cause`; return the new ledger.

    The process must have ended. A full disk only affects what is reported.
    """
    ledger = load_ledger(directory, tracker) or Ledger(tracker)
    try:
        last = last_seq(directory / TRACKING_DIR / JOURNAL_NAME)
    except OSError:  # deleted, until the run writes it again
        last = ledger.highest
    ledger = after_death(ledger, cause, last)
    with contextlib.suppress(OSError):
        ledger.save(directory)
    return ledger


def after_death(ledger: Ledger, cause: str, last: int) -> Ledger:
    """The ledger after the process that wrote it has died; `last` is the last event of the journal."""
    suspicion = ledger.suspicion
    if ledger.trying:
        suspicion = suspicion.failed(ledger.trying, cause, "died", leads=True)
    return dataclasses.replace(
        ledger,
        careful=max(last, ledger.careful),
        suspicion=suspicion.ended(),
        state="behind",
        error=cause,
        error_time=time.time(),
    )


def can_progress(directory: Path, before: Ledger, now: Ledger) -> bool:
    """After a death, with the ledger `before` and after it: whether another process may get further, or find
    the event that kills them."""
    if now.careful > before.careful <= now.delivered:
        return True  # it was not careful any more; the next one is
    mark = now.suspicion.mark(now.trying)
    if mark is None or now.suspicion.rounds >= _MOST_DEATHS:
        return False  # it dies before any event, or died at many without accepting one
    final = final_status(directory / TRACKING_DIR / JOURNAL_NAME)
    at_close = final is not None and final.seq == now.trying
    return not (at_close and mark.fails >= MOST_ATTEMPTS)
