"""The name and labels of a run according to its newest session: a resumed run may have new ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmstune.delivery.journal.encoding import loads
from fmstune.delivery.journal.header import Header, sorted_by
from fmstune.delivery.journal.reader import RESUME, JournalReader, lines_with
from fmstune.trackers.values.plain import text_of


@dataclass(frozen=True, slots=True)
class Labels:
    """The name, the group, the tags and the notes of a run: `run.name` and its like."""

    name: str
    group: str | None = None
    tags: tuple[str, ...] = ()
    notes: str | None = None

    def fields(self) -> dict[str, Any]:
        """Their fields in the line of a resumption."""
        return {"run": self.name, "group": self.group, "tags": list(self.tags), "notes": self.notes}


def labels_of(header: Header) -> Labels:
    """The labels that a run started with."""
    return Labels(header.run, header.group, header.tags, header.notes)


def labels(path: Path) -> Labels:
    """The labels of the newest session of the run with the journal at `path`. Raises `OSError`,
    `JournalError`."""
    found = labels_of(JournalReader(path).header)
    for line in lines_with(path, RESUME):
        found = _of_resumption(line) or found
    return found


def _of_resumption(line: bytes) -> Labels | None:
    try:
        raw = loads(line)
        said = raw["kind"] == "resume" and isinstance(raw, Mapping) and "run" in raw
        return Labels(text_of(raw["run"]), **sorted_by(raw)) if said else None
    except (ValueError, TypeError, KeyError, RecursionError):  # not an event: a damaged line
        return None
