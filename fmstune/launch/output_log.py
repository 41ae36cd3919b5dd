"""`train.log`: what others than fmstune print during a run, written by a process beside it.

A process, and not a thread: what is printed with Python's lock held, or last before a crash, is kept as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
from collections import deque
from pathlib import Path
from typing import Any, NoReturn

from fmstune.secrets.redaction import hide, know_secrets

FIRST_BYTES, LAST_BYTES = 64 << 20, 1 << 20
"""What is kept of a process's output; of what is between them, the number of bytes."""
_WAITING_BYTES = 16 << 20
"""What waits in memory while the disk is full."""
_LONGEST_LINE = 1 << 20
_SECONDS_TO_SETTLE = 0.02
"""A secret of several lines is found where these are seen together."""
_SECONDS_TO_RETRY = 1.0
_CRASH, _THREAD = "Fatal Python error", "Current thread"
"""How `faulthandler` begins, and what it says of the thread that crashed."""
_LINES_OF_THREAD = 8


class OutputLog:
    """The log of one process: whole lines without secrets, each after `prefix`; the first of them after
    `head`. Of a line that redraws itself, as progress bars do, its last state is kept.

    Until `path` is known, and while it can't be written to, what comes waits in memory.
    """

    def __init__(
        self, head: str = "", prefix: str = "", *, first: int = FIRST_BYTES, last: int = LAST_BYTES,
        waiting: int = _WAITING_BYTES,
    ) -> None:  # fmt: skip
        self.path: Path | None = None
        self._lines = 0
        self.lost = 0
        self.trouble = ""
        self._prefix, self._waiting_most = prefix, waiting
        self._room, self._last_most = first, last
        self._head = head.encode("utf-8", "replace")
        self._part = self._waiting = b""
        self._last: deque[bytes] = deque()
        self._last_bytes = self._left_out = 0

    @property
    def count(self) -> int:
        """The lines that came, with one that has no end yet."""
        return self._lines + bool(self._part)

    def take(self, data: bytes) -> None:
        """The next bytes that were printed."""
        whole, newline, self._part = (self._part + data).rpartition(b"\n")
        self._part = self._part[self._part.rfind(b"\r", 0, -1) + 1 :]
        if len(self._part) > _LONGEST_LINE:
            whole, newline, self._part = whole + newline + self._part, b"\n", b""
        if newline:
            self._keep(whole.split(b"\n"))

    def flush(self) -> None:
        """Try again to write what waits."""
        if self.path is None or not (self._waiting or self._head):
            return
        self._waiting, self._head = self._head + self._waiting, b""
        try:
            # Opened each time: somebody may have moved the file away, and the folder may be back.
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                while self._waiting:
                    self._waiting = self._waiting[os.write(file, self._waiting) :]
            finally:
                os.close(file)
        except OSError as error:
            self.trouble = error.strerror or str(error)

    def end(self) -> None:
        """Nothing follows."""
        if self._part:
            part, self._part = self._part, b""
            self._keep([part])
        if self._left_out:
            self._write(b"(fmstune: %d bytes are left out here)\n" % self._left_out)
            self._left_out = 0
        self._write(b"".join(self._last))
        self._last.clear()
        self.flush()
        self.lost += len(self._waiting) if self.path else 0

    def last_lines(self) -> list[str]:
        """The newest lines that wait, or were kept; of a log that can't be read, none."""
        text = self._waiting + b"".join(self._last)
        with contextlib.suppress(OSError):
            if self.path is not None:
                text = self.path.read_bytes()[-65_536:] + text
        return text.decode("utf-8", "replace").splitlines()

    def _keep(self, lines: list[bytes]) -> None:
        shown = [line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", "replace") for line in lines]
        self._lines += len(shown)
        for line in hide("\n".join(shown)).split("\n"):
            data = f"{self._prefix}{line}\n".encode("utf-8", "replace")
            if self._room >= len(data):
                self._room -= len(data)
                self._write(data, at_once=False)
                continue
            self._room = 0
            self._last.append(data)
            self._last_bytes += len(data)
            while self._last_bytes > self._last_most:
                gone = len(self._last.popleft())
                self._last_bytes -= gone
                self._left_out += gone
        self.flush()

    def _write(self, data: bytes, *, at_once: bool = True) -> None:
        if len(self._waiting) + len(data) > self._waiting_most:
            self.flush()
        if len(self._waiting) + len(data) > self._waiting_most:
            self.lost += len(data)
            return
        self._waiting += data
        if at_once:
            self.flush()


def serve(reading: int, control: socket.socket, log: OutputLog) -> NoReturn:
    """Keep in the log what comes from `reading`, until nobody has its other end; `control` says where the log
    is, which secrets are known by now, and when the run is over. For a process of its own.

    Standard error is the terminal's until then: a run that never got a directory has its output there, and
    one that crashed what Python said last.
    """
    # Ctrl-C and a scheduler's signals reach all processes: this one ends after the others.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(signum, signal.SIG_IGN)
    printed, heard, over = True, True, False
    while printed or heard:
        watched: list[Any] = [*([reading] if printed else []), *([control] if heard else [])]
        ready = select.select(watched, [], [], _SECONDS_TO_RETRY if log.trouble else None)[0]
        data = _read(reading) if reading in ready else b""
        # What was said of secrets before they were printed is there by now.
        messages = _received(control) if heard and _is_ready(control) else []
        for message in messages:
            if "secrets" in message:
                know_secrets(message["secrets"])
            if "path" in message:
                log.path = Path(message["path"])
        if data:
            log.take(data)
        for message in messages:
            if "count" in message or "end" in message:
                _answer(log, control, reading, end="end" in message)
        over = over or any("end" in message for message in messages)
        heard = heard and not over and {"gone": True} not in messages
        printed = printed and (reading not in ready or bool(data))
        log.flush()
    log.end()  # child processes of the run may have gone on
    if not over:
        _say_last(log)
    os._exit(0)


def _answer(log: OutputLog, control: socket.socket, reading: int, *, end: bool) -> None:
    """Say what the log has, with all that was printed until now; at the `end`, nothing more is the run's."""
    while _is_ready(reading) and (data := _read(reading)):
        log.take(data)
    if end:
        log.end()
        if log.path is None:
            _say(log.last_lines())
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # whose end somebody may wait for
    answer = {"lines": log.count, "lost": log.lost, "trouble": log.trouble}
    with contextlib.suppress(OSError):
        control.sendall(json.dumps(answer).encode() + b"\n")


def _is_ready(file: int | socket.socket) -> bool:
    return bool(select.select([file], [], [], 0)[0])


def _received(control: socket.socket) -> list[dict[str, Any]]:
    data = b""
    while not data.endswith(b"\n"):
        try:
            more = control.recv(1 << 16)
        except OSError:
            more = b""
        if not more:
            return [*map(json.loads, data.splitlines()[: data.count(b"\n")]), {"gone": True}]
        data += more
    return [json.loads(line) for line in data.splitlines()]


def _read(reading: int) -> bytes:
    """What there is, and what comes at once behind it."""
    data = os.read(reading, 1 << 16)
    while data and len(data) < 1 << 18 and select.select([reading], [], [], _SECONDS_TO_SETTLE)[0]:
        more = os.read(reading, 1 << 16)
        if not more:
            break
        data += more
    return data


def _say_last(log: OutputLog) -> None:
    """The process has ended without a word, so that nobody but this one can say what it crashed with."""
    lines = log.last_lines()
    if log.path is None:
        _say(lines)
        return
    crash = next((at for at in reversed(range(len(lines))) if _CRASH in lines[at]), None)
    if crash is not None:
        thread = next((at for at in range(crash, len(lines)) if _THREAD in lines[at]), crash + 1)
        shown = [lines[crash], *lines[thread : thread + _LINES_OF_THREAD]]
        _say([*shown, f"error: the process has crashed; see {log.path}"])


def _say(lines: list[str]) -> None:
    with contextlib.suppress(OSError):
        text = "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
        while text:
            text = text[os.write(2, text) :]
