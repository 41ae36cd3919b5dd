"""The file that a journal is written to; it is repaired if anything else changes it.

During the run it may be deleted, replaced with or without its folder, truncated or overwritten. Then it is
rewritten: from the open file, which outlives its name, and from the lines that were written last.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import operator
import os
import stat
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from fmstune.delivery.journal.damaged import set_aside
from fmstune.delivery.journal.encoding import numbered
from fmstune.delivery.journal.family import END, GENERATION, LAST, Family
from fmstune.delivery.journal.reader import last_seq, seq_of

_LOOK_SECONDS = 0.1
"""Seconds between checks that the journal's path still refers to the open file."""
_RECENT_BYTES = 1 << 20
_first = operator.itemgetter(0)
_HOW = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
"""Seconds between two attempts to rewrite the journal."""


class RecentLines:
    """The lines that were written last, in bounded memory."""

    def __init__(self) -> None:
        self._buffer = bytearray(_RECENT_BYTES)
        self._used = 0
        self.begins_at = 0
        """A lower bound of the first one's position in the file."""

    def add(self, line: bytes, at: int) -> None:
        """Store a line that starts `at` this byte of the file, and drop the oldest ones."""
        if len(line) > _RECENT_BYTES // 2:
            self._used = 0
            return
        if self._used + len(line) > _RECENT_BYTES:
            cut = self._buffer.index(b"\n", self._used // 2) + 1
            self._buffer[: self._used - cut] = self._buffer[cut : self._used]
            self._used -= cut
            self.begins_at += cut
        if not self._used:
            self.begins_at = at
        self._buffer[self._used : self._used + len(line)] = line
        self._used += len(line)

    def lines(self) -> list[bytes]:
        """The lines, oldest first."""
        return bytes(self._buffer[: self._used]).splitlines(keepends=True)


class JournalFile:
    """The open file. `repairs` is false in a forked child, which leaves that to its parent; `lost` counts the
    events that a repair did not find. `say` is called with what happened to the file."""

    def __init__(self, path: Path, header: bytes, family: Family, say: Callable[[str], None]) -> None:
        """Open the file at `path`, whose first line is, or will be, `header`. Raises `OSError`."""
        self.path = path
        self.repairs = True
        self.lost = 0
        self._header = header
        self._family = family
        self._counters = family.counters
        self._say = say
        self._recent = RecentLines()
        self._is_cut_off = False  # a write was interrupted by an exception, as of a signal handler
        self._generation = 0
        self._looked_at = self._look_at = self._repair_at = 0.0
        self._pause = _FIRST_PAUSE
        self._first_seq = int(json.loads(header).get("after", 0)) + 1
        self._open()
        # A device has no owner: ranks other than zero all write to /dev/null.
        self._device = stat.S_ISCHR(os.fstat(self._file).st_mode)

    def put(self, body: bytes, now: float) -> int:
        """Write the next event, whose line has this `body`, and return its number; 0 if it cannot be written
        now. Raises `OSError`."""
        counters = self._counters
        # A check costs as much as the line: only now and then, unless a child may have written, too. A clock
        # that was set back does not postpone it.
        is_due = not self._looked_at <= now <= self._look_at
        if (is_due or self._is_cut_off or self._family.is_shared) and not self.is_ready():
            return 0
        seq = counters[LAST] + 1
        self._write(numbered(seq, body), seq)
        return seq

    def is_ready(self, *, look: bool = False, thorough: bool = False) -> bool:
        """Whether the next line can be written now, after repairs if necessary. Raises `OSError`.

        Whether it still has its name is checked now and then, or with `look`; with `thorough`, the last lines
        are checked, too.
        """
        counters = self._counters
        if counters[GENERATION] < 0:
            return False
        if self._device:
            return True
        found = self._stat()
        if found is None or counters[GENERATION] != self._generation:
            self._open_again()
            found = os.fstat(self._file)
        if found.st_nlink == 0:
            return self._write_again("was deleted")
        now = time.time()
        if look or not self._looked_at <= now <= self._look_at:
            self._looked_at, self._look_at = now, now + _LOOK_SECONDS
            if not self.has_its_name():
                return self._write_again("was replaced")
        if counters[END] == 0:
            self._write(self._header, counters[LAST])
            found = os.fstat(self._file)
        if found.st_size > counters[END]:
            return self._take_over(found.st_size)
        if found.st_size < counters[END] or (thorough and not self._is_whole()):
            return self._write_again("was damaged")
        return True

    def begin_behind(self, last: int) -> None:
        """Count and report what is missing between `last`, the last event of the file, and the next one."""
        self.lost = max(0, self._counters[LAST] - last)
        if self.lost:
            known = self._counters[LAST]
            self._say(
                f"ends with event {last}, but its trackers or checkpoints know {known}{_missing(self.lost)}"
            )

    def salvage(self, last: int) -> None:
        """Rewrite a damaged journal of an earlier process, without what cannot be read. `last` is the highest
        known number. Raises `OSError`."""
        with os.fdopen(os.dup(self._file), "rb") as file:
            found = max(filter(None, map(seq_of, file)), default=0)
        self._counters[LAST], self._counters[END] = max(last, found), os.fstat(self._file).st_size
        self._write_again("is damaged")

    def close(self) -> None:
        """Close the file, unless it was closed elsewhere and its descriptor is now in use for another."""
        if self._stat() is not None:
            os.close(self._file)

    def give_up_pauses(self) -> None:
        """Run the next repair at once, as it is the last one."""
        self._repair_at = 0.0

    def _write(self, line: bytes, seq: int) -> None:
        """Write the whole line of the event `seq`, or none of it. Raises `OSError`."""
        end = self._counters[END]
        self._is_cut_off = True
        written = os.write(self._file, line)
        if written != len(line):
            os.ftruncate(self._file, end)  # readers only use complete lines: they have not seen it
            raise OSError(0, "no room for a whole line")
        # The end comes last: if this is cut off, by an exception or a kill, `is_ready` sees a longer file.
        self._counters[LAST] = seq
        self._counters[END] = end + written
        self._is_cut_off = False
        if self.repairs:
            self._recent.add(line, end)

    def _open(self) -> None:
        self._file = os.open(self.path, _HOW, 0o644)
        self._identity = _identity(os.fstat(self._file))

    def _open_again(self) -> None:
        """Reopen the journal: another process rewrote it, or all files of this process were closed."""
        if not self.repairs and not self.path.exists():
            raise FileNotFoundError(self.path)  # the parent has to write it
        self.close()
        self._open()
        self._generation = self._counters[GENERATION]

    def _stat(self) -> os.stat_result | None:
        """The status of the open file; `None` if it is no longer ours."""
        try:
            found = os.fstat(self._file)
        except OSError:
            return None
        return found if _identity(found) == self._identity else None

    def has_its_name(self) -> bool:
        """Whether the open file is the one at the journal's path."""
        try:
            return _identity(self.path.stat()) == self._identity
        except OSError:
            return False

    def _take_over(self, size: int) -> bool:
        """Continue after what another process has written but not counted, as it was killed, or after what is
        not a line at all."""
        counters = self._counters
        if os.pread(self._file, len(self._header), 0) != self._header or (
            self.repairs and not self._is_whole()
        ):
            return self._write_again("was damaged")
        last = max(counters[LAST], last_seq(self.path))
        if os.pread(self._file, 1, size - 1) != b"\n":
            size += os.write(self._file, b"\n")
        counters[LAST], counters[END] = last, size
        return True

    def _is_whole(self) -> bool:
        """Whether the file starts with its header and has all lines that were written last."""
        if not self.repairs:
            return True
        lines = self._recent.lines()
        begins_at = self._recent.begins_at
        tail = os.pread(self._file, max(0, os.fstat(self._file).st_size - begins_at), begins_at)
        head = os.pread(self._file, len(self._header), 0)
        return head == self._header and set(tail.splitlines(keepends=True)).issuperset(lines)

    def _write_again(self, what: str) -> bool:
        """Rewrite the journal; return whether it is intact now. A child leaves that to its parent. Raises
        `OSError`."""
        now = time.monotonic()
        if not self.repairs or now < self._repair_at:
            return False
        self._repair_at = now + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        unfinished = self.path.with_name(self.path.name + ".tmp")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        opened = os.open(unfinished, _HOW | os.O_TRUNC, 0o644)
        try:
            count = 0
            with open(opened, "wb", closefd=False) as file:
                for line, is_event in self._lines():
                    file.write(line)
                    count += is_event
            aside = set_aside(self.path) if self._is_in_the_way() else None
            try:
                unfinished.replace(self.path)
            except BaseException:
                if aside is not None:
                    aside.replace(self.path)
                raise
        except BaseException:
            os.close(opened)
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise
        self.close()
        counters, found = self._counters, os.fstat(opened)
        self._file, self._identity = opened, _identity(found)
        counters[END] = found.st_size
        counters[GENERATION] += 1
        self._generation = counters[GENERATION]
        self.lost = max(0, counters[LAST] - self._first_seq + 1 - count)
        self._recent.begins_at = 0
        self._pause, self._repair_at = _FIRST_PAUSE, 0.0
        self._say(f"{what}, and is written again{_missing(self.lost)}")
        return True

    def _lines(self) -> Iterator[tuple[bytes, bool]]:
        """The header and all remaining lines of events, from the open file and from memory, in order: those
        of children are only in the file."""
        yield self._header, False
        recent = [(seq, line) for line in self._recent.lines() if (seq := seq_of(line))]
        for _, line in heapq.merge(self._left_in_file({seq for seq, _ in recent}), recent, key=_first):
            yield line, True

    def _left_in_file(self, in_memory: Collection[int]) -> Iterator[tuple[int, bytes]]:
        """The numbered lines of events that are only in the open file."""
        seen: set[int] = set()
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(0)
            for line in file:
                seq = seq_of(line) if line.endswith(b"\n") else None
                if seq is not None and seq not in in_memory and seq not in seen:
                    seen.add(seq)
                    yield seq, line

    def _is_in_the_way(self) -> bool:
        """Whether something at the journal's path is worth keeping, or cannot be replaced."""
        try:
            return os.lstat(self.path).st_size > 0
        except OSError:
            return False


def _missing(lost: int) -> str:
    return f"; {lost} of its events {'is' if lost == 1 else 'are'} lost" if lost else ""


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
