"""Find the descendants of a process cheaply, for frequent use."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil


def descendants(process: int) -> list[int]:
    """Return the pids of all descendants of a process. One that starts or ends meanwhile may be missing: to
    end processes, use `psutil`.

    Linux lists the children of each thread, so checking five trackers takes 1 ms. `psutil` reads the parent
    of every process on the machine, which takes 8 ms per tracker with a hundred processes.
    """
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():  # not Linux, or built without it
        with contextlib.suppress(psutil.Error):
            return [child.pid for child in psutil.Process(process).children(recursive=True)]
        return []
    found: list[int] = []
    ahead = [process]
    while ahead:
        for child in _children(ahead.pop()):
            found.append(child)
            ahead.append(child)
    return found


def _children(process: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):  # it has ended
        for thread in Path(f"/proc/{process}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (thread / "children").read_text().split())
    return found
