"""The connection to an `aim server`, which ends when the server does.

Aim 3.29.1's client reconnects by itself and continues in the middle of the run, without asking whether the
server still has it. If its storage was emptied or restored, the run then lacks what it held before, and Aim's
SDK fails on its contexts. A new process opens the run anew, and finds out.
"""

from __future__ import annotations

from typing import Any

_LOOK_SECONDS = 0.1


class Connection:
    """The connection of a remote `Repo`, which does not reconnect any more."""

    def __init__(self, repo: Any) -> None:
        self._sender = repo._client.get_queue()
        self._lost = False
        repo._client.reconnect = self._end

    def wait(self) -> None:
        """Wait until the server has received everything. Raises `ConnectionError` when it never will."""
        tasks = self._sender._queue
        with tasks.all_tasks_done:
            while tasks.unfinished_tasks and self._works:
                tasks.all_tasks_done.wait(_LOOK_SECONDS)
            unsent = tasks.unfinished_tasks
        if unsent:
            raise ConnectionError("the connection to the Aim server was lost")

    @property
    def _works(self) -> bool:
        # Aim's thread that sends ends at any error of the server.
        return not self._lost and self._sender._thread.is_alive()

    def _end(self) -> None:
        self._lost = True
        raise ConnectionError
