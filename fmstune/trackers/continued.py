"""Runs that were resumed from another one's checkpoint, and continue its run in a tracker. A mark in the
service tells which run does: two of them would take each other's steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fmstune.trackers.records import RunStart

MARK = "fmstune"
"""The namespace of params that has the mark."""


def mark(start: RunStart) -> dict[str, Any]:
    """Which run of fmstune a tracker's run holds last, and where its numbers begin."""
    return {"run_id": start.run_id, "after": start.after}


def is_of_another(found: Any, start: RunStart) -> bool:
    """Whether a mark says that another run has continued the tracker's run from where this one would, or
    from later on."""
    if not isinstance(found, Mapping) or not isinstance(found.get("after"), int):
        return False  # nobody's, or that of an earlier version
    return found.get("run_id") != start.run_id and found["after"] >= max(start.after, 1)


def note(start: RunStart) -> str:
    """What the user is told of a run that does not continue the tracker's run."""
    return f"a run of its own there, as another run continues {start.tracker_run_id}"
