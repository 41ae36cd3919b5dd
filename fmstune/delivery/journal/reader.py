"""The journal: the run's record, one strict JSON object per line, written before anything else happens.

The first line is the header; every later line is an event with the next `seq`. A line is written with one
call, so that a kill can only truncate the last one. Readers only use complete lines; they count lines that
are not events, and never fail on them.
"""

from __future__ import annotations

import itertools
import operator
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from fmstune.delivery.journal.encoding import NON_FINITE as NON_FINITE
from fmstune.delivery.journal.events import Event as Event
from fmstune.delivery.journal.events import Kind as Kind
from fmstune.delivery.journal.events import event_of as event_of
from fmstune.delivery.journal.events import later, parsed
from fmstune.delivery.journal.events import parse as parse
from fmstune.delivery.journal.events import seq_of as seq_of
from fmstune.delivery.journal.header import Header as Header
from fmstune.delivery.journal.header import JournalError as JournalError
from fmstune.delivery.journal.header import LaterJournal as LaterJournal
from fmstune.delivery.journal.header import copy_of_header, read_header
from fmstune.system import locks
from fmstune.system.files import open_file
from fmstune.trackers.values.plain import plain as plain

_SECONDS_TO_REPAIR = 10.0
"""Seconds that a reader waits for the writer to repair a damaged journal."""

_MOST_BYTES = 8 << 20
"""The most bytes of lines read at once: a table may be a megabyte."""
_LINES_AT_ONCE = 16
_NEWLINES, _LAST_BYTE = frozenset(b"\n"), operator.itemgetter(-1)
RESUME = b'"kind":"resume"'
_FIRST_WINDOW, _LARGEST_WINDOW = 1 << 16, 16 << 20
"""Bytes read at once from the end of a journal."""


class JournalReader:
    """Read events from a byte offset on; `offset` is where the next read starts.

    A journal that was rewritten after it was damaged is read again from its start. A header that is damaged
    is replaced by its copy; without one, `JournalError` is raised. Raises `OSError` when the file cannot be
    read. `damaged` counts complete lines that were not events; `later` are the kinds of those that only a
    later version knows, each with its highest number.
    """

    def __init__(self, path: Path, offset: int = 0, expected: int | None = None) -> None:
        """Start at `offset`, unless the event there does not have the number `expected`: the journal may have
        been rewritten since."""
        self.path = path
        self.damaged = 0
        self.later: dict[str, int] = {}
        self._unreadable_since: float | None = None
        with open_file(path) as file:
            self._begin(file)
            self.offset = max(offset, self._first)
            self._run = self.header.id
            if expected is not None and self.offset > self._first and not _is_at(file, self.offset, expected):
                self.offset = self._first

    def _begin(self, file: IO[bytes]) -> None:
        """Read the header, or use its copy and read the first line as another one. While the journal is being
        written, its writer restores the header."""
        self._file, line = _identity(file), file.readline()
        try:
            self.header, self._first = read_header(line, self.path), len(line)
        except LaterJournal:
            raise
        except JournalError:
            copy = copy_of_header(self.path) if line and not is_being_written(self.path) else None
            if copy is None:
                raise
            self.header, self._first = copy, 0

    def read(self, most: int = 256, *, patient: bool = False) -> list[tuple[Event, int]]:
        """The next events, at most `most` or some megabytes, each with the offset after it; empty when
        there are none.

        With `patient`, an unreadable journal counts as empty for some seconds, in which its writer may
        repair it; `is_readable` distinguishes them.
        """
        found: list[tuple[Event, int]] = []
        try:
            with self._opened() as file:
                begin = at = file.seek(self.offset)
                while len(found) < most and (not found or at - begin <= _MOST_BYTES):
                    if not (lines := _whole_lines(file, most - len(found))):
                        break
                    events = parsed(lines)
                    offsets = [*itertools.accumulate(map(len, lines), initial=at)][1:]
                    at = offsets[-1]
                    pairs = list(zip(events, offsets, strict=True))
                    if None in events:
                        for line, event in zip(lines, events, strict=True):
                            if event is None and line.strip():
                                self._note_unread(line)
                        pairs = [pair for pair in pairs if pair[0] is not None]
                    found += cast(list[tuple[Event, int]], pairs)
                self.offset = at
        except (OSError, JournalError):
            if not patient:
                raise
            now = time.monotonic()
            self._unreadable_since = self._unreadable_since or now
            if now - self._unreadable_since > _SECONDS_TO_REPAIR:
                raise
            return []
        self._unreadable_since = None
        return found

    def _note_unread(self, line: bytes) -> None:
        self.damaged += 1
        if found := later(line):
            self.later[found.kind] = max(found.seq, self.later.get(found.kind, 0))

    def read_lines(self, most: int) -> list[bytes]:
        """The next complete lines, at most `most` or some megabytes; none at the end. A journal that was
        rewritten is read from its start: `offset` is then no longer after what was read before."""
        with self._opened() as file:
            file.seek(self.offset)
            lines = _whole_lines(file, most)
        self.offset += sum(map(len, lines))
        return lines

    def _opened(self) -> IO[bytes]:
        """The journal, with `offset` at its start if it is another file now."""
        file = open_file(self.path)
        try:
            if _identity(file) != self._file or os.fstat(file.fileno()).st_size < self.offset:
                self._begin(file)
                self.offset = self._first
        except BaseException:
            file.close()
            raise
        return file

    @property
    def is_replaced(self) -> bool:
        """Whether the journal is that of another run now, as after the directory was removed and used again.
        The file's identity does not tell: a new file may get the number of a removed one."""
        try:
            with open_file(self.path) as file:
                return read_header(file.readline(), self.path).id != self._run
        except (OSError, JournalError):  # deleted or damaged: its writer restores it
            return False

    @property
    def is_deleted(self) -> bool:
        """Whether there is no file at the journal's path."""
        try:
            self.path.stat()
        except FileNotFoundError:
            return True
        except OSError:  # it cannot be seen
            return False
        return False

    @property
    def at_end(self) -> bool:
        """Whether nothing follows the last event that was read."""
        try:
            return self._unreadable_since is None and self.offset >= self.path.stat().st_size
        except OSError:
            return False

    @property
    def is_readable(self) -> bool:
        """Whether the last `read` could read the file."""
        return self._unreadable_since is None

    def __iter__(self) -> Iterator[Event]:
        while events := self.read():
            yield from (event for event, _ in events)


def is_being_written(path: Path) -> bool:
    """Whether the process that writes this journal is alive."""
    return locks.holder(lock_path(path)) is not None


def writer(path: Path) -> str:
    """The process that writes this journal, in words."""
    return locks.describe(locks.holder(lock_path(path)))


def lock_path(path: Path) -> Path:
    """The file that the process writing the journal locks. Not the journal itself, which may be deleted or
    replaced meanwhile."""
    return path.with_name(path.name + ".lock")


def last_seq(path: Path) -> int:
    """The number of the last event, also of one that only a later version knows; 0 when there is none."""
    return next(filter(None, map(seq_of, _lines_from_the_end(path))), 0)


def damaged_at_end(path: Path) -> int:
    """The number of lines after the last event that are damaged, as after a power cut; the last one may lack
    its end. 0 while the journal is being written."""
    if is_being_written(path):
        return 0
    damaged = 0
    with open_file(path) as file:
        if end := file.seek(0, os.SEEK_END):
            file.seek(end - 1)
            damaged += file.read(1) != b"\n"
    for line in _lines_from_the_end(path):
        if seq_of(line) is not None or b'"kind":"header"' in line:
            break
        damaged += bool(line.strip())
    return damaged


def last_event(path: Path) -> Event | None:
    """The last event, read from the end of the file; `None` when there is none."""
    return next(filter(None, map(parse, _lines_from_the_end(path))), None)


def sessions(path: Path) -> tuple[str, ...]:
    """The processes that wrote a journal, the current one last. The first is identified by the run's id, each
    that resumed the run by its own."""
    found = [JournalReader(path).header.id]
    for line in lines_with(path, RESUME):
        if (event := parse(line)) and event.session:
            found.append(event.session)
    return tuple(found)


def final_status(path: Path) -> Event | None:
    """The run's final status, ignoring later events other than a resumption; `None` when it has none."""
    for event in filter(None, map(parse, _lines_from_the_end(path))):
        if event.kind in ("status", "resume"):
            return event if event.kind == "status" else None
    return None


def _lines_from_the_end(path: Path) -> Iterator[bytes]:
    """The complete lines of a journal, the last one first."""
    with open_file(path) as file:
        at = file.seek(0, os.SEEK_END)
        window, rest = _FIRST_WINDOW, b""
        whole = False  # a line without a newline is not an event yet
        while at:
            size = min(window, at)
            at = file.seek(at - size)
            rest, *lines = (file.read(size) + rest).split(b"\n")
            yield from reversed(lines if whole else lines[:-1])
            whole = whole or bool(lines)
            window = min(4 * window, _LARGEST_WINDOW)
        if whole:
            yield rest


def _whole_lines(file: IO[bytes], most: int) -> list[bytes]:
    """The next complete lines, at most `most` or some megabytes; the next read starts after them."""
    lines, size = list[bytes](), 0
    while len(lines) < most and size <= _MOST_BYTES:
        asked = min(most - len(lines), _LINES_AT_ONCE)
        found = list(itertools.islice(file, asked))
        are_whole = _NEWLINES.issuperset(map(_LAST_BYTE, found))
        whole = found if are_whole else list(itertools.takewhile(_is_whole, found))
        lines += whole
        size += sum(map(len, whole))
        if len(whole) < len(found):
            # A write becomes visible a page at a time: lines after an incomplete one are the rest of it,
            # which came during these reads.
            file.seek(-sum(map(len, found[len(whole) :])), os.SEEK_CUR)
        if len(whole) < asked:
            break
    return lines


def lines_with(path: Path, mark: bytes) -> Iterator[bytes]:
    """The lines of a journal that contain `mark`, found a megabyte at a time: that takes a tenth of the time
    that reading each line takes."""
    rest = b""
    with open_file(path) as file:
        while data := file.read(1 << 20):
            data = rest + data
            end = data.rfind(b"\n") + 1
            rest, at = data[end:], data.find(mark, 0, end)
            while at >= 0:
                stop = data.index(b"\n", at) + 1
                yield data[data.rfind(b"\n", 0, at) + 1 : stop]
                at = data.find(mark, stop, end)
    if mark in rest:
        yield rest


def _identity(file: IO[bytes]) -> tuple[int, int]:
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino


def _is_whole(line: bytes) -> bool:
    return line.endswith(b"\n")


def _is_at(file: IO[bytes], offset: int, expected: int) -> bool:
    """Whether the line at `offset` is the event of this number, or will be."""
    file.seek(offset - 1)
    if file.read(1) != b"\n":
        return False
    line = file.readline()
    event = parse(line) if _is_whole(line) else None
    return not _is_whole(line) if event is None else event.seq == expected
