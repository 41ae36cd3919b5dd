"""Two runs in one run of a tracker: a run that was resumed from another's checkpoint continues that run, or
a run's folder was copied or restored from a backup, so that it has two futures. A mark in the service
records which one owns its latest points; otherwise two runs would write the same steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fmstune.trackers.records import RunStart

MARK = "fmstune"
"""The namespace of params that holds the mark."""


def mark(start: RunStart) -> dict[str, Any]:
    """The mark: which fmstune run wrote last, where its event numbers start, and which sessions wrote
    them."""
    session = start.sessions[-1] if start.sessions else start.run_id
    return {"run_id": start.run_id, "after": start.after, "session": session}


def is_of_another(found: Any, start: RunStart) -> bool:
    """Whether the mark shows that another run, or another future of this run, has continued the tracker's
    run from where this one would, or from later on."""
    if not isinstance(found, Mapping) or not isinstance(found.get("after"), int):
        return False  # none, or an earlier version's
    if found.get("run_id") != start.run_id:
        return bool(found["after"] >= max(start.after, 1))
    session = found.get("session")
    return isinstance(session, str) and bool(start.sessions) and session not in start.sessions


def is_another_runs(found: Any, start: RunStart) -> bool:
    """Whether the mark shows that a tracker's run must not be written by this run. A run that the
    environment selects, rather than this run's own past, may belong to any run."""
    owner = found.get("run_id") if isinstance(found, Mapping) else None
    asked = start.tracker_run_id is None and owner not in (None, start.run_id)
    return asked or is_of_another(found, start)


def note(start: RunStart) -> str:
    """The message for a run that does not continue the tracker's run."""
    return f"a run of its own there, as another run continues {start.tracker_run_id or start.new_run_id}"
