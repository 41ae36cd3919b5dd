"""`fmstune runs watch`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmstune.cli.completion import complete_run
from fmstune.cli.printing import print_lines
from fmstune.cli.trackers import Debug

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fmstune.delivery.journal.reader import Event
    from fmstune.report.live_state import Follower, LiveState

_SECONDS = 0.5
_LABELS = {"train": "step", "eval": "eval"}
"""Of the lines, by stage; in others, a loss is the user's own."""
_QUIET_SECONDS = 60.0
"""The lock of a run on another machine is not visible here: it is taken as running while its journal grows.
That machine's clock may be ahead."""


def watch(
    run: Annotated[
        Path, typer.Argument(help="The run's directory.", metavar="RUN", autocompletion=complete_run)
    ],
    debug: Debug = False,
) -> None:
    """Watch a run until it ends.

    Reads the run's journal, so it may run in another terminal or on another machine. For a run that has
    ended, shows how it ended. If standard output is not a terminal, prints a line for each log.
    """
    from fmstune.report.curves import require_run
    from fmstune.report.ending import ending
    from fmstune.report.live_state import Follower, LiveState
    from fmstune.report.words import printable

    require_run(run)
    state, follower = LiveState(), Follower(run)
    from rich.console import Console

    console = Console()
    if console.is_terminal:
        _shown(run, state, follower, console)
    else:
        for line in _lines(run, state, follower):
            print_lines([line])
    found = ending(run)
    print_lines([f"{found.status:<8} {printable(str(run))}"])
    print_lines([f"{label:<8} {printable(text)}" for label, text in found.lines()])


def _shown(run: Path, state: LiveState, follower: Follower, console: object) -> None:
    from rich.console import Console
    from rich.live import Live

    from fmstune.report.live_view import drawn

    assert isinstance(console, Console)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            goes = _may_continue(run)
            events = follower.update(state)
            _take(state, events)
            live.update(drawn(state, console.width), refresh=True)
            if not goes and not events:
                return
            if not events:
                time.sleep(_SECONDS)


def _lines(run: Path, state: LiveState, follower: Follower) -> Iterator[str]:
    from fmstune.report.words import cell

    while True:
        goes = _may_continue(run)
        events = follower.update(state)
        for event in events:
            label = _LABELS.get(event.stage or "")
            if event.kind == "metrics" and label and "loss" in event.values:
                total = f"/{state.steps}" if state.steps else ""
                yield f"{label:<8} {cell(event.step)}{total}  loss {cell(event.values['loss'])}"
        if not goes and not events:
            return
        if not events:
            time.sleep(_SECONDS)


def _take(state: LiveState, events: list[Event]) -> None:
    """Update the training's position from its journal, which has only the logged steps."""
    for event in events:
        if event.kind == "metrics" and event.stage == "train" and isinstance(event.step, int) and event.step:
            if state.phase != "training":
                state.begin("training")
            state.at_step(event.step, None, event.time)


def _may_continue(run: Path) -> bool:
    """Whether more events may follow. Call it before reading the journal, so that no event is missed."""
    from fmstune.delivery.journal.reader import final_status, is_being_written
    from fmstune.report.summary import journal_of

    journal = journal_of(run)
    if is_being_written(journal):
        return True
    if final_status(journal) is not None:
        return False
    return abs(time.time() - journal.stat().st_mtime) < _QUIET_SECONDS
