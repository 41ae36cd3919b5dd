"""Trackers that provide a vendor's callback: they run in the training process, inside a guard.

Such a tracker learns what the Trainer does through its own callback, and everything else as in a shipper.
Each call has a deadline. An exception, or a call that does not return, disables it with a warning; the run
continues, and what it missed waits in the journal. No guard can stop code that holds Python's lock forever,
which is why `fmstune trackers list` marks these trackers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from fmstune.delivery.guarded_callback import guarded_callback
from fmstune.delivery.journal.labels import labels
from fmstune.delivery.journal.reader import Event, JournalError, JournalReader, sessions
from fmstune.delivery.journal.writer import JournalWriter
from fmstune.delivery.ledger import Ledger, load_ledger
from fmstune.delivery.process_state import state_restored
from fmstune.delivery.shipping.handover import HandOver
from fmstune.delivery.shipping.process import Job
from fmstune.delivery.shipping.progress import cause_text
from fmstune.errors import is_stop
from fmstune.secrets.redaction import process_redactor
from fmstune.system.deadline import DeadlineThread
from fmstune.trackers.base import Tracker
from fmstune.trackers.compat import own_callback_of
from fmstune.trackers.records import RunStart, Status, TrackerError, run_of

_WHERE = "it runs in the training process, and was disabled there"
_SAVE_AFTER = ("on_log", "on_save", "on_train_end")
"""The events after which the ledger is written."""


class GuardedTracker:
    """A tracker whose every call is guarded; `warn` receives the reason, once, when it is disabled."""

    def __init__(
        self, job: Job, build: Callable[[], Tracker], warn: Callable[[str], None], *, seconds: float = 10.0
    ) -> None:
        """Create the tracker, in the thread that runs all of its calls."""
        self.job = job
        self.problem: str | None = None
        self._warn = warn
        self._thread = DeadlineThread(f"tracker {job.name}", seconds)
        self._ledger = Ledger(job.name, job.reference, process_redactor().mapping(job.options))
        self._directory: Path | None = None
        self._journal: JournalWriter | None = None
        self._handover: HandOver | None = None
        self._closed = self._ended = False
        self._given = 0  # the last event passed to it, which it may buffer until `flush`
        self._tracker: Tracker | None = None
        self._tracker = self._call(build)

    def attach(self, directory: Path, journal: JournalWriter) -> TrainerCallback:
        """Open its run, deliver the part of the journal that it lacks, and return its callback, guarded, or
        one that does nothing if that fails."""
        self._directory, self._journal = directory, journal
        found = load_ledger(directory, self.job.name) or Ledger(self.job.name)
        self._ledger = dataclasses.replace(
            found,
            reference=self._ledger.reference,
            options=self._ledger.options,
            cwd=found.cwd or str(Path.cwd()),
            delivered=max(found.delivered, journal.header.after),
            closed=False,
        )
        callback = self._call(lambda: None if self._tracker is None else own_callback_of(self._tracker))
        if callback is None and self.problem is None:
            self._fail(TrackerError("get_hf_callback returned no callback here, but did when it was checked"))
        self._call(self._open)
        if self._tracker is not None and self.problem is None:
            self._handover = HandOver(journal.path, self._tracker, self._ledger.delivered)
            self._catch_up(journal.path, self._ledger.delivered)
        with contextlib.suppress(OSError):
            self._save()
        return TrainerCallback() if callback is None else guarded_callback(callback, self._event)

    def deliver(self, event: Event) -> None:
        """Deliver what its callback does not receive: params, a table, the user's own metrics."""
        if (handover := self._handover) is not None and not self._ended:
            self._call(lambda: handover.deliver(event), reached=event.seq)

    def close(self, status: Status, error: str | None) -> None:
        """Close its run with the status."""
        if self._handover is None:
            return
        tracker = self._handover.tracker

        def end() -> None:
            tracker.seq = self._journal.last_seq if self._journal else None
            tracker.close(status, error)

        self._call(end, reached=None)
        self._closed, self._ended = self.problem is None, True
        self._thread.close()

    def save(self) -> None:
        """Save what was delivered, for the report and for `trackers sync`. Raises `OSError`."""
        self._save()

    # -- the guard ----------------------------------------------------------------------------

    def _event(self, name: str, call: Callable[[], Any]) -> None:
        self._call(call, reached=None)
        if name in _SAVE_AFTER:
            with contextlib.suppress(OSError):  # the run's disk may be full; `save` retries
                self._save()

    def _call(self, call: Callable[[], Any], *, reached: int | None = 0) -> Any:
        """Run a call, after which it has everything up to the event `reached`, or with `None` up to the last
        one. After a failed call there are no others."""
        if self.problem is not None:
            self._thread.interrupt()
            return None
        try:
            with state_restored():
                result = self._thread.call(call)
        # Whatever it is, it must not reach the training: `asyncio.CancelledError` and panics of Rust
        # extensions are not an `Exception`.
        except BaseException as error:
            if is_stop(error):
                raise
            self._fail(error)
            return None
        if reached is None:
            reached = self._journal.last_seq if self._journal else 0
        self._given = max(self._given, reached)
        if self._tracker is None or type(self._tracker).flush is Tracker.flush:  # nothing is buffered
            self._note_delivered()
        return result

    def _note_delivered(self) -> None:
        if self._given > self._ledger.delivered:
            self._ledger = dataclasses.replace(self._ledger, delivered=self._given)

    def _fail(self, error: BaseException) -> None:
        self.problem = cause_text(error)
        self._ledger = dataclasses.replace(
            self._ledger, error=f"{_WHERE}: {self.problem}", error_time=time.time()
        )
        self._warn(f"the tracker {self.job.name} is disabled for this run: {self.problem}")

    # -- its run ------------------------------------------------------------------------------

    def _open(self) -> None:
        if self._tracker is None or self._journal is None:
            return
        header, called = self._journal.header, labels(self._journal.path)
        start = RunStart(
            name=called.name,
            directory=str(self._directory),
            tracker_run_id=self._ledger.run_id,
            run_id=header.id,
            after=header.after,
            sessions=sessions(self._journal.path),
            group=called.group,
            tags=called.tags,
            notes=called.notes,
        )
        run = run_of(self._tracker.open(start), start)
        run_id = None if run.id is None else str(run.id)
        self._ledger = dataclasses.replace(self._ledger, run_id=run_id, url=run.url, note=run.note)

    def _catch_up(self, path: Path, before: int) -> None:
        try:
            for event in JournalReader(path):
                if event.seq > before:
                    self.deliver(event)
        except (OSError, JournalError) as error:  # the run's own disk; the run continues
            self._fail(error)

    def _save(self) -> None:
        if self._directory is None or self._journal is None:
            return
        if not self._closed and self._given > self._ledger.delivered and self._tracker is not None:
            self._call(self._tracker.flush, reached=0)
        if self.problem is None:
            self._note_delivered()
        ledger, last = self._ledger, self._journal.last_seq
        complete = self._closed and ledger.delivered == last
        self._ledger = dataclasses.replace(
            ledger,
            total=max(last, ledger.delivered),
            safe_delivered=ledger.delivered,
            changes=self._handover.changes if self._handover else ledger.changes,
            closed=self._closed,
            state="complete" if complete else "behind",
        )
        self._ledger.save(self._directory)
