"""Trackers that take their whole process with them: SIGKILL, SIGSEGV, `os._exit`.

A process that dies cannot say at which event. So the first death of a shipper makes its successors careful:
they note in the ledger which event they are about to hand over. From then on a death counts as what an
exception is, a failed attempt at that event, and it is written down here by whoever started the process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path

from fmstune.delivery.ledger import Ledger, load_ledger

MOST_ATTEMPTS = 3
"""After so many failures in a row at one event, the next event is tried: if the tracker takes that one, it
has refused the first."""


class ProcessDied(Exception):
    """A tracker has ended its process; the message says how."""


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
    at = ledger.trying
    if at in ledger.refused:
        cause = f"event {at} was refused: {cause}"
    stuck_at, attempts = ledger.stuck_at, ledger.attempts
    if at and at not in ledger.refused and not _in_doubt(ledger):
        stuck_at, attempts = at, attempts + 1 if at == stuck_at else 1
    return dataclasses.replace(
        ledger,
        careful=True,
        state="failed" if ledger.refused else "behind",
        stuck_at=stuck_at,
        attempts=attempts,
        error=cause,
        error_time=time.time(),
    )


def takes_none(ledger: Ledger) -> bool:
    """Whether the deaths so far, the last one included, are not those of a single event."""
    return ledger.careful and (not ledger.trying or _in_doubt(ledger))


def blames(ledger: Ledger, seq: int) -> bool:
    """Whether the event `seq` has killed so many processes, the last one included, that the next one is to
    be tried instead."""
    return ledger.trying == ledger.stuck_at == seq and ledger.attempts >= MOST_ATTEMPTS


def _in_doubt(ledger: Ledger) -> bool:
    """Whether what was tried last is the event after the one that is stuck, to tell which of them it is."""
    return ledger.attempts >= MOST_ATTEMPTS and ledger.trying > ledger.stuck_at
