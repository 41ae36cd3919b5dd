"""The connection from a run to the process that keeps its log: messages, answers, and its death."""

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
    """The connection, with a thread that listens. It calls `on_death` when the other process dies; after
    that, nothing is sent or answered."""

    def __init__(self, control: socket.socket, on_death: Callable[[], None]) -> None:
        control.settimeout(_SECONDS_TO_ANSWER)
        self._control, self._on_death = control, on_death
        self._answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._is_closing = False
        self.is_lost = False
        self._thread = threading.Thread(target=self._listen, name="output", daemon=True)
        self._thread.start()

    def send(self, message: dict[str, Any]) -> None:
        """Send a message to the other process, if it is alive. After `end`, it may exit."""
        self._is_closing = self._is_closing or "end" in message
        with contextlib.suppress(OSError):
            self._control.sendall(json.dumps(message).encode() + b"\n")

    def answer(self) -> dict[str, Any] | None:
        """Return the answer to the last question; `None` if there is none: the other process was killed, or a
        file system hangs."""
        try:
            while not self.is_lost:
                answer = self._answers.get(timeout=_SECONDS_TO_ANSWER)
                if answer is None or answer:  # an empty one is a sign of progress
                    return answer
        except queue.Empty:
            pass
        return None

    def close(self) -> None:
        """Disconnect from the other process."""
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
