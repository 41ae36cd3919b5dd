"""Detect that torch's threads stayed behind in the process that forked this one.

libgomp keeps its threads for each thread that computes, and does not know of forks: in a child of a thread
that has computed, the next parallel operation waits forever for threads that only the parent has. Linux only;
the OpenMP of macOS handles forks. Whether it happens can only be tried, in a child of its own.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

_FORKED_WITHOUT_EXEC = 0x40  # PF_FORKNOEXEC, see include/linux/sched.h
_STAT, _TASKS = Path("/proc/self/stat"), Path("/proc/self/task")
_FLAGS, _SECONDS_TO_COMPUTE = 6, 3.0  # of the fields behind the name; some hundredths of a second, if it ends


_left_behind: dict[int, str] = {}
"""The message for each process that got one thread."""


def use_one_thread_if_forked() -> str | None:
    """Let torch compute with one thread if it would wait forever with several. Returns a message then. Call
    it early: threads of other libraries may be taken for torch's own."""
    torch = sys.modules.get("torch")
    if torch is None or not _is_forked():
        return None
    if (threads := torch.get_num_threads()) < 2:
        return _left_behind.get(os.getpid())
    # Threads that Python did not start may be torch's own, which it has started since the fork.
    if sum(1 for _ in _TASKS.iterdir()) - threading.active_count() >= threads - 1 or _computes(torch):
        return None
    torch.set_num_threads(1)
    said = _left_behind[os.getpid()] = (
        f"this process computes with one thread instead of {threads}: it was forked after torch had "
        "computed, and torch's threads do not survive a fork. Start it with the multiprocessing method spawn "
        "or forkserver, or fork before torch computes."
    )
    return said


def _is_forked() -> bool:
    try:
        fields = _STAT.read_bytes().rpartition(b")")[2].split()
    except OSError:  # not Linux
        return False
    return bool(int(fields[_FLAGS]) & _FORKED_WITHOUT_EXEC)


def _computes(torch: object) -> bool:
    """Whether a parallel operation ends, tried in a child that inherits the state of this thread."""
    with warnings.catch_warnings():  # Python warns of forks beside other threads
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        try:
            torch.ones(1 << 18).exp_()  # type: ignore[attr-defined]
        finally:
            os._exit(0)
    until = time.monotonic() + _SECONDS_TO_COMPUTE
    try:
        while time.monotonic() < until:
            if os.waitpid(child, os.WNOHANG)[0]:
                return True
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except (ChildProcessError, ProcessLookupError):  # a handler of the user's has waited for it: it has ended
        return True
    return False
