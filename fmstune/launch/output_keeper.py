"""The separate process that keeps a run's `train.log`.

It is a process rather than a thread, so that output printed while the GIL is held, or right before a crash,
is kept, too. Printing never waits for the log: a thread reads the output into memory; output that does not
fit is counted and dropped.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import threading
from collections import deque
from pathlib import Path
from typing import Any, NoReturn

from fmstune.launch.output_log import OutputLog
from fmstune.secrets.redaction import know_secrets

BACKLOG_BYTES = 16 << 20
_PIECE = 1 << 18
_SECONDS_TO_SETTLE = 0.02
"""How long to collect lines: a multi-line secret is found only if its lines are searched together."""
_SECONDS_TO_RETRY = 1.0
_CRASH, _THREAD = "Fatal Python error", "Current thread"
"""The start of `faulthandler`'s output, and its mark of the thread that crashed."""
_LINES_OF_THREAD = 8
_LAST_LINES = 3
HEAD = "--- "
"""The start of the line with which each process begins its part of the log."""


class _Backlog:
    """Output that is not in the log yet: pieces of bytes, and the sizes of gaps between them."""

    def __init__(self, reading: int, most: int) -> None:
        self._reading, self._most = reading, most
        os.set_blocking(reading, False)  # the writing end is another file description, and does not change
        self._pieces: deque[bytearray | int] = deque()
        self._bytes = 0
        self._full = False
        self._lock = threading.Lock()
        self.ended = False
        self.wakeup, self._wakeup_writer = os.pipe()
        os.set_blocking(self.wakeup, False)
        os.set_blocking(self._wakeup_writer, False)
        threading.Thread(target=self._follow, daemon=True).start()

    def pump(self) -> None:
        """Read the current content of the pipe."""
        with self._lock:
            for _ in range(64):  # a program that prints endlessly must not block us
                try:
                    data = os.read(self._reading, 1 << 20)
                except BlockingIOError:
                    return
                if not data:
                    self.ended = True
                    return
                self._add(data)

    def next(self) -> bytes | int | None:
        """Return the next piece, or the size of a gap; `None` if there is nothing."""
        with self._lock:
            with contextlib.suppress(BlockingIOError):
                os.read(self.wakeup, 1 << 16)
            if not self._pieces:
                return None
            piece = self._pieces.popleft()
            if isinstance(piece, int):
                return piece
            self._bytes -= len(piece)
            return bytes(piece)

    @property
    def waiting(self) -> int:
        """The number of waiting pieces."""
        return len(self._pieces)

    def _add(self, data: bytes) -> None:
        # Once full, drop everything until half full: one large gap is better than many small ones.
        self._full = self._bytes + len(data) > (self._most // 2 if self._full else self._most)
        last = self._pieces[-1] if self._pieces else None
        if self._full and isinstance(last, int):
            self._pieces[-1] = last + len(data)
        elif self._full:
            self._pieces.append(len(data))
        elif isinstance(last, bytearray) and len(last) < _PIECE:
            last += data
        else:
            self._pieces.append(bytearray(data))
        self._bytes += 0 if self._full else len(data)
        if last is None:
            self._notify()

    def _notify(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wakeup_writer, b".")

    def _follow(self) -> None:
        while not self.ended:
            select.select([self._reading], [], [])
            self.pump()
        self._notify()


def serve(reading: int, control: socket.socket, log: OutputLog) -> NoReturn:
    """Write everything read from `reading` to the log, until its other end is closed everywhere. `control`
    receives the location of the log, the known secrets, and the end of the run. Runs in a separate process.

    Standard error stays the terminal until then: it gets the output of a run that never had a directory, and
    Python's last output if the run crashed.
    """
    # Ctrl-C and a scheduler's signals reach all processes, but this one must exit after the others.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(signum, signal.SIG_IGN)
    backlog = _Backlog(reading, BACKLOG_BYTES)
    heard, over = True, False
    while heard or backlog.waiting or not backlog.ended:
        piece = backlog.next()
        if piece is None:
            seconds = _SECONDS_TO_SETTLE if log.has_held else _SECONDS_TO_RETRY if log.has_unwritten else None
            watched: list[Any] = [backlog.wakeup, *([control] if heard else [])]
            if not select.select(watched, [], [], seconds)[0]:
                log.write_held()
            piece = backlog.next()
        # Messages about secrets that were sent before printing them have arrived by now.
        messages = _received(control) if heard and _is_ready(control) else []
        for message in messages:
            if "secrets" in message:
                know_secrets(message["secrets"])
            if "path" in message:
                log.path = Path(message["path"])
                log.flush()
        _write_piece(log, piece)
        for message in messages:
            if "count" in message or "end" in message:
                _answer(log, control, backlog, end="end" in message)
        over = over or any("end" in message for message in messages)
        heard = heard and not over and {"gone": True} not in messages
    log.end()  # child processes of the run may have continued
    if not over:
        _print_last_output(log)
    os._exit(0)


def _write_piece(log: OutputLog, piece: bytes | int | None) -> None:
    if isinstance(piece, int):
        log.gap(piece)
    elif piece:
        log.take(piece)


def _answer(log: OutputLog, control: socket.socket, backlog: _Backlog, *, end: bool) -> None:
    """Send the content of the log, with everything printed so far; after `end`, output is not the run's."""
    backlog.pump()
    for _ in range(backlog.waiting):
        _write_piece(log, backlog.next())
        _send_answer(control, {})  # a sign of progress: the file system does not hang
    if end:
        log.end()
        if log.path is None:
            _print(log.last_lines())
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a reader may wait until it closes
    else:
        log.write_held()
    _send_answer(control, {"lines": log.count, "lost": log.lost, "problem": log.problem})


def _send_answer(control: socket.socket, answer: dict[str, Any]) -> None:
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


def _print_last_output(log: OutputLog) -> None:
    """Print the last output of a run whose process ended without a message: a crash, or all of its output."""
    lines = log.last_lines()
    if log.path is None:
        _print(lines)
        return
    lines = lines[1 + max((at for at, line in enumerate(lines) if line.startswith(HEAD)), default=-1) :]
    crash = next((at for at in reversed(range(len(lines))) if _CRASH in lines[at]), None)
    if crash is not None:
        thread = next((at for at in range(crash, len(lines)) if _THREAD in lines[at]), crash + 1)
        shown = [lines[crash], *lines[thread : thread + _LINES_OF_THREAD]]
        _print([*shown, f"error: the process has crashed; see {log.path}"])
    elif "TORCHELASTIC_RUN_ID" not in os.environ:  # of a rank, the launcher reports how it ended
        said = [line for line in lines if line.strip()][-_LAST_LINES:]
        _print([*said, f"error: the process was killed, or code in it called exit; see {log.path}"])


def _print(lines: list[str]) -> None:
    with contextlib.suppress(OSError):
        text = "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
        while text:
            text = text[os.write(2, text) :]
