"""Write `train.log`: complete lines without secrets, with bounded file size and memory.

Everything works on pieces of many lines: lines may arrive too fast to inspect each of them.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from pathlib import Path

from fmstune.secrets.redaction import hide, longest_secret

FIRST_BYTES, LAST_BYTES = 64 << 20, 1 << 20
"""How much of a process's output is kept at its start and end; of the rest, only the number of bytes."""
_WAITING_BYTES = 16 << 20
"""How much is buffered in memory while the disk is full."""
LONGEST_LINE = 1 << 20
_AT_ONCE = 1 << 18
"""The number of characters searched for secrets together, if more arrive at once."""
_CUTS = 16
"""The number of positions to try for a cut that does not split a secret."""
_RETURN = ord("\r")
_TOO_FAST = "printed faster than it could be searched for secrets"


class OutputLog:
    """The log of one process: complete lines without secrets, each after `prefix`, and `head` before the
    first. For a line that redraws itself, such as a progress bar, only its last state is kept.

    Output is held until `write_held`, or until there is much of it: a multi-line secret is found only if its
    lines are searched together. Until `path` is known, and while it cannot be written, output is buffered in
    memory.
    """

    def __init__(
        self, head: str = "", prefix: str = "", *, first: int = FIRST_BYTES, last: int = LAST_BYTES,
        waiting: int = _WAITING_BYTES, longest_line: int = LONGEST_LINE, at_once: int = _AT_ONCE,
    ) -> None:  # fmt: skip
        self.path: Path | None = None
        self._lines = 0
        self.problem = ""
        self._prefix = prefix
        self._longest_line, self._at_once = longest_line, at_once
        self._room, self._last_most = first, last
        self._head = head.encode("utf-8", "replace")
        self._part = bytearray()
        self._held: list[str] = []
        self._held_length = 0
        self._cut_beyond = self._release_beyond = 0
        # The bytes of a gap, and of the incomplete line after it.
        self._lost = self._passed_over = self._to_pass_over = 0
        self._waiting = _Waiting(waiting)
        self._last: deque[bytes] = deque()
        self._last_bytes = self._left_out = 0

    @property
    def count(self) -> int:
        """The number of lines so far, including an unfinished one."""
        return self._lines + bool(self._part)

    @property
    def lost(self) -> int:
        """The number of bytes missing from the log, except those left out of the middle of a long one."""
        return self._lost + self._passed_over

    @property
    def has_held(self) -> bool:
        """Whether there are complete lines that `write_held` would write."""
        return bool(self._held)

    @property
    def has_unwritten(self) -> bool:
        """Whether there is output that could not be written yet."""
        return self.path is not None and bool(self._waiting or self._head)

    def take(self, data: bytes) -> None:
        """Add the next printed bytes."""
        if self._passed_over:
            data = self._after_gap(data)
        searched = len(self._part.rstrip(b"\r")) if self._part.endswith(b"\r") else len(self._part)
        self._part += data
        if b"\n" in data:
            whole, _, part = bytes(self._part).rpartition(b"\n")
            self._part, searched, self._cut_beyond = bytearray(part), 0, 0
            self._hold(whole)
        # Not trailing ones: a carriage return before a newline (Windows) does not redraw the line.
        end = len(self._part)
        while end and self._part[end - 1] == _RETURN:
            end -= 1
        del self._part[end + 1 :]
        del self._part[: self._part.rfind(b"\r", searched, end) + 1]
        # Each of these searches everything: after a failed attempt to cut, wait before the next one.
        if len(self._part) > max(self._cut_beyond, self._longest_line + longest_secret()):
            self._cut_line()
            self._cut_beyond = len(self._part) + longest_secret()
        elif self._held_length > max(self._release_beyond, longest_secret()) + self._at_once:
            self._release()
            self._release_beyond = self._held_length

    def gap(self, count: int) -> None:
        """Record that bytes are missing here. Also drops text that may be part of a secret split by the
        gap."""
        if self._held:
            self._release()
        self._passed_over += count + sum(len(text.encode()) + 1 for text in self._held) + len(self._part)
        self._to_pass_over = longest_secret()
        self._held, self._held_length, self._part = [], 0, bytearray()
        self.problem = self.problem or _TOO_FAST

    def write_held(self) -> None:
        """Write the complete lines so far: no more output is expected soon."""
        if self._held:
            self._emit(hide(self._take_held()))
        self.flush()

    def flush(self) -> None:
        """Try again to write the buffered output."""
        if self.path is None or not self.has_unwritten:
            return
        try:
            # Opened each time: the file may have been moved, and a missing folder may be back.
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                while self._head:
                    self._head = self._head[os.write(file, self._head) :]
                self._waiting.write_to(file, self.problem)
            finally:
                os.close(file)
        except OSError as error:
            self.problem = error.strerror or str(error)

    def end(self) -> None:
        """Finish the log."""
        if self._part:
            part, self._part = bytes(self._part), bytearray()
            self._hold(part)
        self.write_held()
        if self._passed_over:
            self._report_gap()
        if self._left_out:
            self._write(b"(fmstune: %d bytes left out here)\n" % self._left_out)
            self._left_out = 0
        for data in self._last:
            self._write(data)
        self._last.clear()
        self._last_bytes = 0
        self.flush()
        if self.path:
            self._lost += self._waiting.drop_all()

    def last_lines(self) -> list[str]:
        """The newest lines, buffered or written; without the written ones if the log cannot be read."""
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
        """Write the part of the text that cannot contain the start of an incomplete secret."""
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
        """Write the start of a line that grows endlessly, cut at a position outside of secrets."""
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
        if len(self._part) > 4 * (self._longest_line + margin):  # looks like one secret of megabytes
            self._held, self._held_length = [], 0
            self._lines += 1
            self._emit(hidden)
            del self._part[:end]

    def _after_gap(self, data: bytes) -> bytes:
        """The data from the first complete line after a gap, at some distance."""
        at = data.find(b"\n", self._to_pass_over) + 1 if len(data) > self._to_pass_over else 0
        gone = at or len(data)
        self._to_pass_over = max(0, self._to_pass_over - gone)
        self._passed_over += gone
        if at:
            self._report_gap()
        return data[gone:]

    def _report_gap(self) -> None:
        count, self._passed_over = self._passed_over, 0
        self._lost += count
        self._keep(b"(fmstune: %d bytes lost here: %s)\n" % (count, _TOO_FAST.encode()))

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
    """A buffer of up to `most` bytes to write; a line reports how many more bytes are missing."""

    def __init__(self, most: int) -> None:
        self._most, self._bytes, self._missing = most, 0, 0
        self._pieces: deque[memoryview] = deque()

    def __bool__(self) -> bool:
        return bool(self._pieces) or self._missing > 0

    def would_overflow(self, data: bytes) -> bool:
        return self._bytes + len(data) > self._most

    def add(self, data: bytes) -> int:
        """Add data; return the number of bytes that did not fit: complete lines, and all data until there is
        room again."""
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

    def write_to(self, file: int, problem: str) -> None:
        """Write everything; data that an error leaves unwritten stays."""
        while self._pieces:
            done = os.write(file, self._pieces[0])
            self._bytes -= done
            rest = self._pieces.popleft()[done:]
            if rest:
                self._pieces.appendleft(rest)
        if self._missing:
            said = f"(fmstune: {self._missing} bytes lost here: {problem})\n"
            os.write(file, said.encode("utf-8", "replace"))
            self._missing = 0

    def text(self) -> bytes:
        return b"".join(self._pieces)

    def drop_all(self) -> int:
        """Drop the buffer; return the number of newly lost bytes."""
        dropped, self._bytes, self._missing = self._bytes, 0, 0
        self._pieces.clear()
        return dropped


def _tail(text: str, cut: int, hidden: str) -> int | None:
    """The length of the text after a cut, in `hidden`, the text without secrets; `None` if the cut splits a
    secret, half of which would remain."""
    tail = hide(text[cut:])
    return len(tail) if hidden.endswith(tail) else None


def _end_of_characters(data: bytearray) -> int:
    """The end of the last complete UTF-8 character: the rest of a split one may follow."""
    for back in range(1, min(4, len(data)) + 1):
        if data[-back] & 0xC0 != 0x80:
            wanted = 1 + sum(data[-back] >= first for first in (0xC0, 0xE0, 0xF0))
            return len(data) - back if wanted > back else len(data)
    return len(data)
