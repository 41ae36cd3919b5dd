"""Sample the machine with psutil: CPU, memory, disk, network and open files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from fmstune.resources.source import MB, Figures, Source
from fmstune.system import disk
from fmstune.system.memory import main_memory

_SHORTEST = 0.1
"""The minimum time between two readings of CPU times, in seconds. They count in hundredths, so that a share
over less time would be noise, and is left out."""
_LOOPBACK = ("lo", "lo0")


class Machine:
    """Samples the machine as seen by this process.

    Counters that only grow (bytes read, sent, …) are relative to the first sample. CPU shares are relative to
    the previous sample, so the first sample has none.

    Nothing here takes a lock of psutil: if the training forked at that moment, it would stay locked in the
    child forever.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = psutil.Process()
        self._processors = psutil.cpu_count() or 1
        self._clock = self._own_clock = 0.0
        self._busy = self._total = self._own_seconds = 0.0
        self._first: dict[str, Sequence[int]] = {}

    def sources(self) -> list[Source]:
        """The sources of samples."""
        return [
            Source("the CPU", self._cpu),
            Source("the CPU time of the run", self._own_cpu),
            Source("the memory", self._memory),
            Source("the memory of the run", self._own_memory),
            Source("the free disk space", self._disk_free),
            Source("disk reads and writes", self._disk_traffic),
            Source("the network", self._network),
            Source("the open files of the run", self._open_files),
        ]

    def _cpu(self) -> Figures:
        # Not `psutil.cpu_percent`, whose last reading is shared by all callers in a thread.
        times, now = psutil.cpu_times(), time.monotonic()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Linux includes guests in the user time.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        if now - self._clock < _SHORTEST:
            return {}
        first, self._clock = self._clock == 0.0, now
        busy, self._busy = total - idle - self._busy, total - idle
        whole, self._total = total - self._total, total
        return {} if first or whole <= 0 else {"cpu_percent": _percent(min(1.0, max(0.0, busy / whole)))}

    def _own_cpu(self) -> Figures:
        """The share of one core used by this process and its descendants: dataloader workers and shippers."""
        seconds, now = _seconds(self._process), time.monotonic()
        for child in self._process.children(recursive=True):
            try:
                seconds += _seconds(child)
            except psutil.NoSuchProcess:  # it has ended, and its parent's `children_*` include its time
                continue
        elapsed = now - self._own_clock
        if elapsed < _SHORTEST:
            return {}
        first, self._own_clock = self._own_clock == 0.0, now
        taken, self._own_seconds = seconds - self._own_seconds, seconds
        # The time of a child that is never waited for is lost.
        return {} if first else {"process_cpu_percent": _percent(max(0.0, taken / elapsed))}

    def _memory(self) -> Figures:
        return {
            "memory_percent": round(float(psutil.virtual_memory().percent), 2),
            "memory_available_mb": _mb(main_memory().available),
        }

    def _own_memory(self) -> Figures:
        # Only of this process: forked workers share its pages, which a sum would count repeatedly.
        return {"process_memory_mb": _mb(self._process.memory_info().rss)}

    def _disk_free(self) -> Figures:
        free = disk.free(self._folder)
        if free is None:
            raise LookupError("the file system does not say how much is free")
        return {"disk_free_mb": _mb(free)}

    def _disk_traffic(self) -> Figures:
        found = psutil.disk_io_counters(nowrap=False)
        if found is None:
            raise LookupError("the system shows no disk")
        read, written = self._since("disk", (found.read_bytes, found.write_bytes))
        return {"disk_read_mb": _mb(read), "disk_written_mb": _mb(written)}

    def _network(self) -> Figures:
        found = psutil.net_io_counters(pernic=True, nowrap=False)
        # The loopback only connects processes on this machine.
        outside = [counters for name, counters in found.items() if name not in _LOOPBACK]
        sent, received = self._since(
            "network", (sum(each.bytes_sent for each in outside), sum(each.bytes_recv for each in outside))
        )
        return {"network_sent_mb": _mb(sent), "network_received_mb": _mb(received)}

    def _open_files(self) -> Figures:
        return {"process_open_files": float(self._process.num_fds())}

    def _since(self, what: str, now: Sequence[int]) -> list[int]:
        first = self._first.setdefault(what, now)
        return [max(0, count - before) for count, before in zip(now, first, strict=True)]


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def _percent(share: float) -> float:
    return round(100 * share, 2)


def _mb(count: float) -> float:
    return round(count / MB, 3)
