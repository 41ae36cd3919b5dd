"""A command forked from a warm interpreter, with the interface of `subprocess.Popen`."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import IO


class Process:
    """A command forked from the warm interpreter, with the interface of `subprocess.Popen`."""

    def __init__(
        self, arguments: Sequence[str], answer: socket.socket, stdout: IO[str] | None, stderr: IO[str] | None
    ) -> None:
        self.args = arguments
        self.returncode: int | None = None
        self.stdout, self.stderr = stdout, stderr
        self._answer = answer
        self._answers = answer.makefile("rb")
        self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        """The exit code as `Popen` reports it, or `None` while the process runs."""
        if self.returncode is None and self._answered(0):
            self._read()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the process to end, and return its exit code."""
        if self.returncode is None:
            if not self._answered(timeout):
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self._read()
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Read both streams to their end, and wait for the process."""
        said = {}

        def read(stream: IO[str] | None, name: str) -> None:
            said[name] = "" if stream is None or stream.closed else stream.read()

        readers = [
            threading.Thread(target=read, args=(stream, name), daemon=True)
            for stream, name in ((self.stdout, "out"), (self.stderr, "err"))
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(timeout)
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(timeout)
        self._close()
        return said["out"], said["err"]

    def send_signal(self, signum: int) -> None:
        """Send a signal, if the process still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, signum)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._close()
        self.wait()

    def _answered(self, timeout: float | None) -> bool:
        poll = select.poll()
        poll.register(self._answer, select.POLLIN)
        return bool(poll.poll(None if timeout is None else timeout * 1000))

    def _read(self) -> None:
        line = self._answers.readline()
        if not line:
            raise RuntimeError("the warm interpreter has ended")
        self.returncode = int(line)
        self._answers.close()
        self._answer.close()

    def _close(self) -> None:
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()
