"""A stand-in parent for processes forked from an interpreter that the whole session shares.

A shipper's supervisor learns from its parent whether its trainer still runs, and `Popen` waits for its
children. A process that is forked from a shared interpreter is not a child of the process that requested it.
It is therefore the child of a process that only waits: it reports how its child ended, and exits as soon as
the requesting process ends.
"""

from __future__ import annotations

import dataclasses
import os
import select
import socket
import subprocess
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from tests.support.forkserver import Request
    from tests.support.warm import Warm


def fork_under_stand_in(request: Request, files: list[int]) -> Request:
    """Fork, and continue in the child, whose parent exits when the requesting process does. In the arguments,
    that process's id is replaced by this parent's. The parent reports on the last of the files, a socket."""
    assert request.asker is not None
    told, parent = files.pop(), os.getpid()
    asker = os.pidfd_open(request.asker)
    pid = os.fork()
    if pid:
        _wait(pid, asker, told)
    os.close(told)
    os.close(asker)
    arguments = [str(parent) if each == str(request.asker) else each for each in request.arguments]
    return dataclasses.replace(request, arguments=arguments)


def _wait(pid: int, asker: int, told: int) -> NoReturn:
    last = -1
    for number in (*sorted((asker, told)), os.sysconf("SC_OPEN_MAX")):
        os.closerange(last + 1, number)
        last = number
    os.write(told, b"%d\n" % pid)
    child = os.pidfd_open(pid)
    waiting = select.poll()
    waiting.register(asker, select.POLLIN)
    waiting.register(child, select.POLLIN)
    if asker not in dict(waiting.poll()):
        status = os.waitpid(pid, 0)[1]
        os.write(told, b"%d\n" % status)
    os._exit(0)


class Adopted(subprocess.Popen):  # type: ignore[type-arg]
    """A child of such a stand-in parent once `adopt` was called; before that, what `Popen` starts."""

    _told: socket.socket | None = None
    _asker: int

    def adopt(self, forking: Warm, request: dict[str, Any], files: list[int]) -> None:
        """Make this object represent the process of a request."""
        self._asker = os.getpid()
        self._told, theirs = socket.socketpair()
        with theirs, forking.ask({**request, "asker": self._asker}, [*files, theirs.fileno()]) as answer:
            answer.recv(64)  # the id of the parent
        self.pid = self._line()
        self._child_created = True

    def _line(self) -> int:
        assert self._told is not None
        text = b""
        while not text.endswith(b"\n"):
            if not (part := self._told.recv(1)):
                raise RuntimeError("the parent of a forked process has ended")
            text += part
        return int(text)

    def _try_wait(self, flags: int) -> tuple[int, int]:
        if self._told is None:
            return super()._try_wait(flags)  # type: ignore[misc, no-any-return]
        if os.getpid() != self._asker:  # `Popen` does the same for a process that is not its child
            return self.pid, 0
        if flags & os.WNOHANG and not select.select([self._told], [], [], 0)[0]:
            return 0, 0
        with self._told:
            return self.pid, self._line()

    def _internal_poll(self, _deadstate: int | None = None, *all: Any) -> int | None:
        if self._told is None:
            return super()._internal_poll(_deadstate, *all)  # type: ignore[misc, no-any-return]
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                if self.returncode is None:
                    pid, status = self._try_wait(os.WNOHANG)
                    if pid:
                        self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode
