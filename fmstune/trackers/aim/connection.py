"""The connection to an `aim server`, which ends when the server does.

Aim 3.29.1's client reconnects by itself and continues in the middle of the run, without asking whether the
server still has it. If its storage was emptied or restored, the run then lacks what it held before, and Aim's
SDK fails on its contexts. A new process opens the run again, and detects that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_LOOK_SECONDS = 0.1


class Connection:
    """The connection of a remote `Repo`, which does not reconnect any more."""

    def __init__(self, repo: Any) -> None:
        client = repo._client
        self._sender = client.get_queue()
        self._send: Callable[[Any], None] = client._run_write_instructions
        self._error: BaseException | None = None
        client._run_write_instructions, client.reconnect = self._sent, self._end

    def wait(self) -> None:
        """Wait until the server has received everything. Raises the error because of which it never will."""
        tasks = self._sender._queue
        with tasks.all_tasks_done:
            while tasks.unfinished_tasks and self._error is None:
                tasks.all_tasks_done.wait(_LOOK_SECONDS)
        if self._error is not None:
            raise self._error

    def _sent(self, instructions: Any) -> None:
        """Send, in Aim's thread, which ends at any error but a lost connection."""
        from websockets.exceptions import ConnectionClosedError

        try:
            self._send(instructions)
        except ConnectionClosedError:  # it calls `reconnect`
            raise
        except BaseException as error:
            self._error = error
            raise

    def _end(self) -> None:
        self._error = ConnectionError("the connection to the Aim server was lost")
        raise self._error
