"""An index of the journals of runs, so that thousands of runs are listed in a second.

It is only a cache: an entry is used only if the state of the run's files has not changed, and then equals the
result of reading them. Each value has a checksum that includes its key. An index that is damaged, of another
version, or deleted is rebuilt; without a writable folder, there is none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fmstune._version import __version__
from fmstune.report.summary import RUNNING, RunDetail, RunLine
from fmstune.report.walk import FoundRun
from fmstune.system.files import cache_folder

_READING = 2  # increase it when the same journal is interpreted differently
_AT_REST = 2_000_000_000
"""The minimum age of the last change to a run's files in nanoseconds: within one tick of a file system's
clock, which may take 2 s, a second change would look like the first one."""
_SECONDS_TO_WAIT = 1.0
_CHECKSUM = 4
_LINE = tuple(each.name for each in dataclasses.fields(RunLine))
_DETAIL = tuple(each.name for each in dataclasses.fields(RunDetail))
_VERSION = zlib.crc32(repr((_READING, __version__, _LINE, _DETAIL)).encode()) & 0x7FFFFFFF
# The line comes before the detail, whose pages a plain list never reads.
_TABLE = "CREATE TABLE runs (path BLOB PRIMARY KEY, state TEXT, line BLOB, detail BLOB)"


def index_path() -> Path:
    """The path of the index."""
    return cache_folder() / "runs.sqlite"


class RunIndex:
    """The index in the file at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database = self._open()

    def lines(self, runs: Sequence[FoundRun]) -> dict[str, RunLine]:
        """The lines of the runs whose entries are up to date, by real path."""
        return {path: RunLine(*values) for path, values in self._known("line", _LINE, runs)}

    def details(self, runs: Sequence[FoundRun]) -> dict[str, RunDetail]:
        """The details of the runs whose entries are up to date, by real path."""
        return {path: RunDetail(*values) for path, values in self._known("detail", _DETAIL, runs)}

    def add(self, found: Iterable[tuple[FoundRun, RunLine, RunDetail]], *, read_at: int) -> None:
        """Store what was read after `read_at` (in nanoseconds), for runs that are not running and whose files
        were unchanged for long enough."""
        rows = []
        for run, line, detail in found:
            if run.state and not line.problem and line.status != RUNNING and run.changed + _AT_REST < read_at:
                row = (_encoded(run, line, _LINE), _encoded(run, detail, _DETAIL))
                rows.append((os.fsencode(run.real), run.state, *row))
        self._change("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?)", rows)

    def forget(self, paths: Iterable[str]) -> None:
        """Remove the entries of runs, by real path, so that nothing remains of deleted runs."""
        self._change("DELETE FROM runs WHERE path = ?", [(os.fsencode(path),) for path in paths])

    def below(self, folder: str) -> list[str]:
        """The real paths of the indexed runs in and below a folder."""
        start = os.fsencode(folder.rstrip("/"))
        within = "path = ? OR (path >= ? AND path < ?)"
        rows = self._rows(f"SELECT path FROM runs WHERE {within}", (start, start + b"/", start + b"0"))
        return [os.fsdecode(path) for (path,) in rows]

    def close(self) -> None:
        """Close the file."""
        if self._database is not None:
            self._database.close()

    def _known(
        self, column: str, names: tuple[str, ...], runs: Sequence[FoundRun]
    ) -> Iterator[tuple[str, Sequence[Any]]]:
        states = {os.fsencode(run.real): run for run in runs}
        if not states:
            return
        select = f"SELECT path, state, {column} FROM runs WHERE path >= ? AND path <= ?"
        rows = self._rows(select, (min(states), max(states)))
        for path, state, value in rows:
            run = states.get(path) if isinstance(path, bytes) else None
            if run is not None and run.state == state:
                decoded = _decoded(run, value, len(names))
                if decoded is not None:
                    yield run.real, decoded

    def _open(self) -> sqlite3.Connection | None:
        for _ in range(2):
            database = None
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._path.touch(0o600)  # it contains data of runs
                database = sqlite3.connect(self._path, timeout=_SECONDS_TO_WAIT, isolation_level=None)
                # It does not have to survive a crash: checksums detect damage.
                database.executescript(
                    "PRAGMA journal_mode=MEMORY; PRAGMA synchronous=OFF; PRAGMA secure_delete=ON"
                )
                (version,) = database.execute("PRAGMA user_version").fetchone()
                if version != _VERSION:
                    database.executescript(
                        f"BEGIN IMMEDIATE; DROP TABLE IF EXISTS runs; {_TABLE};"
                        f"PRAGMA user_version={_VERSION}; COMMIT"
                    )
                database.execute("SELECT path, state, line, detail FROM runs LIMIT 1")
            except sqlite3.OperationalError as error:  # locked, or cannot be opened
                _close(database)
                if "no such" not in str(error):
                    return None
                self._remove()
            except (sqlite3.DatabaseError, UnicodeDecodeError):  # damaged, also in an error's text
                _close(database)
                self._remove()
            except OSError:
                return None
            else:
                return database
        return None

    def _rows(self, select: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        if self._database is None:
            return []
        try:
            return self._database.execute(select, values).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            self._disable(error)
            return []

    def _change(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if self._database is None or not rows:
            return
        try:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany(statement, rows)
            self._database.execute("COMMIT")
        except (sqlite3.Error, UnicodeDecodeError) as error:
            self._disable(error)

    def _disable(self, error: Exception) -> None:
        """Continue without the index; the next command rebuilds a damaged one."""
        self.close()
        self._database = None
        if not isinstance(error, sqlite3.OperationalError):  # locked, disk full, or not writable
            self._remove()

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink()


def now() -> int:
    """The current time in nanoseconds, as in file timestamps."""
    return time.time_ns()


def _close(database: sqlite3.Connection | None) -> None:
    if database is not None:
        database.close()


def _encoded(run: FoundRun, value: RunLine | RunDetail, names: tuple[str, ...]) -> bytes:
    text = json.dumps([getattr(value, name) for name in names], default=_plain).encode()
    return _checksum(run, text) + text


def _decoded(run: FoundRun, value: Any, count: int) -> Sequence[Any] | None:
    if not isinstance(value, bytes) or value[:_CHECKSUM] != _checksum(run, value[_CHECKSUM:]):
        return None
    fields = json.loads(value[_CHECKSUM:])
    return fields if len(fields) == count else None


def _checksum(run: FoundRun, text: bytes) -> bytes:
    return zlib.crc32(text, zlib.crc32(f"{run.state}\0".encode() + os.fsencode(run.real))).to_bytes(4, "big")


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else str(value)
