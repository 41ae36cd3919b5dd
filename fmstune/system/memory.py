"""The available main memory, and the peak memory of this process."""

from __future__ import annotations

import contextlib
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from fmstune.system.cgroups import groups

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_UNLIMITED = 1 << 60
_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


@dataclass(frozen=True, slots=True)
class Capacity:
    """The available bytes, and a description of what sets the limit: `this machine`; `of_process`: the limit
    applies to each process separately."""

    available: int
    limit: str
    of_process: bool = False


def main_memory() -> Capacity:
    """The main memory available to this process: the minimum of the machine's, the cgroup's (a container's)
    and its own limits (`ulimit`)."""
    found = [Capacity(psutil.virtual_memory().available, "this machine")]
    group = _cgroup_room()
    if group is not None:
        found.append(Capacity(group, "the container (its cgroup)"))
    process = psutil.Process()
    for kind, used in ((resource.RLIMIT_AS, process.memory_info().vms), (resource.RLIMIT_DATA, _data())):
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            found.append(Capacity(max(0, limit - used), "the process (ulimit)", of_process=True))
    return min(found, key=lambda capacity: capacity.available)


def in_use() -> int:
    """The current main memory of this process, in bytes."""
    return int(psutil.Process().memory_info().rss)


_earlier_peak = 0
"""The largest value of `recent_peak` since `reset_peak`."""


def reset_peak() -> None:
    """Reset `peak` if the kernel supports it; otherwise it counts from the start of the process."""
    global _earlier_peak
    _earlier_peak = 0
    _reset_peak()


def peak() -> int:
    """The peak main memory of this process since `reset_peak`, in bytes."""
    return max(_earlier_peak, _kernels_peak())


def recent_peak() -> int:
    """Like `peak`, but since the last call of this function, if the kernel can reset it."""
    global _earlier_peak
    found = _kernels_peak()
    _earlier_peak = max(_earlier_peak, found)
    _reset_peak()
    return found


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")  # proc(5): resets the peak resident set size to the current one


def _kernels_peak() -> int:
    status = _field(_STATUS, "VmHWM:")
    if status is not None:
        return status
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def format_bytes(count: float) -> str:
    """Format a number of bytes: `1.9 GB`."""
    for size, unit in _UNITS:
        if count >= size * 0.9995:
            value = count / size
            return f"{value:.0f} {unit}" if value >= 99.5 else f"{value:.2g} {unit}"
    return f"{count:.0f} bytes"


def _data() -> int:
    return _field(_STATUS, "VmData:") or 0


def _field(path: Path, name: str) -> int | None:
    """A field of a file in /proc, converted from kB to bytes."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)


def _cgroup_room() -> int | None:
    """The memory left by the tightest of this process's control groups; `None` without a limit."""
    rooms = []
    for folder, unified in groups("memory"):
        if unified:
            rooms.append(_room(folder, "memory.max", "memory.current", "inactive_file"))
        else:
            rooms.append(
                _room(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            )
    return min((room for room in rooms if room is not None), default=None)


def _room(folder: Path, most: str, used: str, stat: str) -> int | None:
    try:
        limit = int((folder / most).read_text())  # `max`, not a number, means no limit
        if limit >= _UNLIMITED:
            return None
        in_use = int((folder / used).read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return None
    # File pages that were not used recently are reclaimed as soon as memory is needed.
    cached = next((int(line.split()[1]) for line in lines if line.startswith(f"{stat} ")), 0)
    return max(0, limit - in_use + cached)
