"""Writing the journal: every event gets the next number and one line.

What can't be written now waits in memory, in order. Children that the training forks (workers of a data
loader, say) write into the same journal, one process at a time; what is done once (repairs, the end) is done
by the training process alone, and what a child does at its own end disturbs nothing here.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fmstune.delivery.journal.damaged import set_aside
from fmstune.delivery.journal.encoding import body, body_of_finite
from fmstune.delivery.journal.family import END, GENERATION, LAST, LATE, SEALED, UNWRITTEN, Family
from fmstune.delivery.journal.file import JournalFile
from fmstune.delivery.journal.reader import (
    VERSION,
    Header,
    JournalError,
    JournalReader,
    Kind,
    LaterJournal,
    last_seq,
    lock_path,
    writer,
)
from fmstune.system import locks
from fmstune.system.files import NotAFile, open_file

_MOST_WAITING = 16 << 20
"""Bytes of events that may wait in memory for a disk that is full."""


class JournalWriter:
    """Appends events; safe to call from any thread, from signal handlers and from forked children, and never
    raises for what the disk does. Behind the run's status nothing is written, unless the run is resumed.

    `on_trouble` is called with a sentence, once for each kind of trouble.
    """

    def __init__(
        self,
        path: Path,
        header: Header,
        on_trouble: Callable[[str], None] | None = None,
        known: int = 0,
        lock: locks.Lock | None = None,
    ) -> None:
        """Begin the journal at `path`, or continue the one that is there, whose header then holds.

        A damaged one is set aside. Events are numbered on from the last one that can be read, and from
        `known`, the highest number that a tracker knows: a file restored from a backup, or cut off by a loss
        of power, may be shorter, and a number that is used twice is an event that no tracker takes.

        `lock` is the journal's, when this process has taken it; it is held until the journal is closed.
        Raises `OSError` when the file cannot be opened, `JournalError` when another process is writing it or
        it is of a later version.
        """
        self.path = path
        self._on_trouble = on_trouble
        self._said: set[str] = set()
        self._lock = threading.Lock()
        self._inside: set[int] = set()  # threads that write, or wait for their turn
        self._family = Family()
        self._counters = self._family.counters
        self._process = locks.this_process()
        self._in_child = self._closed = False
        self._waiting: deque[bytes] = deque()
        self._bytes_waiting = self._dropped = self._late = 0
        # A device is nobody's: ranks other than zero all write to /dev/null.
        self._device = path.exists() and stat.S_ISCHR(path.stat().st_mode)
        self._owner = None if self._device else lock or locks.take(lock_path(path))
        if self._owner is None and not self._device:
            raise JournalError(f"{path} is being written by {writer(path)}: that run is still going.")
        try:
            self._file = self._begin(header, known)
        except BaseException:
            self._let_go()
            raise
        _writers.add(self)

    @property
    def last_seq(self) -> int:
        """The number of the last event that was written."""
        return self._counters[LAST]

    @property
    def unrecorded(self) -> int:
        """Events that are not in the journal: they wait for room, found none to wait in, or came too late."""
        return self._dropped + len(self._waiting) + self._counters[UNWRITTEN] + self.late

    @property
    def late(self) -> int:
        """Events that came after the run's status, or after `close`, from here or from children."""
        return self._late + self._counters[LATE]

    @property
    def lost(self) -> int:
        """Events that were written, and were not recovered after somebody had damaged the journal."""
        return self._file.lost

    def append(self, kind: Kind, fields: Mapping[str, Any], *, finite: bool = False) -> int:
        """Write the next event and return its `seq`; 0 when it waits in memory, or is lost. `finite` says
        that there is nothing in it but texts, finite numbers and `None`, which are encoded faster."""
        now = time.time()
        record = {"time": now, "kind": kind, **fields}
        line = body_of_finite(record) if finite else body(record)
        thread = threading.get_ident()
        if thread in self._inside:
            # A signal handler has interrupted this thread here: to wait for the lock would be for ever.
            self._wait(line)
            return 0
        # As `_turn` does, which takes longer than the writing.
        try:
            self._inside.add(thread)
            with self._lock:
                return self._append(kind, line, now)
        finally:
            self._inside.discard(thread)

    def _append(self, kind: Kind, line: bytes, now: float) -> int:
        if kind == "resume" and not self._in_child:
            self._counters[SEALED] = 0
        if self._closed or self._counters[SEALED]:
            self._be_late()
            return 0
        if kind == "status" and not self._in_child:
            self._counters[SEALED] = 1
        if not self._waiting:
            seq = self._put(line, now)
            if seq:
                if self._waiting:  # a signal handler has left something here
                    self._write_waiting()
                return seq
            self._wait(line, needed=kind == "status")
            return 0
        self._wait(line, needed=kind == "status")
        self._write_waiting()
        return 0

    def tend(self) -> None:
        """Write what waits in memory, and repair what somebody has done to the file; called now and then."""
        with self._turn():
            if not self._closed:
                self._look()
                self._write_waiting()

    def close(self) -> None:
        """Write what waits, and close the file; a later `append` is counted as unrecorded."""
        with self._turn():
            if self._closed:
                return
            self._file.give_up_pauses()
            self._family.gave_up = False
            self._look(thorough=True)
            self._write_waiting()
            self._closed = True
            self._file.close()
            if not self._in_child:
                self._counters[SEALED], self._counters[GENERATION] = 1, -1  # for children that are left
            self._let_go()

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        thread = threading.get_ident()
        try:
            self._inside.add(thread)  # before the wait for the lock, which handlers interrupt, too
            with self._lock:
                yield
        finally:
            self._inside.discard(thread)

    def _begin(self, header: Header, known: int) -> JournalFile:
        last, first, damaged = header.after, b"", False
        if not self._device and os.path.lexists(self.path):
            try:
                with open_file(self.path) as file:
                    first = file.readline()
                if first:
                    header = JournalReader(self.path).header
                    last = max(header.after, last_seq(self.path))
            except LaterJournal:
                raise
            except JournalError:
                damaged = True
            except (IsADirectoryError, NotAFile):
                set_aside(self.path)
        self.header = header
        fresh = damaged or not first
        line = self._header_line(header) if fresh else first
        made = JournalFile(self.path, line, self._family, self._say)
        if damaged:
            made.salvage(max(known, last))
            return made
        self._counters[LAST], self._counters[END] = max(last, known), len(first)
        made.begin_behind(last)
        try:
            made.is_ready()  # which writes the header, or continues after all that is there
        except OSError as error:
            self._no_room(error)
        return made

    def _header_line(self, header: Header) -> bytes:
        first: dict[str, Any] = {"kind": "header", "version": VERSION, "run": header.run}
        first |= {"id": header.id, "time": header.time, "cwd": header.cwd}
        more = {"after": header.after, "group": header.group, "tags": header.tags, "notes": header.notes}
        return b'{"seq":0,' + body(first | {key: value for key, value in more.items() if value})

    def _put(self, body: bytes, now: float) -> int:
        """Write an event and return its number; 0 when that can't be done now."""
        # A run that continues in another process is not written to by what an earlier one has left behind.
        if self._in_child and self._process.ended:
            return 0
        family = self._family
        if family.is_shared and not family.acquire():
            self._trouble("stopped", "a stopped process holds the journal; events wait in memory")
            return 0
        try:
            if self._in_child and self._counters[SEALED]:
                return 0
            return self._file.put(body, now)
        except OSError as error:
            self._no_room(error)
            return 0
        finally:
            if family.is_shared:
                family.release()

    def _look(self, *, thorough: bool = False) -> None:
        if self._in_child or self._device or not self._family.acquire():
            return
        try:
            self._file.is_ready(look=True, thorough=thorough)
        except OSError as error:
            self._no_room(error)
        finally:
            self._family.release()

    @property
    def _is_over(self) -> bool:
        return self._closed or self._counters[SEALED] != 0

    def _wait(self, body: bytes, *, needed: bool = False) -> None:
        """Keep an event in memory. A signal handler may do so while this thread is at it: what is read of a
        number is written before another call."""
        size = len(body)
        if self._is_over and not needed:
            self._be_late()
        elif self._bytes_waiting + size > _MOST_WAITING and not needed:
            self._drop()
        else:
            self._waiting.append(body)
            self._bytes_waiting += size
            if self._in_child:
                self._counters[UNWRITTEN] += 1

    def _write_waiting(self) -> None:
        while self._waiting and self._put(self._waiting[0], time.time()):
            size = len(self._waiting.popleft())
            self._bytes_waiting -= size
            if self._in_child:
                self._counters[UNWRITTEN] -= 1

    def _drop(self) -> None:
        if self._in_child:
            self._counters[UNWRITTEN] += 1
        else:
            self._dropped += 1

    def _be_late(self) -> None:
        if self._in_child:
            self._counters[LATE] += 1
        else:
            self._late += 1

    def _no_room(self, error: OSError) -> None:
        self._trouble(
            "no room", f"the journal cannot be written ({error.strerror or error}); events wait in memory"
        )

    def _say(self, what: str) -> None:
        self._trouble(what, f"the journal {what}")

    def _trouble(self, kind: str, text: str) -> None:
        if kind not in self._said and self._on_trouble is not None:
            self._said.add(kind)
            self._on_trouble(f"{text}: {self.path}")

    def _let_go(self) -> None:
        self._family.close()
        if self._owner is not None:
            self._owner.release()

    def have_child(self) -> None:
        """From now on a child may write; what this process is writing at the moment comes first."""
        if not self._family.is_shared:
            mine = self._lock.acquire(timeout=1)  # in vain in a signal handler that forks while this writes
            self._family.is_shared = True
            if mine:
                self._lock.release()

    def become_child(self) -> None:
        """Go on in a child that was forked a moment ago, maybe while another thread had the lock here. What
        waits in memory is the parent's."""
        self._lock = threading.Lock()
        self._inside = set()
        self._in_child = True
        self._waiting = deque()
        self._bytes_waiting = self._dropped = self._late = 0
        self._file.repairs = False


_writers: weakref.WeakSet[JournalWriter] = weakref.WeakSet()


def _have_children() -> None:
    for each in list(_writers):
        each.have_child()


def _become_children() -> None:
    for each in list(_writers):
        each.become_child()


os.register_at_fork(before=_have_children, after_in_child=_become_children)
