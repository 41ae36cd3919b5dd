"""Files of events, as JSON lines or as CSV with one value a row.

In both formats a record is one line, whatever its contents: a kill can only truncate the last line, and the
next writer removes the remains. Several processes may append to one file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import operator
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fmstune.system.files import NotAFile, copy_mode, open_file
from fmstune.trackers.file.formats import HEADER_BEFORE, ROWS, CsvRows, Line, Record, format_of
from fmstune.trackers.records import MetricPoint, TrackerError
from fmstune.trackers.stored_events import Held

_LONGEST_TAIL = 4096
_MOST_WAITING = 256


@dataclass
class _Part:
    """Bytes that were written one after the other, and their hash."""

    start: int
    end: int
    hash: hashlib._Hash

    def is_in(self, file: IO[bytes]) -> bool:
        found, left = hashlib.sha256(), self.end - self.start
        file.seek(self.start)
        while left and (data := file.read(min(left, 1 << 20))):
            found.update(data)
            left -= len(data)
        return not left and found.digest() == self.hash.digest()


class EventFile:
    """A file to which each record is appended once."""

    def __init__(self, path: Path, run_id: str) -> None:
        """Open the file, creating it when absent, and read what it holds of the run `run_id`.

        Raises `TrackerError` when the file has another format, and `OSError`.
        """
        self.path = path
        self._run_id = run_id
        self._format = format_of(path)
        self._file, self._regular = self._opened()
        self._identity = _identity(os.fstat(self._file))
        self._tail, self._end = b"", 0  # the last bytes written, and their end
        self._closed = self._was_cut = False
        self._waiting: list[tuple[bytes, Line]] = []
        self._waiting_for: set[int | None] = set()
        self._rows, self._seqs, self._times = b"", list[int](), list[float]()  # they wait, too
        self._parts: list[_Part] = []
        if self._regular:
            with self._locked(self._file):
                self._remove_torn_line(run_id)
                self._begin()
        self.held = self._find() if self._regular else Held()
        self._found_any = self.held.last_kind is not None

    def holds(self, last: int) -> bool:
        """Whether the file is still the one that was written to, ends with the last bytes written, and has
        the event of this number or a later one; once it is closed, whether it has all. Raises `OSError`."""
        if not self._regular:
            return True
        try:
            there = _identity(self.path.stat()) == self._identity
        except (FileNotFoundError, NotADirectoryError):
            return False
        if not there or self._was_cut or self.held.last_seq < last:
            return False
        if self._closed:
            return self._has_all_parts() or self._find().covers(self.held)
        return os.pread(self._file, len(self._tail), self._end - len(self._tail)) == self._tail

    def flush_if_full(self) -> None:
        """Write what is buffered, if it is much."""
        if self._waiting or len(self._seqs) >= _MOST_WAITING:
            self.flush()

    def append_points(self, run: str, points: Sequence[MetricPoint]) -> bool:
        """Buffer a line for each point, after `flush_if_full`. Return `False`, with nothing buffered, if
        `append` must be used for them."""
        seqs = [point.seq for point in points if point.seq is not None]
        last = self._seqs[-1] if self._seqs else self.held.last_seq
        if not self._regular or len(seqs) < len(points) or any(map(operator.ge, (last, *seqs), seqs)):
            return False
        if (rows := self._format.rows(run, self._run_id, points)) is None:
            return False
        self._rows += rows
        self._seqs += seqs
        self._times += [point.time or 0.0 for point in points]
        return True

    def append(self, record: Record) -> None:
        """Buffer the lines of an event that the file lacks; `flush` writes them."""
        if record.seq in self._waiting_for or self._rows:
            self.flush()
        lines = self._format.lines(record)
        said = [Line(record.seq, record.kind, float(record.time))] * len(lines)
        if record.kind not in ROWS:
            said = [self._format.of_run(each, record.run_id) or said[0] for each in lines]
        held = self.held.count(said, timed=record.timed)
        if lines[held:]:
            self._waiting += zip(lines[held:], said[held:], strict=True)
            self._waiting_for.add(record.seq)
        # A reader of a pipe must get lines that are not mixed with another writer's.
        if not self._regular or len(self._waiting) >= _MOST_WAITING:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered, with one call. After an `OSError`, the file holds nothing of it."""
        if not (self._waiting or self._rows):
            return
        waiting, self._waiting, self._waiting_for = self._waiting, [], set()
        rows, seqs, times = self._rows, self._seqs, self._times
        self._rows, self._seqs, self._times = b"", [], []
        data = rows or b"".join(line for line, _ in waiting)
        with self._locked(self._file):
            size = self._remove_torn_line(self._run_id) if self._regular else 0
            self._was_cut = self._was_cut or size < self._end
            written = os.write(self._file, data)
            if written != len(data):
                if self._regular:
                    os.ftruncate(self._file, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            if self._regular:
                self._tail, self._end = data[-_LONGEST_TAIL:], size + len(data)
                self._note_part(size, data)
        for _, line in waiting:
            self.held.note(line)
        if rows:
            self.held.note_rows(seqs, times)

    def close(self) -> None:
        """Write what is buffered, and close the file."""
        self.flush()
        os.close(self._file)
        self._closed = True

    def _opened(self) -> tuple[int, bool]:
        """The file with the current header: that of an earlier version gets the missing columns."""
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                if not stat.S_ISREG(os.fstat(file).st_mode):
                    return file, False
                with self._locked(file):
                    # While this process waited for the lock, the file may have been replaced.
                    if os.path.samestat(os.fstat(file), self.path.stat()):
                        first = _first_line(file)
                        if why := self._format.mismatch(first):
                            raise TrackerError(
                                f"{self.path} is not a file of fmstune's events: {why}; choose another path."
                            )
                        if not (first.endswith(b"\n") and first.rstrip(b"\r\n") == HEADER_BEFORE):
                            return file, True
                        _complete_header(file, self.path, len(first))
            except BaseException:
                os.close(file)
                raise
            os.close(file)

    def _begin(self) -> None:
        if self._format.header and not os.fstat(self._file).st_size:
            os.write(self._file, self._format.header)

    def _find(self) -> Held:
        held = Held()
        with self.path.open("rb") as file:
            for line in file:
                if found := self._format.of_run(line, self._run_id):
                    held.note(found)
        return held

    def _note_part(self, start: int, data: bytes) -> None:
        """Remember what was written, to recognise it when the file is closed: a hash is read back in a tenth
        of the time that its lines take."""
        if not self._parts or self._parts[-1].end != start:  # another run's lines are between
            self._parts.append(_Part(start, start, hashlib.sha256()))
        part = self._parts[-1]
        part.hash.update(data)
        part.end += len(data)

    def _has_all_parts(self) -> bool:
        """Whether the file has all that was written to it, where it was written. If it was not empty at
        first, that does not tell."""
        if self._found_any:
            return False
        with self.path.open("rb") as file:
            return all(part.is_in(file) for part in self._parts)

    def _remove_torn_line(self, run_id: str) -> int:
        """Remove a killed writer's partial line; return the file's size afterwards."""
        size = os.fstat(self._file).st_size
        if not size or os.pread(self._file, 1, size - 1) == b"\n":
            return size
        end = _behind_last_newline(self._file, size)
        torn = os.pread(self._file, size - end, end)
        # An editor may have removed the final newline.
        if self._format.is_whole(torn) or self._format.of_run(torn, run_id):
            return size + os.write(self._file, b"\n")
        os.ftruncate(self._file, end)
        return end

    @staticmethod
    @contextlib.contextmanager
    def _locked(file: int) -> Iterator[None]:
        """Lock the file, so that a line that another process is writing is not mistaken for a torn one."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            yield
            return
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def stored_in(path: Path, run_id: str, last: int) -> bool | None:
    """Whether the file at `path` has the event of this number, or a later one, of a run; `None` for a pipe or
    a device, which cannot be read back. Raises `OSError`."""
    held, kind = Held(), format_of(path)
    try:
        with open_file(path) as file:
            for line in file:
                if found := kind.of_run(line, run_id):
                    held.note(found)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except NotAFile:
        return None
    return held.last_kind is not None and held.last_seq >= last


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def append_obstacle(path: Path) -> str | None:
    """Why no events can be appended to what is at `path`; `None` when they can. Changes nothing."""
    if path.is_dir():
        return "it is a directory"
    if not path.is_file():
        return None
    with path.open("rb") as file:
        first = _first_line(file.fileno())
    return format_of(path).mismatch(first)


def _first_line(file: int) -> bytes:
    """The first line; without a newline if it has none within 64 KiB."""
    line, end, _ = os.pread(file, 1 << 16, 0).partition(b"\n")
    return line + end


def _behind_last_newline(file: int, size: int) -> int:
    while size:
        start = max(0, size - (1 << 16))
        found = os.pread(file, size - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        size = start
    return 0


def _complete_header(file: int, path: Path, after: int) -> None:
    """Replace the file by one with the current header. Its rows are kept byte for byte; an unterminated last
    row gets a newline, as it may be complete."""
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with os.fdopen(os.dup(file), "rb") as old, temporary.open("wb") as new:
            copy_mode(path, temporary)
            old.seek(after)
            new.write(CsvRows.header)
            shutil.copyfileobj(old, new)
            size = os.fstat(file).st_size
            if os.pread(file, 1, size - 1) != b"\n":
                # A cell that was truncated inside its quotes would swallow everything after it.
                new.write(b'"\n' if _open_quote(old, after) else b"\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _open_quote(file: IO[bytes], start: int) -> bool:
    file.seek(start)
    return sum(line.count(b'"') for line in file) % 2 == 1
