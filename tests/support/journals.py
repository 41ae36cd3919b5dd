"""Journals of runs: making one, and what is in it."""

from __future__ import annotations

import time
from pathlib import Path

from fmstune.delivery.journal.reader import Event, Header, JournalReader
from fmstune.delivery.journal.writer import JournalWriter
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.system.locks import Lock

_OPEN: list[JournalWriter] = []


def journal_path(directory: Path) -> Path:
    """Where the journal of a run is."""
    return directory / TRACKING_DIR / JOURNAL_NAME


def open_journal(directory: Path, lock: Lock | None = None) -> JournalWriter:
    """Begin, or continue, the journal of a run directory, whose lock may have been taken before."""
    header = Header("id-1", directory.name, time.time(), str(directory.parent))
    journal = JournalWriter(journal_path(directory), header, lock=lock)
    _OPEN.append(journal)
    return journal


def close_journals() -> None:
    """Close the journals that a test has left open."""
    while _OPEN:
        _OPEN.pop().close()


def events(directory: Path) -> list[Event]:
    """What is in the journal of a run up to now; nothing, as long as there is no journal."""
    path = journal_path(directory)
    return list(JournalReader(path)) if path.exists() and path.stat().st_size else []


def last_step(directory: Path) -> int:
    """The newest step in the journal of a run."""
    return max((event.step or 0 for event in events(directory)), default=0)
