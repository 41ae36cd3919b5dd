"""An in-process service for the model of delivery, and trackers of it with chosen guarantees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from fmstune.trackers.base import Tracker
from fmstune.trackers.records import Media, MetricPoint, RunStart, Status, Table, TrackerRun

Trouble = Literal["fine", "raise", "outage", "base", "kill before", "kill after", "removed", "older"]


Refusal = Literal["raise", "outage", "base", "exit", "kill", "hang", "break"]
"""How the service fails at an event that it refuses; `break` raises and leaves the SDK unusable."""


class Killed(BaseException):
    """The process dies in the middle of a call."""


class Odd(BaseException):
    """An error that is no `Exception`."""


@dataclass
class Service:
    """What trackers deliver to: it keeps everything that arrives, from any process. `troubles` are those of
    the next calls; once they are used up, everything works except for the events in `refusals`."""

    troubles: Iterator[Trouble] = field(default_factory=lambda: iter(()))
    refusals: dict[int, Refusal] = field(default_factory=dict)
    down: bool = False
    opens: bool = False
    stored: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    last_row: int = 0
    pending_row: int = 0
    runs: set[str] = field(default_factory=set)
    statuses: list[str] = field(default_factory=list)
    kills_after: int = 0
    killed_after_close: bool = False
    attempts: Counter[int] = field(default_factory=Counter)
    death: str = ""
    broken: bool = False
    rows: set[int] = field(default_factory=set)
    storage: int = 0
    older: list[int] = field(default_factory=list)
    lacking: set[int] = field(default_factory=set)
    """What was stored and has been removed."""
    opened: int = 0

    def lose(self, how: str, *, knows_again: bool) -> None:
        """The storage is removed, or replaced by an older copy. If the service does not recognize repeated
        events, what is left of them would be stored twice."""
        left = self.older if how == "older" and knows_again else []
        self.lacking |= set(self.stored) - set(left)
        self.storage, self.stored, self.older = self.storage + 1, list(left), list(left)
        self.last_row = max(self.rows & set(left), default=0)
        self.runs.clear()

    def new_process(self) -> None:
        """Start a new process: nothing of an earlier one is left in memory."""
        self.death, self.broken, self.pending, self.pending_row = "", False, [], 0

    def die(self, cause: str) -> None:
        self.death = cause
        raise Killed

    def call(self, seq: int | None, *, knows_again: bool, opening: bool = False) -> None:
        """One call of the tracker, with the trouble that occurs before it has an effect."""
        if self.death:
            raise Killed
        if self.broken or (self.down and not opening):
            raise RuntimeError("nothing works")
        if seq is not None:
            self.attempts[seq] += 1
            self._refuse(self.refusals.get(seq))
        trouble = next(self.troubles, "fine")
        if trouble == "raise":
            raise RuntimeError("no")
        if trouble == "base":
            raise Odd("no")
        if trouble == "outage":
            raise ConnectionResetError("gone")
        if trouble in ("removed", "older"):
            self.lose(trouble, knows_again=knows_again)
        if trouble == "kill before":
            self.die("its process died of SIGKILL")
        self.dies_now = trouble == "kill after"

    def called(self) -> None:
        """The end of a call, after it has taken effect."""
        if self.dies_now:
            self.kills_after += 1
            self.die("its process died of SIGKILL")

    def _refuse(self, how: Refusal | None) -> None:
        if how == "break":
            self.broken = True
        if how in ("raise", "break"):
            raise ValueError("not this one")
        if how == "outage":
            raise TimeoutError("not this one")
        if how == "base":
            raise Odd("not this one")
        if how == "exit":
            raise SystemExit("not this one")
        if how in ("kill", "hang"):
            self.die("it did not return" if how == "hang" else "its process died of SIGSEGV")


class ModelTracker(Tracker):
    """A tracker of `service`; `tracker_with` sets its guarantees."""

    media = frozenset({"text"})
    service: ClassVar[Service]
    knows_last: ClassVar[bool]
    """Whether it reports the last event that the service holds, as one that records it there."""
    storage: int | None = None
    opened_in: int

    def open(self, start: RunStart) -> TrackerRun:
        service = self.service
        service.call(None, knows_again=self.idempotent, opening=service.opens)
        run = start.tracker_run_id
        if run not in service.runs:
            service.opened += 1
            run = f"run-{service.opened}"
            service.runs.add(run)
        self.opened_in = service.storage
        service.called()
        reports = self.knows_last and self.durable_on == "call" and not service.lacking
        return TrackerRun(run, delivered_through=max(service.stored, default=None) if reports else None)

    def holds(self, last: int) -> bool:
        service = self.service
        if service.death:
            raise Killed
        if self.storage is None:  # the run was only just opened
            self.storage = service.storage
            return not any(seq <= last for seq in service.lacking)
        return self.storage == service.storage

    def track_point(self, point: MetricPoint) -> None:
        self._take(row=True)

    def track_table(self, table: Table) -> None:
        self._take(row=True)

    def track_media(self, media: Media) -> None:
        self._take(row=True)

    def set_params(self, params: Any, name: str | None = None) -> None:
        self._take(row=False)

    def _take(self, *, row: bool) -> None:
        service, seq = self.service, self.seq
        assert seq is not None
        service.call(seq, knows_again=self.idempotent)
        if self.storage is None:
            self.storage = service.storage if self._writes_to_any_storage else self.opened_in
        if self._writes_to_nowhere:
            service.called()
            return
        waits = self.durable_on == "close" or self.buffers
        held = service.pending if waits else service.stored
        known = self.idempotent and seq in held
        late = row and not self.takes_late and seq <= max(service.last_row, service.pending_row)
        if not known and not late:
            held.append(seq)
            service.rows |= {seq} if row else set()
            if not waits:
                service.lacking.discard(seq)
            if row and not waits:
                service.last_row = seq
            elif row:
                service.pending_row = seq
        service.called()

    @property
    def _writes_to_any_storage(self) -> bool:
        """A service that recognizes repeated events writes to the storage that replaced its run's. If rows
        must arrive in order, or only once, that could not be repaired."""
        return self.takes_late and self.idempotent

    @property
    def _writes_to_nowhere(self) -> bool:
        """As to a file that has been unlinked."""
        return not self._writes_to_any_storage and self.storage not in (None, self.service.storage)

    def close(self, status: Status, error: str | None = None) -> None:
        service = self.service
        service.call(self.seq, knows_again=self.idempotent)
        self._store_pending()
        service.statuses.append(status)
        service.killed_after_close |= service.dies_now
        service.called()

    def _store_pending(self) -> None:
        service = self.service
        if self._writes_to_nowhere:
            service.pending, service.pending_row = [], 0
        new = [seq for seq in service.pending if not (self.idempotent and seq in service.stored)]
        service.stored += new
        service.lacking -= set(new)
        service.last_row = max(service.last_row, service.pending_row)
        service.pending, service.pending_row = [], 0


class BufferingTracker(ModelTracker):
    """Sends what it got together, in `flush`, or in an event's call when that is much. A batch that could not
    be sent is dropped."""

    def _take(self, *, row: bool) -> None:
        super()._take(row=row)
        if len(self.service.pending) > 2:
            self.flush()

    def flush(self) -> None:
        service = self.service
        if not service.pending:
            return
        try:
            service.call(None, knows_again=self.idempotent)
        except BaseException:
            service.pending, service.pending_row = [], 0
            raise
        self._store_pending()
        service.called()


def tracker_with(
    service: Service, *, idempotent: bool, takes_late: bool, durable_on: str, knows_last: bool, buffers: bool
) -> type[Tracker]:
    """A tracker class of `service` with these guarantees."""
    guarantees = {"idempotent": idempotent, "takes_late": takes_late, "durable_on": durable_on}
    kind = BufferingTracker if buffers and durable_on == "call" else ModelTracker
    return type("Made", (kind,), {"service": service, "knows_last": knows_last, **guarantees})
