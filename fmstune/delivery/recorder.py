"""The Recorder: the one tracker the training knows. It writes the journal, and nothing else.

Nothing it is given makes it raise into the training, beyond the interface's own `ValueError`s.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fmstune.delivery.journal import plain
from fmstune.delivery.journal_writer import JournalWriter
from fmstune.delivery.redaction import Redactor
from fmstune.trackers.base import MetricPoint, Status, Table, Tracker

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from fmstune.delivery.in_process import GuardedTracker

_MOST_NAMES = 10_000
_active: Recorder | None = None
_RECORDS = "FMSTUNE_RECORDS"
"""Names the process that records, to those that it starts."""
_told = False


class Recorder(Tracker):
    """Writes what it is told into the run's journal, redacted, for the shippers to deliver."""

    registered_name = "recorder"
    description = "the run's journal"

    def __init__(self, journal: JournalWriter, redactor: Redactor) -> None:
        super().__init__()
        self.journal = journal
        self._guests: list[GuardedTracker] = []
        self._pid = os.getpid()
        self._redactor = redactor
        self._names: dict[str, str] = {}  # as they are written; the same few come at each step
        self._hidden_names: set[str] = set()
        self._plain: set[tuple[Any, ...]] = set()

    @property
    def guests(self) -> list[GuardedTracker]:
        """The trackers that have to work in this process; a child that it forks has none: their SDKs have
        threads and connections that a fork breaks, for the parent too."""
        return self._guests if os.getpid() == self._pid else []

    def get_hf_callback(self, *, strict: bool = False) -> TrainerCallback:
        from fmstune.trackers.hf_callback import TrackerCallback

        return TrackerCallback(self)

    def track(self, metric: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None:
        super().track(metric, name, stage)
        step = self.step if step is None else step
        self.track_point(MetricPoint({str(name): metric}, stage, step))
        for guest in self.guests:
            metric = self._redactor.text(metric) if isinstance(metric, str) else metric
            guest.track(metric, self._name(name), self._name(stage), step)

    def track_point(self, point: MetricPoint) -> None:
        values = point.values
        # Numbers hold no secrets: the training's own logs skip the search for them.
        numbers = all(type(value) is float or type(value) is int for value in values.values())
        if not numbers or not self._plain_names(tuple(values)):
            redactor = self._redactor
            values = {self._name(key): redactor.metric(item, key) for key, item in plain(values).items()}
        stage = self._name(point.stage)
        fields: dict[str, Any] = {"stage": stage, "step": point.step, "epoch": point.epoch}
        self.journal.append("metrics", {**fields, "values": values})

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        super().set_params(params, name)
        if params is not None:
            values = self._redactor.mapping(plain(params), name if isinstance(name, str) else "")
            name = self._name(name)
            self.journal.append("params", {"name": name or "params", "values": values})
            for guest in self.guests:
                guest.set_params(values, name)

    def track_table(self, table: Table) -> None:
        rows = [self._redactor.mapping(plain(row), str(table.name)) for row in table.rows]
        step = self.step if table.step is None else table.step
        name, stage = self._name(table.name), self._name(table.stage)
        fields: dict[str, Any] = {"name": name, "stage": stage, "step": step, "rows": rows}
        self.journal.append("table", fields | ({"epoch": table.epoch} if table.epoch is not None else {}))
        for guest in self.guests:
            guest.track_table(dataclasses.replace(table, name=name, stage=stage, rows=tuple(rows), step=step))

    def _plain_names(self, names: tuple[Any, ...]) -> bool:
        """Whether there is no secret in these names, which come together at each step."""
        if names in self._plain:
            return True
        plain_ones = all(self._name(name) == name for name in names)
        if plain_ones and len(self._plain) < _MOST_NAMES:
            self._plain.add(names)
        return plain_ones

    def _name(self, name: Any) -> Any:
        """A name of a metric, a stage, a table or a namespace without a secret in it; two names that differ
        in their secrets alone stay two."""
        if not isinstance(name, str):
            return name
        written = self._names.get(name)
        if written is None:
            written = stem = self._redactor.text(name)
            count = 1
            while written != name and written in self._hidden_names:
                count += 1
                written = f"{stem} {count}"
            if len(self._names) < _MOST_NAMES:
                self._names[name] = written
                if written != name:
                    self._hidden_names.add(written)
        return written

    def resumed(self, step: int) -> None:
        """Note that the training goes on from `step`: later steps logged before are logged again."""
        self.journal.append("resume", {"step": step})

    def close(self, status: Status, error: str | None = None) -> None:
        fields: dict[str, str] = {"status": status}
        if error is not None:
            fields["error"] = self._redactor.text(error)
        self.journal.append("status", fields)
        for guest in self.guests:
            guest.close(status, fields.get("error"))


@contextmanager
def active(recorder: Recorder | None) -> Iterator[None]:
    """Make `recorder` the one that `fmstune.track` and `fmstune.set_params` write to."""
    global _active
    before, _active = _active, recorder
    if recorder is not None:
        os.environ[_RECORDS] = str(os.getpid())
    try:
        yield
    finally:
        _active = before
        if before is None:
            os.environ.pop(_RECORDS, None)


def _here() -> Tracker:
    """The recorder of the run that is active in this process, or in the one that has forked it; else one that
    does nothing. A process that the training has started in another way is told so, once."""
    global _told
    if _active is not None:
        return _active
    trainer = os.environ.get(_RECORDS)
    if trainer is not None and not _told:
        _told = True
        with contextlib.suppress(OSError, ValueError, AttributeError):  # where nobody reads it
            print(
                f"warning  fmstune records nothing in process {os.getpid()}, which was not forked by the "
                f"training (process {trainer}): call fmstune.track there, or use the start method fork",
                file=sys.stderr,
            )
    return Tracker("fmstune")


def track(metric: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None:
    """Track a metric of the active run from anywhere in the training process, or in a child that it forks;
    `step` defaults to the current one. Does nothing when no run is active here (another rank, another
    program).

    Raises `ValueError` when the metric or its name is `None`.
    """
    _here().track(metric, name, stage, step=step)


def set_params(params: Mapping[str, Any] | None, name: str | None = None) -> None:
    """Attach parameters to the active run under the namespace `name`, from anywhere in the training
    process. Does nothing when no run is active here.

    Raises `ValueError` when `params` is not a mapping.
    """
    _here().set_params(params, name)


def track_table(
    rows: Iterable[Mapping[str, Any]], name: str, stage: str | None = None, *, step: int | None = None
) -> None:
    """Track rows that belong together, such as samples, as a table of the active run, from anywhere in the
    training process. Each row maps column names to texts or numbers. Does nothing when no run is active here.

    Raises `ValueError` when the name is `None` or a row is not a mapping.
    """
    table = Table(name, tuple(rows), stage, step)
    if name is None or not all(isinstance(row, Mapping) for row in table.rows):
        raise ValueError("track_table needs a name, and rows that map columns to values")
    _here().track_table(table)
