"""What records where no run is active: nothing, with a warning where that may surprise."""

from __future__ import annotations

import contextlib
import os
import sys

from fmstune.trackers.base import Tracker
from fmstune.trackers.records import Table

RECORDS = "FMSTUNE_RECORDS"
"""The variable that tells child processes which process records."""
_warned = False


class NoRun(Tracker):
    """The tracker where no run is active."""

    def track_table(self, table: Table) -> None:
        """Do nothing: the default would convert the table to params."""


def no_run() -> Tracker:
    """A tracker that does nothing. Warns, once, in a process that the training started in a way other than a
    fork, and in a script that uses trackers without a run of fmstune."""
    global _warned
    if not _warned and (why := _surprise()):
        _warned = True
        with contextlib.suppress(OSError, ValueError, AttributeError):  # if stderr is closed
            print(f"warning  {why}", file=sys.stderr)
    return NoRun("fmstune")


def _surprise() -> str | None:
    if (trainer := os.environ.get(RECORDS)) is not None:
        return (
            f"fmstune records nothing in process {os.getpid()}, which was not forked by the training "
            f"(process {trainer}): call fmstune.track there, or use the start method fork"
        )
    standalone = sys.modules.get("fmstune.trackers.standalone")
    if standalone is not None and standalone.are_used():
        return (
            "fmstune.track, fmstune.set_params and the like record nothing outside a run of `fmstune train`: "
            "call the methods of the tracker, such as tracker.track"
        )
    return None
