"""A shipper's log: everything that a tracker, its SDK and their processes print, without secrets and bounded.

File descriptors 1 and 2 are a pipe, since native code and child processes write to them directly. A small
separate process reads it. A thread could not: an SDK may hold the interpreter's lock, and the last output
of a crash must arrive after the shipper is gone. Nor could the trainer, which may be killed before the
shipper.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fmstune.delivery.shipping.waiting import readable
from fmstune.secrets.redaction import hide, know_secrets

LOG_BYTES = 1 << 20
"""The maximum size of a log: Aim warns ten times a second for as long as its server is away."""
_LONGEST_LINE = 1 << 16
_SHOWN_OF_LONG_LINE = 4096
_DRAIN_SECONDS = 2.0
"""An SDK's daemon may hold the pipe open, and write, after the shipper is gone."""
_END = b"end\n"
_KEY_BEGINS = re.compile(rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----")
_KEY_ENDS = re.compile(rb"-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----")


class ShipperLog:
    """The shipper's side of its log. Create it while the process is small and has one thread: it forks."""

    def __init__(self) -> None:
        """Start the reader; descriptors 1 and 2 are its pipe from now on. Output before `write_to` is
        buffered."""
        reading, writing = os.pipe()
        orders, self._orders = os.pipe()
        with contextlib.suppress(OSError, AttributeError):  # fewer waits for SDKs that print a lot
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, LOG_BYTES)
        shipper = os.getpid()
        self.reader = os.fork()
        if self.reader == 0:
            try:
                _Reader(reading, orders, shipper).run()
            finally:
                os._exit(0)
        os.close(reading)
        os.close(orders)
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        # A separate descriptor: some SDKs close 1 and 2.
        sys.stdout = sys.stderr = io.TextIOWrapper(
            _Unfailing(writing, "w"), "utf-8", "backslashreplace", write_through=True
        )

    def write_to(self, path: Path, secrets: Sequence[str]) -> None:
        """Write the log to `path` from now on, also without these secrets."""
        self._tell(json.dumps({"path": str(path), "secrets": list(secrets)}).encode() + b"\n")

    def end(self) -> None:
        """Return once everything printed is in the log."""
        self._tell(_END)
        deadline = time.monotonic() + _DRAIN_SECONDS + 1
        with contextlib.suppress(ChildProcessError):  # the SDK has waited for any child
            while os.waitpid(self.reader, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
                time.sleep(0.005)

    def _tell(self, message: bytes) -> None:
        with contextlib.suppress(OSError):  # without a reader there is no log, but there is delivery
            while message:
                message = message[os.write(self._orders, message) :]


class _Unfailing(io.FileIO):
    """A file whose errors do not affect the delivery."""

    def write(self, data: Any, /) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        with contextlib.suppress(OSError):
            while rest:
                rest = rest[os.write(self.fileno(), rest) :]
        return size


class _Reader:
    """The reader, in its process."""

    def __init__(self, pipe: int, orders: int, shipper: int) -> None:
        os.setsid()  # it outlives the shipper's group, until the last output is written
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(nowhere, descriptor)
        kept = sorted({pipe, orders})
        for first, last in zip([2, *kept], [*kept, 1 << 16], strict=True):
            # Closes the writing end, or the pipe would never end, and the answers, whose end reports a crash.
            os.closerange(first + 1, last)
        self._pipe, self._orders, self._shipper = pipe, orders, shipper
        self._log = BoundedLog(hide)
        self._told = b""

    def run(self) -> None:
        """Read until the shipper has ended, or says that it is about to."""
        death = self._end_of_shipper()
        waited = [self._pipe, self._orders, *([] if death is None else [death])]
        while True:
            ready = readable(waited, 0.5 if death is None else None)
            if self._orders in ready and not self._hear():
                waited.remove(self._orders)
            if self._pipe in ready:
                data = os.read(self._pipe, _LONGEST_LINE)
                self._log.feed(data)
                if not data:
                    waited.remove(self._pipe)
            if self._told == _END or death in ready or os.getppid() != self._shipper:
                break
        if self._pipe in waited:
            self._drain()
        self._log.end()

    def _end_of_shipper(self) -> int | None:
        """A descriptor that is ready when the shipper has ended; `None` where the system has none."""
        try:
            return os.pidfd_open(self._shipper)
        except (OSError, AttributeError):
            return None

    def _hear(self) -> bool:
        data = os.read(self._orders, _LONGEST_LINE)
        self._told += data
        line, newline, rest = self._told.partition(b"\n")
        if newline and line + newline != _END:
            order = json.loads(line)
            know_secrets(order["secrets"])
            self._log.write_to(Path(order["path"]))
            self._told = rest
        return bool(data)

    def _drain(self) -> None:
        os.set_blocking(self._pipe, False)
        deadline = time.monotonic() + _DRAIN_SECONDS
        with contextlib.suppress(BlockingIOError):
            while time.monotonic() < deadline and (data := os.read(self._pipe, _LONGEST_LINE)):
                self._log.feed(data)


class BoundedLog:
    """A log file that accepts bytes in any pieces and writes whole lines, each without secrets, up to
    `LOG_BYTES`. Output before it has a path is buffered, up to a limit."""

    def __init__(self, hide: Callable[[str], str]) -> None:
        self._hide = hide
        self._file: int | None = None
        self._room = LOG_BYTES
        self._early: list[bytes] = []
        self._line = b""  # the incomplete last line
        self._in_long_line = self._in_key = False

    def write_to(self, path: Path) -> None:
        """Write to the end of this file."""
        with contextlib.suppress(OSError):  # no room, no permission: then there is no log
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            self._room = LOG_BYTES - os.fstat(self._file).st_size
        early, self._early = self._early, []
        for data in early:
            self.feed(data)

    def feed(self, data: bytes) -> None:
        """Process the next bytes."""
        if self._file is None:
            if sum(map(len, self._early)) < _LONGEST_LINE:
                self._early.append(data)
            return
        if self._room <= 0:
            return
        # A carriage return ends a line too: progress bars use only these.
        end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if not end:
            self._line += data
        else:
            lines, self._line = self._line + data[:end], data[end:]
            if self._in_long_line:
                lines = lines[min(filter(None, (lines.find(b"\n") + 1, lines.find(b"\r") + 1))) :]
                self._in_long_line = False
            self._write(lines)
        if len(self._line) > _LONGEST_LINE:
            # Only its beginning, where no secret can be cut at the end of the buffer.
            if not self._in_long_line:
                shown = self._hidden(self._line)[:_SHOWN_OF_LONG_LINE]
                self._put(f"{shown}… [a long line is cut]\n".encode())
            self._line, self._in_long_line = b"", True

    def end(self) -> None:
        """Write the rest, an unterminated last line, and close the file."""
        if self._file is None:
            return
        if self._line and not self._in_long_line:
            self._write(self._line)
        self._line = b""
        os.close(self._file)
        self._file = None

    def _write(self, lines: bytes) -> None:
        if self._in_key:  # a private key that started on an earlier line
            end = _KEY_ENDS.search(lines)
            if end is None:
                return
            lines, self._in_key = lines[end.end() :], False
        begins = [found.end() for found in _KEY_BEGINS.finditer(lines)]
        self._in_key = bool(begins) and _KEY_ENDS.search(lines, begins[-1]) is None
        self._put(self._hidden(lines).encode("utf-8", "backslashreplace"))

    def _hidden(self, data: bytes) -> str:
        try:
            return self._hide(data.decode("utf-8", "backslashreplace"))
        except Exception as error:  # unsearched data is not written, and the reader continues
            return f"[{len(data)} bytes could not be searched for secrets: {type(error).__name__}]\n"

    def _put(self, data: bytes) -> None:
        if self._file is None or self._room <= 0:
            return
        self._room -= len(data)
        if self._room <= 0:
            data = data[: self._room] + b"\n[the log is full]\n" if self._room else data
        with contextlib.suppress(OSError):  # a full disk must not affect the delivery
            os.write(self._file, data)
