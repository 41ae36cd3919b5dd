"""Runs that continue another one's run in a tracker, as they were resumed from its checkpoint, and two
futures of one run, whose folder was copied or restored from a backup. A mark in the service says whose its
latest points are: two runs would take each other's steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fmstune.trackers.records import RunStart

MARK = "fmstune"
"""The namespace of params that has the mark."""


def mark(start: RunStart) -> dict[str, Any]:
    """Which run of fmstune a tracker's run holds last, where its numbers begin, and who wrote them."""
    session = start.sessions[-1] if start.sessions else start.run_id
    return {"run_id": start.run_id, "after": start.after, "session": session}


def is_of_another(found: Any, start: RunStart) -> bool:
    """Whether a mark says that another run has continued the tracker's run from where this one would, or
    from later on, or another future of this run."""
    if not isinstance(found, Mapping) or not isinstance(found.get("after"), int):
        return False  # nobody's, or that of an earlier version
    if found.get("run_id") != start.run_id:
        return bool(found["after"] >= max(start.after, 1))
    session = found.get("session")
    return isinstance(session, str) and bool(start.sessions) and session not in start.sessions


def is_another_runs(found: Any, start: RunStart) -> bool:
    """Whether a mark says that a tracker's run is not this one's to write to. One that the environment asks
    for, rather than the run's own past, may belong to any run."""
    owner = found.get("run_id") if isinstance(found, Mapping) else None
    asked = start.tracker_run_id is None and owner not in (None, start.run_id)
    return asked or is_of_another(found, start)


def note(start: RunStart) -> str:
    """The message for a run that does not continue the tracker's run."""
    return f"a run of its own there, as another run continues {start.tracker_run_id or start.new_run_id}"
