"""Reconstruct a run from its journal, in one pass over the events; later ones win.

A resumed run logs steps again; the newest value of a step is used. Params of a namespace are merged, as in
all trackers; the settings of a resumed run are those of its last session.
"""

from __future__ import annotations

import bisect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmstune.delivery.journal.events import Later
from fmstune.delivery.journal.reader import Event, Header, JournalError, JournalReader, is_being_written
from fmstune.report.batches import Batch, batches
from fmstune.trackers.records import merged

SETTINGS = "config"
"""The namespace of params for a run's configuration."""
_AT_ONCE = 4096
_MOST_STEP = 2**53

Name = tuple[str | None, str]
"""A metric's stage and name."""


@dataclass(slots=True)
class Session:
    """One process's part of a run: the times of its first and last events, the step that it resumed from, and
    the seconds that it measured, if it lived to record its end: the clock may have been set meanwhile."""

    began: float
    ended: float
    resumed_from: int | None = None
    measured: float | None = None

    @property
    def seconds(self) -> float:
        """The seconds that the process ran."""
        return max(0.0, self.ended - self.began) if self.measured is None else self.measured


@dataclass(slots=True)
class Replay:
    """The state of a run after the events added so far. `last` has the newest value of each metric, with its
    step; `status` and `error` are those of the run's end, unless it was resumed; `is_going` says that its
    process was still writing when the last event was read; `missing` counts events whose lines are missing or
    damaged; `repeated` counts further lines of an event, which are ignored, as in trackers; `later` counts
    those that only a later version knows, by kind."""

    header: Header
    params: dict[str, dict[str, Any]] = field(default_factory=dict)
    last: dict[Name, tuple[Any, int | float | None]] = field(default_factory=dict)
    sessions: list[Session] = field(default_factory=list)
    status: str | None = None
    error: str | None = None
    is_going: bool = False
    step: int | float | None = None
    events: int = 0
    damaged: int = 0
    repeated: int = 0
    later: dict[str, int] = field(default_factory=dict)
    _seq: int = 0
    _numbers: int = 0
    _gaps: list[tuple[int, int]] = field(default_factory=list)
    _late: set[int] = field(default_factory=set)
    _new_settings: bool = False

    def add(self, event: Event) -> bool:
        """Add the next event; returns whether it is one, not the repetition of an earlier line."""
        if not self._count(event.seq):
            self.repeated += 1
            return False
        self.events += 1
        if event.kind == "resume" or not self.sessions:
            self.sessions.append(Session(event.time, event.time, event.step if self.sessions else None))
        self.sessions[-1].ended = event.time
        if event.kind == "metrics":
            step = step_of(event)
            stage = event.stage
            for name, value in event.values.items():
                self.last[stage, name] = value, step
            self.step = self.step if step is None else step
        elif event.kind == "params":
            self._add_params(event.name or "params", event.values)
        elif event.kind == "status":
            self.status, self.error = event.status, event.error
            self.sessions[-1].measured = _seconds_of(event)
        elif event.kind == "resume":
            self.status = self.error = None
            self._new_settings = True
        return True

    def add_later(self, found: Later) -> None:
        """Count an event that only a later version knows."""
        self._count(found.seq)
        self.later[found.kind] = self.later.get(found.kind, 0) + 1

    def add_batch(self, batch: Batch) -> None:
        """Add a batch of consecutive metrics."""
        self.events += len(batch.seqs)
        first = self._seq + 1
        if batch.seqs == list(range(first, first + len(batch.seqs))):
            self._seq += len(batch.seqs)
            self._numbers += len(batch.seqs)
        else:
            for seq in batch.seqs:
                self._count(seq)
        if not self.sessions:
            self.sessions.append(Session(batch.began, batch.began))
        self.sessions[-1].ended = batch.ended
        self.step = self.step if batch.step is None else batch.step
        for each in batch.logged:
            step = as_step(each.steps[-1])
            for name, column in each.columns.items():
                self.last[each.stage, name] = column.last, step

    @property
    def newest(self) -> int:
        """The highest number of an event so far."""
        return self._seq

    @property
    def missing(self) -> int:
        """The number of sequence numbers without an event."""
        return max(0, self._seq - self.header.after - self._numbers)

    @property
    def seconds(self) -> float:
        """The total running time of its processes, without the pauses between them."""
        return sum(each.seconds for each in self.sessions)

    @property
    def ended(self) -> float:
        """The time of the last event."""
        return self.sessions[-1].ended if self.sessions else self.header.time

    def _count(self, seq: int) -> bool:
        """Count the sequence numbers that have an event; lines may be duplicated or out of order. Returns
        whether the number is a new one."""
        if seq > self._seq:
            if seq > self._seq + 1:
                self._gaps.append((self._seq + 1, seq))
            self._seq, self._numbers = seq, self._numbers + 1
            return True
        at = bisect.bisect_right(self._gaps, (seq, sys.maxsize)) - 1
        if at >= 0 and seq < self._gaps[at][1] and seq not in self._late:
            self._late.add(seq)
            self._numbers += 1
            return True
        return False

    def _add_params(self, name: str, values: Mapping[str, Any]) -> None:
        if name == SETTINGS and self._new_settings:
            # Settings that a resumed run no longer has must not remain.
            self.params.pop(SETTINGS, None)
            self._new_settings = False
        self.params[name] = merged(self.params.get(name, {}), values)


def _seconds_of(event: Event) -> float | None:
    found = event.item.get("seconds")
    return float(found) if isinstance(found, (int, float)) and 0 <= found < _MOST_STEP else None


def step_of(event: Event) -> int | float | None:
    """The step of an event; `None` if it is missing or not a number."""
    step: Any = event.step
    if isinstance(step, bool) or not isinstance(step, (int, float)):
        return None
    return step if abs(step) < _MOST_STEP else None  # not NaN either


def as_step(step: float) -> int | float | None:
    """The step in a column, where NaN means missing."""
    return None if step != step else int(step) if step.is_integer() else step


def replay(
    path: Path,
    also: Callable[[Event], None] = lambda event: None,
    also_batch: Callable[[Batch], None] = lambda batch: None,
) -> Replay:
    """Read a journal from its start; `also` is called with each event, except for metrics that are passed to
    `also_batch`.

    Raises `JournalError` and `OSError`.
    """
    reader = JournalReader(path)
    run, at, ended = Replay(reader.header), 0, False
    while (lines := reader.read_lines(_AT_ONCE)) or not ended:
        if not lines:  # what its writer wrote before it ended is read as well
            if is_being_written(path):
                run.is_going = True
                return run
            ended = True
        if reader.offset - sum(map(len, lines)) < at:  # events read so far would count twice
            raise JournalError(f"{path} was rewritten while it was being read; try again.")
        at = reader.offset
        for found in batches(lines, run.newest):
            if isinstance(found, Batch):
                run.add_batch(found)
                also_batch(found)
            elif isinstance(found, Later):
                run.add_later(found)
            elif found is not None:
                if run.add(found):
                    also(found)
            else:
                run.damaged += 1
    run.damaged += not reader.at_end  # a power cut, or a kill, cut off the last line
    return run
