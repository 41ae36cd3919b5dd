"""CPU priority of a shipper: only what training leaves over, and a normal share once training has ended.

Linux weights processes within a group, and groups against each other. A group is a cgroup with the `cpu`
controller, or else, with `sched_autogroup_enabled`, a session (sched(7)). A shipper has its own session,
so its nice value has no effect on training: five shippers would get five shares, and all training threads
together one. The nice value of the session decides (`/proc/PID/autogroup`). Any user may raise it and lower
it again down to 0, with ten writes a second for all non-root users together.

In addition, SCHED_IDLE gives a training thread that wakes up the processor immediately, as if it were idle:
otherwise, shippers that use 3 % of the processors make steps 5 % longer. But a process without CAP_SYS_NICE
can never leave SCHED_IDLE, and in one group with busy processes it would get 3/1024 of a processor. So it is
used only if the session's nice value, or that capability, can restore the shipper's share.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from fmstune.system.cgroups import groups

_NICE, _NICEST = 10, 19
_ENABLED = Path("/proc/sys/kernel/sched_autogroup_enabled")


def lower_while_importing() -> None:
    """Lower this process's priority while it imports its SDK, so that the training's imports come first."""
    with contextlib.suppress(OSError):  # refused by a sandbox
        os.nice(_NICE)
    _renice_session(os.getpid(), _NICE)


def lower_priority(processes: Iterable[int]) -> bool:
    """Let processes use only the processor time that training leaves over. Return whether this is complete;
    if not, call it again a moment later."""
    settled, policy = True, None
    if hasattr(os, "SCHED_IDLE"):  # Linux
        policy = os.SCHED_IDLE if _can_leave_idle() else os.SCHED_BATCH
    for process in processes:
        settled = _renice_session(process, _NICEST) and settled
        if policy is not None:
            for thread in _threads(process):
                with contextlib.suppress(OSError):  # it has ended
                    os.sched_setscheduler(thread, policy, os.sched_param(0))
    return settled


def has_lower_priority() -> bool:
    """Whether this process still has a lower priority, as far as its scheduling policy shows."""
    return not hasattr(os, "SCHED_IDLE") or os.sched_getscheduler(0) in (os.SCHED_IDLE, os.SCHED_BATCH)


def restore_priority(processes: Iterable[int]) -> bool:
    """Give processes the same priority as this one again, as far as the system permits. Return whether
    this is complete; if not, call it again a moment later."""
    settled = True
    for process in processes:
        settled = _renice_session(process, 0) and settled
        for thread in _threads(process):
            with contextlib.suppress(OSError):  # without CAP_SYS_NICE its nice value cannot change
                os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
                os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, 0))
    return settled


def _renice_session(process: int, nice: int) -> bool:
    """Set the nice value of a process's session. `False` if the system is rate-limiting: retry later."""
    path = Path(f"/proc/{process}/autogroup")
    try:
        if int(path.read_text().split()[-1]) != nice:  # "/autogroup-104608 nice 0"
            path.write_text(str(nice))
    except BlockingIOError:
        return False
    except (OSError, ValueError, IndexError):  # not Linux, no autogroups, or it has ended
        pass
    return True


def _threads(process: int) -> list[int]:
    try:
        return [int(folder.name) for folder in Path(f"/proc/{process}/task").iterdir()]
    except OSError:
        return []


def _can_leave_idle() -> bool:
    return _sessions_are_groups() or _can_raise_priority()


def _can_raise_priority() -> bool:
    try:
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, 0, nice - 1)
    except OSError:
        return False
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    return True


def _sessions_are_groups() -> bool:
    """Whether this process is scheduled by session. `False` if a container hides this."""
    folders = list(groups("cpu"))
    own = next((folder for folder, unified in folders if not unified), None)
    try:
        if _ENABLED.read_text().strip() != "1" or not folders or not folders[0][0].is_dir():
            return False
    except OSError:
        return False
    # In version 1, only the root has a `release_agent`; in version 2, only the root never has a `cpu.weight`.
    if own is not None and not (own / "release_agent").exists():
        return False
    return not any(unified and (folder / "cpu.weight").exists() for folder, unified in folders)
