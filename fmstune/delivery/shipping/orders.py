"""The orders on a shipper's standard input, and its pauses, which end when a new order arrives."""

from __future__ import annotations

import os
import time

from fmstune.delivery.shipping.priority import has_lower_priority, lower_priority, restore_priority
from fmstune.delivery.shipping.waiting import readable
from fmstune.system.descendants import descendants

_LAST_SECONDS = 0.1
"""The longest pause when no more orders can come."""
_SHARE, _MOST_SECONDS = 1 / 300, 5.0
"""During training, pauses of up to this many seconds limit a shipper to this share of a processor: most of
an SDK's CPU time is per flush, whatever its size."""

_MOST_PAUSES = 16
"""The most pauses before new processes of an SDK give way too."""


class Orders:
    """The lines from the process that started this one."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = os.dup(descriptor)  # some SDKs close 0, 1 and 2
        with open(os.devnull) as nothing:  # one that prompts would take the orders for an answer
            os.dup2(nothing.fileno(), descriptor)
        self._identity = self._found()
        self._rest = b""
        self._lost = False

    def line(self) -> str:
        """Wait for the next line; empty if its writer ended before it was complete."""
        while b"\n" not in self._rest:
            if not (data := os.read(self._descriptor, 1 << 16)):
                self._lost = True
                return ""
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    @property
    def last(self) -> bool:
        """Whether the training has ended: by a line, or because its process is gone."""
        return self._lost or bool(self._rest)

    def wait(self, seconds: float) -> None:
        """Wait at most this long for the next line."""
        if self.last or self._found() != self._identity:  # an SDK closed it, and it may be another file now
            time.sleep(min(seconds, _LAST_SECONDS) if self.last else seconds)
        elif readable([self._descriptor], seconds):
            data = os.read(self._descriptor, 1 << 16)
            self._rest += data
            self._lost = not data

    def _found(self) -> tuple[int, int] | None:
        try:
            found = os.fstat(self._descriptor)
        except OSError:
            return None
        return found.st_dev, found.st_ino


class Pauses:
    """The pauses of a shipper that has delivered everything so far. With `during_training`, it gives way
    until training ends, along with the processes of its SDK."""

    def __init__(self, orders: Orders, *, during_training: bool) -> None:
        orders.wait(0)
        self._orders = orders
        # It may have ended before this process was ready.
        self._during_training = during_training and not orders.last
        self._settled = True
        self._count, self._next = 0, 1
        self._supervisor = os.getppid()
        self._used = time.process_time()
        if self._during_training:
            self._settled = lower_priority(self._processes())

    def __call__(self, seconds: float) -> None:
        """Pause, at most until training ends; during training, longer after much work."""
        if not self._during_training:
            self._orders.wait(seconds)
            return
        now = time.process_time()
        worked, self._used = now - self._used, now
        self._orders.wait(max(seconds, min(worked / _SHARE, _MOST_SECONDS)))
        self._count += 1
        if self._orders.last:
            self._during_training = not restore_priority(self._processes())
        elif not (self._settled and has_lower_priority()) or self._count >= self._next:
            # The trainer raises the priority of a shipper that falls behind; now it has caught up. And an SDK
            # may start processes at any time, in their own sessions (W&B's core).
            self._settled = lower_priority(self._processes())
            self._next = self._count + min(self._count, _MOST_PAUSES)

    def _processes(self) -> list[int]:
        """This process and all that its SDK has started; daemons become children of the supervisor."""
        supervised = os.getppid() == self._supervisor != 1
        return [os.getpid(), *descendants(self._supervisor if supervised else os.getpid())]
