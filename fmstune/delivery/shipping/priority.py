"""How much of the processor a shipper takes: what a training leaves, and its share when that has ended.

Linux weighs processes within a group, and groups against each other. A group is a cgroup with the controller
`cpu`, or else, with `sched_autogroup_enabled`, a session (sched(7)). A shipper has a session of its own, so
there its nice value means nothing to the training: five shippers would take five shares, and all threads of
the training one. What counts there is the nice value of the session, `/proc/PID/autogroup`. It may be
raised and lowered again down to 0 by anybody, with ten writes a second for all who are not root.

Beside that, SCHED_IDLE lets a thread of the training that wakes up have the processor at once, as if nobody
ran there: without it, shippers that take 3 % of the processors make steps 5 % longer. But a process without
CAP_SYS_NICE never leaves SCHED_IDLE again, and in one group with busy processes it would get 3/1024 of a
processor. So it is taken only where the session's nice value brings the shipper back, or that capability.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from fmstune.system.cgroups import groups

_NICE, _NICEST = 10, 19
_ENABLED = Path("/proc/sys/kernel/sched_autogroup_enabled")


def step_back() -> None:
    """Let the training's libraries be imported first, while this process imports its SDK."""
    os.nice(_NICE)
    _renice_session(os.getpid(), _NICE)


def give_way(processes: Iterable[int]) -> bool:
    """Take only what the training leaves of the processor. Returns whether that is settled; where it is not,
    call this again a moment later."""
    settled, policy = True, None
    if hasattr(os, "SCHED_IDLE"):  # Linux
        policy = os.SCHED_IDLE if _may_return() else os.SCHED_BATCH
    for process in processes:
        settled = _renice_session(process, _NICEST) and settled
        if policy is not None:
            for thread in _threads(process):
                with contextlib.suppress(OSError):  # it has ended
                    os.sched_setscheduler(thread, policy, os.sched_param(0))
    return settled


def gives_way() -> bool:
    """Whether this process still gives way, as far as its policy says that."""
    return not hasattr(os, "SCHED_IDLE") or os.sched_getscheduler(0) in (os.SCHED_IDLE, os.SCHED_BATCH)


def come_forward(processes: Iterable[int]) -> bool:
    """Let processes that gave way have the same share as this one, as far as the system permits. Returns
    whether that is settled; where it is not, call this again a moment later."""
    settled = True
    for process in processes:
        settled = _renice_session(process, 0) and settled
        for thread in _threads(process):
            with contextlib.suppress(OSError):  # without CAP_SYS_NICE its nice value stays what it is
                os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
                os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, 0))
    return settled


def _renice_session(process: int, nice: int) -> bool:
    """Give the session of a process this nice value. `False` when the system takes it only a moment later."""
    path = Path(f"/proc/{process}/autogroup")
    try:
        if int(path.read_text().split()[-1]) != nice:  # "/autogroup-104608 nice 0"
            path.write_text(str(nice))
    except BlockingIOError:
        return False
    except (OSError, ValueError, IndexError):  # no Linux, none of its sessions' groups, or it has ended
        pass
    return True


def _threads(process: int) -> list[int]:
    try:
        return [int(folder.name) for folder in Path(f"/proc/{process}/task").iterdir()]
    except OSError:
        return []


def _may_return() -> bool:
    return _sessions_are_groups() or _may_be_less_nice()


def _may_be_less_nice() -> bool:
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, nice - 1)
    except OSError:
        return False
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    return True


def _sessions_are_groups() -> bool:
    """Whether this process competes as a session. Where a container hides that, the answer is no."""
    folders = list(groups("cpu"))
    own = next((folder for folder, unified in folders if not unified), None)
    try:
        if _ENABLED.read_text().strip() != "1" or not folders or not folders[0][0].is_dir():
            return False
    except OSError:
        return False
    # Of version 1 only the root has a `release_agent`; of version 2 only the root has never a `cpu.weight`.
    if own is not None and not (own / "release_agent").exists():
        return False
    return not any(unified and (folder / "cpu.weight").exists() for folder, unified in folders)
