"""Redirect the output of libraries and user code during a run to its `train.log`, apart from fmstune's own.

Standard output and standard error are redirected as file descriptors, so that the output of C libraries and
child processes is kept, too.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import io
import os
import select
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TextIO

from fmstune._version import __version__
from fmstune.launch.output_keeper import HEAD, serve
from fmstune.launch.output_link import Link
from fmstune.launch.output_log import OutputLog
from fmstune.layout import TRAIN_LOG
from fmstune.secrets.redaction import hide, process_redactor, process_secrets

_PIPE_BYTES = 1 << 20
"""The size of the pipe: how much can be printed while the log's process is busy."""


@dataclass(frozen=True, slots=True)
class LogContent:
    """The content of the log: the number of lines, and of bytes that it could not take, and why."""

    lines: int = 0
    lost: int = 0
    problem: str = ""


class Output:
    """The redirected output. `out` and `err` are the original standard output and standard error, for
    fmstune's own messages."""

    def __init__(self, out: TextIO, err: TextIO, control: socket.socket, reading: int) -> None:
        self.out, self.err = out, err
        self.path: Path | None = None
        self._process = os.getpid()
        self._known: object = None
        self._streams = sys.stdout, sys.stderr
        self._files = os.dup(1), os.dup(2)
        self._redirect_lock = threading.Lock()
        self._is_redirected = True
        self.ours: tuple[TextIO, TextIO] = _stream(1, self.send_secrets), _stream(2, self.send_secrets)
        self._link = Link(control, lambda: self._continue_without_log(reading))
        self._reading = reading

    def set_directory(self, directory: Path) -> None:
        """Set the run's directory, which will contain the log."""
        self.path = directory / log_name()
        self._send(path=str(self.path.absolute()))
        self.send_secrets()

    def send_secrets(self) -> None:
        """Send the log's process the secrets known to this process. Call it before a text that may contain
        them is printed."""
        known = process_redactor().known
        if known is not self._known and os.getpid() == self._process:
            self._known = known
            self._send(secrets=process_secrets())

    def kept(self) -> LogContent:
        """The current content of the log."""
        self._flush()
        kept = self._ask_log("count")
        return replace(kept, lines=max(kept.lines, _lines_of_all_ranks(self.path)))

    def restore(self) -> None:
        """Restore standard output and standard error."""
        self._flush()
        sys.stdout, sys.stderr = self._streams
        with self._redirect_lock:
            self._is_redirected = False
            for number, file in enumerate(self._files, 1):
                os.dup2(file, number)

    def end(self) -> LogContent:
        """Stop the redirection; return the final content of the log."""
        kept = self._ask_log("end")
        self._link.close()
        for file in self._files:
            os.close(file)
        if not self._link.is_lost:
            os.close(self._reading)
        return kept

    @property
    def is_lost(self) -> bool:
        """Whether the log's process has died."""
        return self._link.is_lost

    def _ask_log(self, question: str) -> LogContent:
        self._send(**{question: True})
        answer = self._link.answer() or {"problem": "the process that writes it does not answer"}
        return LogContent(**answer)

    def _send(self, **message: Any) -> None:
        if os.getpid() == self._process:
            self._link.send(message)

    def _flush(self) -> None:
        # User code may have replaced them by anything, including `None`, which may raise anything.
        for stream in (*self.ours, sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()

    def _continue_without_log(self, reading: int) -> None:
        """Continue the run without its log: print to standard error instead, since standard output is for the
        run's answer."""
        terminal = os.dup(self._files[1])
        with self._redirect_lock:
            if self._is_redirected:
                os.dup2(terminal, 1)
                os.dup2(terminal, 2)
        with contextlib.suppress(OSError, ValueError):
            said = "the process that writes it has died; further output appears here instead"
            print(f"warning  {self.path or TRAIN_LOG}: {said}", file=self.err, flush=True)
        # Child processes still write to the pipe: without a reader, they would block or be killed.
        with contextlib.suppress(OSError):
            while select.select([reading], [], []) and (data := os.read(reading, 1 << 16)):
                text = hide(data.decode("utf-8", "replace")).encode("utf-8", "replace")
                while text:
                    text = text[os.write(terminal, text) :]


@contextlib.contextmanager
def redirected_output() -> Iterator[Output]:
    """Redirect the output of libraries and user code within this block, and log an exception that leaves
    it."""
    output, child = _start(_duplicate(sys.stdout, 1), _duplicate(sys.stderr, 2))
    hook, faults = sys.breakpointhook, faulthandler.is_enabled()
    sys.stdout, sys.stderr = output.ours
    faulthandler.enable(2)

    def at_breakpoint(*arguments: Any, **named: Any) -> Any:
        output.restore()  # the debugger needs the terminal
        sys.breakpointhook = hook
        return hook(*arguments, **named)

    sys.breakpointhook = at_breakpoint
    process = os.getpid()
    try:
        yield output
    except BaseException as error:
        of_run = output.path is not None and not hasattr(error, "signum")
        if of_run and not isinstance(error, (SystemExit, KeyboardInterrupt)):
            with contextlib.suppress(OSError, ValueError):
                print(hide(traceback.format_exc()), end="", file=output.ours[1])
        raise
    finally:
        if os.getpid() == process:
            output.restore()
            sys.breakpointhook = hook
            faulthandler.enable(2) if faults else faulthandler.disable()
            kept = output.end()
            _reap(child)
            if not output.is_lost and (kept.lost or kept.problem.endswith("answer")):
                what = f"{kept.lost:,} bytes of it are lost" if kept.lost else "its end may be missing"
                with contextlib.suppress(OSError, ValueError):
                    print(f"warning  {output.path}: {kept.problem}; {what}", file=output.err, flush=True)


def log_name() -> str:
    """The name of this machine's log: two machines that append to one file on a shared disk may overwrite
    each other's data."""
    machine = os.environ.get("GROUP_RANK", "0")
    return TRAIN_LOG if machine == "0" else TRAIN_LOG.replace(".", f"-machine-{machine}.")


def _lines_of_all_ranks(path: Path | None) -> int:
    """The number of lines from all ranks in the log since this process started it; 0 for a run in one
    process, whose log knows the number without reading the file."""
    if path is None or os.environ.get("WORLD_SIZE", "1") == "1":
        return 0
    with contextlib.suppress(OSError):
        _, head, own = path.read_bytes().rpartition(_end_of_header(os.getpid()))
        return own.count(b"\n") if head else 0
    return 0


def _end_of_header(process: int) -> bytes:
    return f" · process {process}\n".encode()


def _start(out: TextIO, err: TextIO) -> tuple[Output, int]:
    """Fork the process that keeps the log, before this one has threads, and redirect our streams to it."""
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    with contextlib.suppress(OSError, AttributeError):  # beyond the user's limit; not on this system
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    child = os.fork()
    if child == 0:
        _run_log_process(reading, theirs)
    theirs.close()
    output = Output(out, err, ours, reading)
    for number in (1, 2):
        os.dup2(writing, number)
    os.close(writing)
    return output, child


def _run_log_process(reading: int, control: socket.socket) -> NoReturn:
    try:
        last = -1
        for number in sorted((2, reading, control.fileno())):
            os.closerange(last + 1, number)  # so that readers at their other ends see them close
            last = number
        os.closerange(last + 1, 1 << 16)
        rank = os.environ.get("RANK") if os.environ.get("WORLD_SIZE", "1") != "1" else None
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        head = f"{HEAD}{now} · fmstune {__version__}{_end_of_header(os.getppid()).decode()}"
        serve(
            reading,
            control,
            OutputLog(head if rank in (None, "0") else "", f"[rank {rank}] " if rank else ""),
        )
    finally:
        os._exit(1)


def _reap(child: int) -> None:
    """Wait briefly for the log's process: it stays as long as child processes of the run may still write."""
    for _ in range(100):
        try:
            if os.waitpid(child, os.WNOHANG)[0]:
                return
        except ChildProcessError:
            return
        time.sleep(0.002)


def _duplicate(stream: TextIO, number: int) -> TextIO:
    """A duplicate of the stream with another file descriptor; the stream itself if it does not use
    `number`."""
    try:
        if stream.fileno() != number:
            return stream
    except (OSError, ValueError, AttributeError):
        return stream
    stream.flush()
    return open(os.dup(number), "w", encoding=stream.encoding, errors=stream.errors, buffering=1)


class _NotifyingFile(io.FileIO):
    """A file that calls a function before each write."""

    def __init__(self, number: int, before_write: Callable[[], None]) -> None:
        super().__init__(number, "w", closefd=False)
        self._before_write = before_write

    def write(self, data: Any) -> int:
        self._before_write()
        return super().write(data)


def _stream(number: int, before_write: Callable[[], None]) -> TextIO:
    raw = io.BufferedWriter(_NotifyingFile(number, before_write))
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)
