"""Measure the time of each phase of training, with a clock that is in one phase at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, get_args

from fmstune.resources.source import Figures

Phase = Literal["data", "forward", "backward", "optimizer", "evaluation", "checkpoint", "logging", "other"]
PHASES: tuple[Phase, ...] = get_args(Phase)
STEP: tuple[Phase, ...] = ("forward", "backward", "optimizer")


class PhaseClock:
    """Sums the time spent in each phase; the sums add up to the elapsed time.

    It reads the host's clock without synchronising: asynchronous GPU work counts in the phase in which the
    host waits for it.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._sums: dict[Phase, float] = dict.fromkeys(PHASES, 0.0)
        self._since = 0.0
        self.phase: Phase | None = None
        """The current phase; `None` while the clock is stopped."""

    def enter(self, phase: Phase | None) -> None:
        """Enter a phase; `None` stops the clock."""
        now = self._now()
        if self.phase is not None:
            self._sums[self.phase] += now - self._since
        self._since, self.phase = now, phase

    def take(self) -> Figures:
        """Return the seconds of each phase since the last call, as `forward_seconds`."""
        self.enter(self.phase)
        found = {f"{phase}_seconds": round(seconds, 6) for phase, seconds in self._sums.items()}
        self._sums = dict.fromkeys(PHASES, 0.0)
        return found
