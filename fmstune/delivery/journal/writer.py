"""Write the journal: every event gets the next number and one line.

What cannot be written now is buffered in memory, in order. Forked children of the training (data loader
workers, say) write to the same journal, one process at a time. Only the training process does what must
happen once (repairs, the end), and a child's exit does not affect the journal.
"""

from __future__ import annotations

import contextlib
import itertools
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
from fmstune.delivery.journal.header import Header, JournalError, LaterJournal, copy_of_header, read_header
from fmstune.delivery.journal.reader import Kind, last_seq, lock_path, writer
from fmstune.layout import FILES_DIR
from fmstune.system import locks
from fmstune.system.files import NotAFile, flush_to_disk, open_file

_MOST_WAITING = 16 << 20
"""The most bytes of events buffered in memory while the disk is full."""


class JournalWriter:
    """Append events. Safe to call from any thread, from signal handlers and from forked children, and never
    raises for disk errors. Nothing is written after the run's status, unless the run is resumed.

    `on_problem` is called with a sentence, once for each kind of problem.
    """

    def __init__(
        self,
        path: Path,
        header: Header,
        on_problem: Callable[[str], None] | None = None,
        known: int = 0,
        lock: locks.Lock | None = None,
    ) -> None:
        """Start the journal at `path`, or continue the existing one, whose header then applies.

        A damaged one is set aside. Numbering continues from the last readable event, and from `known`, the
        highest number that a tracker knows: a file that was restored from a backup, or truncated by a power
        loss, may be shorter, and no tracker stores an event whose number was used before.

        `lock` is the journal's, if this process has acquired it; it is held until the journal is closed.
        Raises `OSError` when the file cannot be opened, `JournalError` when another process is writing it
        or it is of a later version.
        """
        self.path = path
        self._on_problem = on_problem
        self._said: set[str] = set()
        self._flushed: set[Path] = set()
        self._lock = threading.Lock()
        self._inside: set[int] = set()  # threads that write, or wait for their turn
        self._family = Family()
        self._counters = self._family.counters
        self._process = locks.this_process()
        self._in_child = self._closed = False
        self._waiting: deque[bytes] = deque()
        self._bytes_waiting = self._dropped = self._late = 0
        # A device has no owner: ranks other than zero all write to /dev/null.
        self._device = path.exists() and stat.S_ISCHR(path.stat().st_mode)
        self._owner = None if self._device else lock or locks.acquire(lock_path(path))
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
        """Events missing from the journal: they are buffered, did not fit in the buffer, or came too late."""
        return self._dropped + len(self._waiting) + self._counters[UNWRITTEN] + self.late

    @property
    def late(self) -> int:
        """Events after the run's status or after `close`, from here or from children."""
        return self._late + self._counters[LATE]

    @property
    def lost(self) -> int:
        """Events that were written, but not recovered after the journal was damaged."""
        return self._file.lost

    def append(self, kind: Kind, fields: Mapping[str, Any], *, finite: bool = False) -> int:
        """Write the next event and return its `seq`; 0 when it is buffered or lost. `finite`: it contains
        only strings, finite numbers and `None`, which are encoded faster."""
        now = time.time()
        record = {"time": now, "kind": kind, **fields}
        line = body_of_finite(record) if finite else body(record)
        thread = threading.get_ident()
        if thread in self._inside:
            # A signal handler interrupted this thread here: waiting for the lock would never end.
            self._wait(line)
            return 0
        # Like `_turn`, which takes longer than writing.
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
                if self._waiting:  # a signal handler has buffered something
                    self._write_waiting()
                return seq
            self._wait(line, needed=kind == "status")
            return 0
        self._wait(line, needed=kind == "status")
        self._write_waiting()
        return 0

    def tend(self) -> None:
        """Write what is buffered, and repair damage to the file; called now and then."""
        with self._turn():
            if not self._closed:
                self._look()
                self._write_waiting()

    def flush(self) -> None:
        """Flush the journal and the files of its events to the disk: they then survive a power cut. Takes as
        long as the disk does; nothing waits for it."""
        # Not with `rglob`, which fails where a folder is renamed meanwhile.
        walked = os.walk(self.path.parent / FILES_DIR)
        files = (Path(folder, name) for folder, *names in walked for name in itertools.chain(*names))
        try:
            for path in (*(path for path in files if path not in self._flushed), self.path, self.path.parent):
                with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                    flush_to_disk(path)
                    self._flushed.add(path)
        except OSError as error:
            self._problem("flush", f"the journal cannot be flushed to the disk ({error.strerror or error})")

    def close(self) -> None:
        """Write what is buffered, and close the file; a later `append` is counted as unrecorded."""
        with self._turn():
            if self._closed:
                return
            self._file.give_up_pauses()
            self._family.gave_up = False
            self._look(thorough=True)
            self._write_waiting()
            if not (self._in_child or self._device or self._file.has_its_name()):
                self._problem("place", "the journal is not in its place, so its events may be lost")
            self._closed = True
            self._file.close()
            if not self._in_child:
                self._counters[SEALED], self._counters[GENERATION] = 1, -1  # for remaining children
            self._let_go()

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        thread = threading.get_ident()
        try:
            self._inside.add(thread)  # before waiting for the lock, which handlers interrupt, too
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
                    header = read_header(first, self.path)
                    last = max(header.after, last_seq(self.path))
            except LaterJournal:
                raise
            except JournalError:
                damaged, header = True, copy_of_header(self.path) or header
            except (IsADirectoryError, NotAFile):
                set_aside(self.path)
        self.header = header
        fresh = damaged or not first
        line = header.line() if fresh else first
        made = JournalFile(self.path, line, self._family, self._say)
        if damaged:
            made.salvage(max(known, last))
            return made
        self._counters[LAST], self._counters[END] = max(last, known), len(first)
        made.begin_behind(last)
        try:
            made.is_ready()  # writes the header, or continues after the existing contents
        except OSError as error:
            self._no_room(error)
        return made

    def _put(self, body: bytes, now: float) -> int:
        """Write an event and return its number; 0 if that is not possible now."""
        # Children left by an earlier process must not write to a run that continues in another.
        if self._in_child and self._process.ended:
            return 0
        family = self._family
        if family.is_shared and not family.acquire():
            self._problem("stopped", "a stopped process holds the journal; events wait in memory")
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
            self._keep_lock()
        except OSError as error:
            self._no_room(error)
        finally:
            self._family.release()

    @property
    def _is_over(self) -> bool:
        return self._closed or self._counters[SEALED] != 0

    def _wait(self, body: bytes, *, needed: bool = False) -> None:
        """Buffer an event. A signal handler may do so in the middle of this: each counter is updated before
        another call."""
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
        self._problem(
            "no room", f"the journal cannot be written ({error.strerror or error}); events wait in memory"
        )

    def _keep_lock(self) -> None:
        """Hold the lock where the journal is written again, if it was moved with the run's folder."""
        if self._owner is not None:
            self._owner = self._owner.held_at_its_path()

    def _say(self, what: str) -> None:
        self._keep_lock()
        self._problem(what, f"the journal {what}")

    def _problem(self, kind: str, text: str) -> None:
        if kind not in self._said and self._on_problem is not None:
            self._said.add(kind)
            self._on_problem(f"{text}: {self.path}")

    def _let_go(self) -> None:
        self._family.close()
        if self._owner is not None:
            self._owner.release()

    def have_child(self) -> None:
        """From now on a child may write; what this process is currently writing comes first."""
        if not self._family.is_shared:
            mine = self._lock.acquire(timeout=1)  # fails in a signal handler that forks during a write
            self._family.is_shared = True
            if mine:
                self._lock.release()

    def become_child(self) -> None:
        """Continue in a child that was just forked, maybe while another thread held the lock here. The parent
        writes what is buffered."""
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
