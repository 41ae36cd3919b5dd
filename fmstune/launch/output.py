"""The output of others during a run: kept in its `train.log`, away from what fmstune itself says.

Standard output and standard error are taken as the files that they are, so that what C libraries and child
processes write is kept too.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO

from fmstune._version import __version__
from fmstune.launch.output_log import OutputLog, serve
from fmstune.layout import TRAIN_LOG
from fmstune.secrets.redaction import hide, process_redactor, process_secrets

_SECONDS_TO_ANSWER = 10.0


@dataclass(frozen=True, slots=True)
class Kept:
    """What the log has: lines of others, and the bytes that it could not take, and why."""

    lines: int = 0
    lost: int = 0
    trouble: str = ""


class Output:
    """The output of others, while it is taken. `out` and `err` are standard output and standard error as they
    were, for what fmstune itself says."""

    def __init__(self, out: TextIO, err: TextIO, control: socket.socket) -> None:
        self.out, self.err = out, err
        self.path: Path | None = None
        self._control, self._process = control, os.getpid()
        self._answers = control.makefile("rb")
        self._known: object = None

    def keep_in(self, directory: Path) -> None:
        """The run has a directory, in which the log is."""
        self.path = directory / log_name()
        self._send(path=str(self.path.absolute()))
        self.tell_secrets()

    def tell_secrets(self) -> None:
        """Let the log know what this process has come to know as secrets. To be called before a text goes
        out that may hold them."""
        known = process_redactor().known
        if known is not self._known and os.getpid() == self._process:
            self._known = known
            self._send(secrets=process_secrets())

    def kept(self) -> Kept:
        """What the log has by now."""
        self._flush()
        return self._asked("count")

    def end(self) -> Kept:
        """Nothing is taken any more; returns what the log has in the end."""
        self._flush()
        kept = self._asked("end")
        self._control.close()
        return kept

    def _asked(self, question: str) -> Kept:
        self._send(**{question: True})
        try:
            return Kept(**json.loads(self._answers.readline()))
        except (OSError, ValueError):  # its process was killed, or hangs on a file system
            return Kept(trouble="the process that writes it does not answer")

    def _send(self, **message: Any) -> None:
        if os.getpid() == self._process:
            with contextlib.suppress(OSError):
                self._control.sendall(json.dumps(message).encode() + b"\n")

    def _flush(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()


@contextlib.contextmanager
def taken_output() -> Iterator[Output]:
    """Take the output of others in this block. An exception that leaves it is in the log as well."""
    out, err = _beside(sys.stdout, 1), _beside(sys.stderr, 2)
    before = [os.dup(1), os.dup(2)]
    output, child = _begun(out, err)
    streams = sys.stdout, sys.stderr
    hook, faults = sys.breakpointhook, faulthandler.is_enabled()
    sys.stdout, sys.stderr = _stream(1, output.tell_secrets), _stream(2, output.tell_secrets)
    faulthandler.enable(2)

    def put_back() -> None:
        output._flush()
        sys.stdout, sys.stderr, sys.breakpointhook = *streams, hook
        for number, file in enumerate(before, 1):
            os.dup2(file, number)

    def at_breakpoint(*arguments: Any, **named: Any) -> Any:
        put_back()  # somebody wants to talk
        return hook(*arguments, **named)

    sys.breakpointhook = at_breakpoint
    process = os.getpid()
    try:
        yield output
    except BaseException as error:
        of_run = output.path is not None and not hasattr(error, "signum")
        if of_run and not isinstance(error, (SystemExit, KeyboardInterrupt)):
            with contextlib.suppress(OSError, ValueError):
                print(hide(traceback.format_exc()), end="", file=sys.stderr)
        raise
    finally:
        if os.getpid() == process:
            put_back()
            faulthandler.enable(2) if faults else faulthandler.disable()
            kept = output.end()
            for number in before:
                os.close(number)
            _reap(child)
            if kept.lost or kept.trouble.endswith("answer"):
                what = f"the last {kept.lost:,} bytes of it are lost" if kept.lost else "it may lack its end"
                with contextlib.suppress(OSError, ValueError):
                    print(f"warning  {output.path}: {kept.trouble}; {what}", file=err, flush=True)


def log_name() -> str:
    """The name of the log of this machine: two machines that append to one file on a shared disk may write
    over each other."""
    machine = os.environ.get("GROUP_RANK", "0")
    return TRAIN_LOG if machine == "0" else TRAIN_LOG.replace(".", f"-machine-{machine}.")


def _begun(out: TextIO, err: TextIO) -> tuple[Output, int]:
    """Fork the process that keeps the log, before this one has threads, and give it our streams."""
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _keep(reading, theirs)
    ours.settimeout(_SECONDS_TO_ANSWER)
    theirs.close()
    os.close(reading)
    for number in (1, 2):
        os.dup2(writing, number)
    os.close(writing)
    return Output(out, err, ours), child


def _keep(reading: int, control: socket.socket) -> NoReturn:
    try:
        last = -1
        for number in sorted((2, reading, control.fileno())):
            os.closerange(last + 1, number)  # whoever waits for their ends must not wait for this process
            last = number
        os.closerange(last + 1, 1 << 16)
        rank = os.environ.get("RANK") if os.environ.get("WORLD_SIZE", "1") != "1" else None
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        head = f"--- {now} · fmstune {__version__} · process {os.getppid()}\n" if rank in (None, "0") else ""
        serve(reading, control, OutputLog(head, f"[rank {rank}] " if rank else ""))
    finally:
        os._exit(1)


def _reap(child: int) -> None:
    """Child processes of the run that are still there may write, and the log's process stays for them."""
    for _ in range(100):
        try:
            if os.waitpid(child, os.WNOHANG)[0]:
                return
        except ChildProcessError:
            return
        time.sleep(0.002)


def _beside(stream: TextIO, number: int) -> TextIO:
    """The stream by another number of its file; itself, where it is another file."""
    try:
        if stream.fileno() != number:
            return stream
    except (OSError, ValueError, AttributeError):
        return stream
    stream.flush()
    return open(os.dup(number), "w", encoding=stream.encoding, errors=stream.errors, buffering=1)


class _Told(io.FileIO):
    """A file before each write to which something is told."""

    def __init__(self, number: int, tell: Callable[[], None]) -> None:
        super().__init__(number, "w", closefd=False)
        self._tell = tell

    def write(self, data: Any) -> int:
        self._tell()
        return super().write(data)


def _stream(number: int, tell: Callable[[], None]) -> TextIO:
    raw = io.BufferedWriter(_Told(number, tell))
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)
