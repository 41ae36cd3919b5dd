"""Where the time of a training goes: a clock that is in one phase at each moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, get_args

from fmstune.resources.source import Figures

Phase = Literal["data", "forward", "backward", "optimizer", "evaluation", "checkpoint", "logging", "other"]
PHASES: tuple[Phase, ...] = get_args(Phase)
STEP: tuple[Phase, ...] = ("forward", "backward", "optimizer")


class PhaseClock:
    """Sums the time spent in each phase, so that the sums of all are the time that has passed.

    It reads the host's clock and waits for no device: work that a GPU has been given and has not done yet
    counts where the host waits for it.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._sums: dict[Phase, float] = dict.fromkeys(PHASES, 0.0)
        self._since = 0.0
        self.phase: Phase | None = None
        """The phase that it is in; `None` while it stands."""

    def enter(self, phase: Phase | None) -> None:
        """From now on it is in this phase; with `None` it stands."""
        now = self._now()
        if self.phase is not None:
            self._sums[self.phase] += now - self._since
        self._since, self.phase = now, phase

    def take(self) -> Figures:
        """The seconds of each phase since the last time that they were taken, as `forward_seconds`."""
        self.enter(self.phase)
        found = {f"{phase}_seconds": round(seconds, 6) for phase, seconds in self._sums.items()}
        self._sums = dict.fromkeys(PHASES, 0.0)
        return found
