"""The console of a run on a terminal: permanent lines above a live display of its current phase."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from fmstune.launch.output import Output
from fmstune.report.console import Answer, SummingConsole
from fmstune.report.live_state import Follower, LiveState
from fmstune.report.live_view import drawn

_PER_SECOND = 4


class LiveConsole(SummingConsole):
    """Shows the run while it is entered. Lines of steps are not printed, since the display has their metrics.

    A separate thread draws the display from the journal, like any other reader; the training only sets
    numbers.
    """

    def __init__(
        self, console: Console, *, answer: Answer | None = None, others: Output | None = None
    ) -> None:
        super().__init__(console, answer=answer, others=others)
        self._state = LiveState()
        self._follower: Follower | None = None
        self._live: Live | None = None

    def __enter__(self) -> LiveConsole:
        self._live = Live(
            console=self.console, get_renderable=self._drawn, refresh_per_second=_PER_SECOND, transient=True,
            redirect_stdout=False, redirect_stderr=self._others is None,
        )  # fmt: skip
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._stop()

    def begin(self, directory: Path) -> None:
        super().begin(directory)
        self._follower = Follower(directory)

    def phase(self, name: str, total: int | None = None) -> None:
        super().phase(name, total)
        self._state.begin(name, total)

    def moved(self, done: int, total: int | None = None) -> None:
        state = self._state
        if state.phase == "training":
            state.at_step(done, total, time.monotonic())
        else:
            state.done, state.total = done, total or state.total

    def logged(self, stage: str, step: int, steps: int, values: Mapping[str, float], line: str) -> None:
        if stage == "eval" or self._live is None:
            super().logged(stage, step, steps, values, line)

    def end(self, directory: Path) -> None:
        self._stop()
        super().end(directory)

    def _stop(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def _drawn(self) -> Text:
        try:
            if self._follower is not None:
                self._follower.update(self._state)
            return drawn(self._state, self.console.width)
        except Exception as error:  # a display that cannot be drawn must not stop the run
            return Text(f"{type(error).__name__}: {error}", style="dim")
