"""Set the number of computing threads, and how they wait for each other, before torch is imported, which
reads the environment at that time."""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from fmstune.system.cgroups import groups
from fmstune.system.descendants import descendants
from fmstune.text import shown

_COUNT = "OMP_NUM_THREADS"
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_OF_SLURM = "SLURM_CPUS_PER_TASK"
_SLEEPING, _SPINNING = ("OMP_WAIT_POLICY", "passive"), ("GOMP_SPINCOUNT", "20000")
_STATISTICS = Path("/proc/stat")
_LOOKS, _SECONDS_BETWEEN_LOOKS = 5, 0.004


@dataclass(frozen=True, slots=True)
class Processors:
    """The number of processors available to this process, and a description of what sets the limit."""

    count: int
    limit: str


def processors() -> Processors:
    """The minimum of the limits of the machine, the affinity, the control group's quota and Slurm."""
    found = [Processors(os.cpu_count() or 1, "this machine")]
    if hasattr(os, "sched_getaffinity"):
        found.append(Processors(len(os.sched_getaffinity(0)), "the affinity of this process"))
    quotas = [quota for folder, unified in groups("cpu") if (quota := _quota(folder, unified)) is not None]
    if quotas:
        # With one and a half processors, the second one is used half of the time.
        found.append(Processors(max(1, math.ceil(min(quotas))), "the quota of the container (its cgroup)"))
    asked = os.environ.get(_OF_SLURM, "")
    if asked.isdecimal() and int(asked) > 0:
        found.append(Processors(int(asked), _OF_SLURM))
    return min(found, key=lambda each: each.count)


_set_by_fmstune: dict[str, str] = {}
"""The variables set by `set_threads` rather than by the user."""


def set_threads(processes: int = 1) -> str | None:
    """Divide the processors among `processes`, unless the user (or `accelerate launch`, which sets 1) has set
    `OMP_NUM_THREADS`. Returns a message if this process gets fewer than the machine has.

    By default, OpenMP threads that wait for each other spin. With other busy processes, they waste the time
    that the slowest thread needs. On a busy machine they sleep instead (15 steps of the demo with four busy
    processes on two cores: 122 s spinning, 3.5 s sleeping). Otherwise they spin for a fifteenth of libgomp's
    count, which costs nothing on an idle machine, whereas sleeping costs SmolLM2 an eighth. Once torch is
    imported, it has no effect in this process; processes that it starts (`processes` > 1) read the
    environment themselves.
    """
    machine, usable = os.cpu_count() or 1, processors()
    chosen, early = _chosen_by_the_user(), "torch" not in sys.modules
    if processes > 1 or early:
        if not any(name in os.environ for name in _WAITING):
            name, value = _SLEEPING if _is_busy(machine) else _SPINNING
            os.environ[name] = value
        threads = max(1, usable.count // processes)
        if not _is_number(chosen) and (threads < machine or chosen is not None):
            os.environ[_COUNT] = _set_by_fmstune[_COUNT] = str(threads)
    if processes > 1 or not os.environ.get(_COUNT):
        return None
    limit = usable.limit
    if chosen is not None:
        if not early or _is_divided() or (_is_number(chosen) and _outer(chosen) >= usable.count):
            return None
        limit = _COUNT if _is_number(chosen) else f"{_COUNT}={shown(chosen)} is not a number of threads"
    return f"{_outer(os.environ[_COUNT])} of the {machine} processors of this machine: {limit}"


def _chosen_by_the_user() -> str | None:
    value = os.environ.get(_COUNT)
    return (value or None) if value != _set_by_fmstune.get(_COUNT) else None


def _is_number(value: str | None) -> bool:
    """Whether OpenMP can read it: a number, or one for each level of nested threads."""
    return value is not None and all(part.strip().isdecimal() and int(part) > 0 for part in value.split(","))


def _outer(value: str) -> int:
    return int(value.split(",")[0])


def _is_divided() -> bool:
    """Whether this is one of several processes, among which a launcher has divided the processors."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def _is_busy(machine: int) -> bool:
    """Whether other processes are using more processors than this one's threads would leave them."""
    others = []
    for _ in range(_LOOKS):
        try:
            lines = _STATISTICS.read_text().splitlines()
        except OSError:
            return False
        # Shippers and the log, which have just been started, will wait most of the time.
        own = _running_here()
        others += [int(line.split()[1]) - own for line in lines if line.startswith("procs_running ")]
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return (statistics.median(others) if others else 0) + processors().count > machine


def _running_here() -> int:
    """The number of running threads of this process and its descendants."""
    found = 0
    for process in (os.getpid(), *descendants(os.getpid())):
        with contextlib.suppress(OSError):  # it has ended
            for thread in Path(f"/proc/{process}/task").iterdir():
                with contextlib.suppress(OSError):
                    state = thread.joinpath("stat").read_bytes().rpartition(b")")[2].split()[0]
                    found += state == b"R"
    return max(found, 1)


def _quota(folder: Path, unified: bool) -> float | None:
    try:
        if unified:
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        found = int(quota) / int(period)  # `max`, not a number, means no limit
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return found if found > 0 else None  # version 1 has -1 for no limit
