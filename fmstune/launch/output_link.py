"""The line from a run to the process that keeps its log: what that is told and answers, and its death."""

from __future__ import annotations

import contextlib
import json
import queue
import select
import socket
import threading
from collections.abc import Callable
from typing import Any

_SECONDS_TO_ANSWER = 10.0
_SECONDS_TO_LEAVE = 0.5


class Link:
    """The line, with a thread that listens: `on_death` is called in it when the other process has died, after
    which nothing is sent or answered any more."""

    def __init__(self, control: socket.socket, on_death: Callable[[], None]) -> None:
        control.settimeout(_SECONDS_TO_ANSWER)
        self._control, self._on_death = control, on_death
        self._answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._is_closing = False
        self.is_lost = False
        self._thread = threading.Thread(target=self._listen, name="output", daemon=True)
        self._thread.start()

    def send(self, message: dict[str, Any]) -> None:
        """Tell the other process this, if it is there. After `end` it may leave."""
        self._is_closing = self._is_closing or "end" in message
        with contextlib.suppress(OSError):
            self._control.sendall(json.dumps(message).encode() + b"\n")

    def answer(self) -> dict[str, Any] | None:
        """The answer to the question that was sent last; `None` if none comes: the other process was killed,
        or hangs on a file system."""
        try:
            while not self.is_lost:
                answer = self._answers.get(timeout=_SECONDS_TO_ANSWER)
                if answer is None or answer:  # an empty one says that it is at work
                    return answer
        except queue.Empty:
            pass
        return None

    def close(self) -> None:
        """Leave the other process to itself."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        self._thread.join(_SECONDS_TO_LEAVE)
        self._control.close()

    def _listen(self) -> None:
        data = b""
        while True:
            select.select([self._control], [], [])
            try:
                more = self._control.recv(1 << 16)
            except OSError:
                more = b""
            if not more:
                break
            *lines, data = (data + more).split(b"\n")
            for line in lines:
                self._answers.put(json.loads(line))
        self.is_lost = not self._is_closing
        self._answers.put(None)
        if self.is_lost:
            self._on_death()
