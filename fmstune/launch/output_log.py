"""`train.log` as a file: whole lines without secrets, of a bounded size, from a bounded memory.

All of it works on pieces of many lines: lines may come faster than each could be looked at.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from pathlib import Path

from fmstune.secrets.redaction import hide, longest_secret

FIRST_BYTES, LAST_BYTES = 64 << 20, 1 << 20
"""What is kept of a process's output; of what is between them, the number of bytes."""
_WAITING_BYTES = 16 << 20
"""What waits in memory while the disk is full."""
LONGEST_LINE = 1 << 20
_AT_ONCE = 1 << 18
"""Characters that are searched for secrets together, if more come at once."""
_CUTS = 16
"""So many places are tried for a cut through no secret."""
_RETURN = ord("\r")
_TOO_FAST = "it was printed faster than it could be searched for secrets"


class OutputLog:
    """The log of one process: whole lines without secrets, each after `prefix`; the first of them after
    `head`. Of a line that redraws itself, as progress bars do, its last state is kept.

    What came is held until `settle`, or until there is much of it: a secret of several lines is found where
    these are seen together. Until `path` is known, and while it can't be written to, it waits in memory.
    """

    def __init__(
        self, head: str = "", prefix: str = "", *, first: int = FIRST_BYTES, last: int = LAST_BYTES,
        waiting: int = _WAITING_BYTES, longest_line: int = LONGEST_LINE, at_once: int = _AT_ONCE,
    ) -> None:  # fmt: skip
        self.path: Path | None = None
        self._lines = 0
        self.trouble = ""
        self._prefix = prefix
        self._longest_line, self._at_once = longest_line, at_once
        self._room, self._last_most = first, last
        self._head = head.encode("utf-8", "replace")
        self._part = bytearray()
        self._held: list[str] = []
        self._held_length = 0
        self._cut_beyond = self._release_beyond = 0
        self._lost = self._passed_over = self._to_pass_over = (
            0  # bytes of a gap, and what is not whole behind it
        )
        self._waiting = _Waiting(waiting)
        self._last: deque[bytes] = deque()
        self._last_bytes = self._left_out = 0

    @property
    def count(self) -> int:
        """The lines that came, with one that has no end yet."""
        return self._lines + bool(self._part)

    @property
    def lost(self) -> int:
        """The bytes that the log lacks, but for those that a long one leaves out."""
        return self._lost + self._passed_over

    @property
    def holds(self) -> bool:
        """Whether there are whole lines that `settle` would write."""
        return bool(self._held)

    @property
    def waits(self) -> bool:
        """Whether something could not be written yet."""
        return self.path is not None and bool(self._waiting or self._head)

    def take(self, data: bytes) -> None:
        """The next bytes that were printed."""
        if self._passed_over:
            data = self._behind_gap(data)
        searched = len(self._part.rstrip(b"\r")) if self._part.endswith(b"\r") else len(self._part)
        self._part += data
        if b"\n" in data:
            whole, _, part = bytes(self._part).rpartition(b"\n")
            self._part, searched, self._cut_beyond = bytearray(part), 0, 0
            self._hold(whole)
        # Not the last ones: those before a newline, as Windows has one, redraw nothing.
        end = len(self._part)
        while end and self._part[end - 1] == _RETURN:
            end -= 1
        del self._part[end + 1 :]
        del self._part[: self._part.rfind(b"\r", searched, end) + 1]
        # Each of these searches all of it: after one that found no place for a cut, the next one waits.
        if len(self._part) > max(self._cut_beyond, self._longest_line + longest_secret()):
            self._cut_line()
            self._cut_beyond = len(self._part) + longest_secret()
        elif self._held_length > max(self._release_beyond, longest_secret()) + self._at_once:
            self._release()
            self._release_beyond = self._held_length

    def gap(self, count: int) -> None:
        """Here so many bytes are missing. With them goes what may be a part of a secret that they cut."""
        if self._held:
            self._release()
        self._passed_over += count + sum(len(text.encode()) + 1 for text in self._held) + len(self._part)
        self._to_pass_over = longest_secret()
        self._held, self._held_length, self._part = [], 0, bytearray()
        self.trouble = self.trouble or _TOO_FAST

    def settle(self) -> None:
        """Nothing follows at once: write the whole lines that came."""
        if self._held:
            self._emit(hide(self._take_held()))
        self.flush()

    def flush(self) -> None:
        """Try again to write what waits."""
        if self.path is None or not self.waits:
            return
        try:
            # Opened each time: somebody may have moved the file away, and the folder may be back.
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                while self._head:
                    self._head = self._head[os.write(file, self._head) :]
                self._waiting.write_to(file, self.trouble)
            finally:
                os.close(file)
        except OSError as error:
            self.trouble = error.strerror or str(error)

    def end(self) -> None:
        """Nothing follows."""
        if self._part:
            part, self._part = bytes(self._part), bytearray()
            self._hold(part)
        self.settle()
        if self._passed_over:
            self._say_gap()
        if self._left_out:
            self._write(b"(fmstune: %d bytes are left out here)\n" % self._left_out)
            self._left_out = 0
        for data in self._last:
            self._write(data)
        self._last.clear()
        self._last_bytes = 0
        self.flush()
        if self.path:
            self._lost += self._waiting.drop_all()

    def last_lines(self) -> list[str]:
        """The newest lines that wait, or were kept; of a log that can't be read, none."""
        text = self._waiting.text() + b"".join(self._last)
        with contextlib.suppress(OSError):
            if self.path is not None:
                text = self.path.read_bytes()[-65_536:] + text
        return text.decode("utf-8", "replace").splitlines()

    def _hold(self, lines: bytes) -> None:
        if b"\r" in lines:
            lines = b"\n".join(line.rstrip(b"\r").rpartition(b"\r")[2] for line in lines.split(b"\n"))
        text = lines.decode("utf-8", "replace")
        self._lines += text.count("\n") + 1
        self._held.append(text)
        self._held_length += len(text) + 1

    def _take_held(self) -> str:
        text = "\n".join(self._held)
        self._held, self._held_length, self._release_beyond = [], 0, 0
        return text

    def _release(self) -> None:
        """Write what no secret reaches into that may not have ended yet."""
        text = self._take_held()
        cut = text.rfind("\n", 0, max(0, len(text) - longest_secret())) + 1
        most = max(self._longest_line, 4 * (self._at_once + longest_secret()))
        hidden = hide(text)
        for _ in range(_CUTS):
            if cut == 0:
                break
            if (tail := _tail(text, cut, hidden)) is not None:
                self._emit(hidden[: len(hidden) - tail].removesuffix("\n"))
                self._held, self._held_length = [text[cut:]], len(text) - cut + 1
                return
            cut = text.rfind("\n", 0, max(0, cut - 1 - longest_secret() // 8)) + 1
        if len(text) > most:  # one secret, or one line, of megabytes
            self._emit(hidden)
        else:
            self._held, self._held_length = [text], len(text) + 1

    def _cut_line(self) -> None:
        """Write the beginning of a line that grows without an end, cut where no secret stands."""
        end = _end_of_characters(self._part)
        line = self._part[:end].decode("utf-8", "replace")
        before = self._take_held()
        text = f"{before}\n{line}" if before else line
        hidden, margin = hide(text), longest_secret()
        first = len(text) - len(line)
        cut = len(text) - margin
        for _ in range(_CUTS):
            if cut <= first:
                break
            if (tail := _tail(text, cut, hidden)) is not None:
                self._lines += 1
                self._emit(hidden[: len(hidden) - tail])
                self._part = bytearray(text[cut:].encode("utf-8", "replace")) + self._part[end:]
                return
            cut -= margin // 8 + 1
        if before:
            self._held, self._held_length = [before], len(before) + 1
        if len(self._part) > 4 * (self._longest_line + margin):  # what looks like one secret of megabytes
            self._held, self._held_length = [], 0
            self._lines += 1
            self._emit(hidden)
            del self._part[:end]

    def _behind_gap(self, data: bytes) -> bytes:
        """What follows the first whole line behind a gap, at some distance."""
        at = data.find(b"\n", self._to_pass_over) + 1 if len(data) > self._to_pass_over else 0
        gone = at or len(data)
        self._to_pass_over = max(0, self._to_pass_over - gone)
        self._passed_over += gone
        if at:
            self._say_gap()
        return data[gone:]

    def _say_gap(self) -> None:
        count, self._passed_over = self._passed_over, 0
        self._lost += count
        self._keep(b"(fmstune: %d bytes are lost here: %s)\n" % (count, _TOO_FAST.encode()))

    def _emit(self, text: str) -> None:
        lines = text.replace("\n", f"\n{self._prefix}")
        self._keep(f"{self._prefix}{lines}\n".encode("utf-8", "replace"))

    def _keep(self, data: bytes) -> None:
        if self._room:
            whole = len(data) if len(data) <= self._room else data.rfind(b"\n", 0, self._room) + 1
            self._write(data[:whole])
            self._room = self._room - whole if whole == len(data) else 0
            data = data[whole:]
        if data:
            self._last.append(data)
            self._last_bytes += len(data)
        while self._last_bytes > self._last_most:
            first, more = self._last.popleft(), self._last_bytes - self._last_most
            gone = len(first) if more >= len(first) else first.find(b"\n", more - 1) + 1
            if gone < len(first):
                self._last.appendleft(first[gone:])
            self._last_bytes -= gone
            self._left_out += gone
        self.flush()

    def _write(self, data: bytes) -> None:
        if self._waiting.would_overflow(data):
            self.flush()
        self._lost += self._waiting.add(data)


class _Waiting:
    """What is to be written, up to `most` bytes; where more comes, a line says how much is missing."""

    def __init__(self, most: int) -> None:
        self._most, self._bytes, self._missing = most, 0, 0
        self._pieces: deque[memoryview] = deque()

    def __bool__(self) -> bool:
        return bool(self._pieces) or self._missing > 0

    def would_overflow(self, data: bytes) -> bool:
        return self._bytes + len(data) > self._most

    def add(self, data: bytes) -> int:
        """Returns how many bytes there is no room for: whole lines, and all that follow until there is."""
        fits = len(data)
        if self._missing:
            fits = 0
        elif self.would_overflow(data):
            fits = data.rfind(b"\n", 0, max(0, self._most - self._bytes)) + 1
        if fits:
            self._pieces.append(memoryview(data)[:fits])
            self._bytes += fits
        self._missing += len(data) - fits
        return len(data) - fits

    def write_to(self, file: int, trouble: str) -> None:
        """Write all of it; what an error leaves stays."""
        while self._pieces:
            done = os.write(file, self._pieces[0])
            self._bytes -= done
            rest = self._pieces.popleft()[done:]
            if rest:
                self._pieces.appendleft(rest)
        if self._missing:
            said = f"(fmstune: {self._missing} bytes are lost here: {trouble})\n"
            os.write(file, said.encode("utf-8", "replace"))
            self._missing = 0

    def text(self) -> bytes:
        return b"".join(self._pieces)

    def drop_all(self) -> int:
        """Give up; returns the bytes that were not lost before."""
        dropped, self._bytes, self._missing = self._bytes, 0, 0
        self._pieces.clear()
        return dropped


def _tail(text: str, cut: int, hidden: str) -> int | None:
    """The length of what stands behind a cut of the text, in `hidden`, which is the text without secrets;
    `None` where the cut goes through a secret, whose half would stay."""
    tail = hide(text[cut:])
    return len(tail) if hidden.endswith(tail) else None


def _end_of_characters(data: bytearray) -> int:
    """Where the last whole character ends: the rest of one that is cut may follow."""
    for back in range(1, min(4, len(data)) + 1):
        if data[-back] & 0xC0 != 0x80:
            wanted = 1 + sum(data[-back] >= first for first in (0xC0, 0xE0, 0xF0))
            return len(data) - back if wanted > back else len(data)
    return len(data)
