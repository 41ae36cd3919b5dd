"""Creates and reads the journals of runs."""

from __future__ import annotations

import time
import zlib
from pathlib import Path

from fmstune.delivery.journal.reader import Event, Header, JournalReader
from fmstune.delivery.journal.writer import JournalWriter
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.system.locks import Lock

_OPEN: list[JournalWriter] = []


def journal_path(directory: Path) -> Path:
    """The path of a run's journal."""
    return directory / TRACKING_DIR / JOURNAL_NAME


def open_journal(directory: Path, lock: Lock | None = None) -> JournalWriter:
    """Create or continue the journal of a run directory; its lock may already be held."""
    header = Header("id-1", directory.name, time.time(), str(directory.parent))
    journal = JournalWriter(journal_path(directory), header, lock=lock)
    _OPEN.append(journal)
    return journal


def changed(line: bytes, old: bytes, new: bytes) -> bytes:
    """An event's line with other contents, as if it had been written so."""
    text = line.replace(old, new).rpartition(b',"crc":')[0]
    return b'%b,"crc":"%08x"}\n' % (text, zlib.crc32(text))


def make_later_version(path: Path) -> None:
    """Let a later version of fmstune have written this journal."""
    header, *lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([changed(header, b'"version":1', b'"version":2'), *lines]))


def close_journals() -> None:
    """Close the journals that a test left open."""
    while _OPEN:
        _OPEN.pop().close()


def events(directory: Path) -> list[Event]:
    """The events in a run's journal so far; empty while there is no journal."""
    path = journal_path(directory)
    return list(JournalReader(path)) if path.exists() and path.stat().st_size else []


def last_step(directory: Path) -> int:
    """The newest step in the journal of a run."""
    return max((event.step or 0 for event in events(directory)), default=0)
