"""Feeding one tracker from the journal, in the shipper process.

There is one way through it: open the tracker's run, hand over each event after the ledger's offset, and
close the run at the status event. Whatever goes wrong ends the process; the next one starts from the
ledger, so that recovering from an exception, a hang and a kill is the same code.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

from fmstune.delivery.deaths import MOST_ATTEMPTS, ProcessDied, blames
from fmstune.delivery.handover import HandOver
from fmstune.delivery.journal import FILE_NAME, Event, JournalReader, last_event
from fmstune.delivery.ledger import TRACKING_DIR, Ledger
from fmstune.trackers.base import RunStart, Status, Tracker, TrackerError

POLL_SECONDS = 0.1
_MOST_MISSING = 1000


class DeliveryFailed(Exception):
    """The tracker raised; the ledger says how far the delivery had come."""

    def __init__(self, cause: BaseException) -> None:
        self.cause = cause
        kind = "" if isinstance(cause, ProcessDied) else type(cause).__name__
        super().__init__(": ".join(part for part in (kind, str(cause)) if part))


_TOO_LATE = TrackerError("it takes no row after later ones; the journal has it")


@dataclass(frozen=True, slots=True)
class _Doubt:
    """A failure at one event that may be the event's own fault; the next event tells."""

    error: BaseException
    seq: int


class Delivery:
    """The delivery of the journal in `directory` to one tracker, from where `ledger` says it stands."""

    def __init__(
        self,
        directory: Path,
        tracker: Tracker,
        ledger: Ledger,
        trainer_pid: int | None = None,
        *,
        forgive: bool = False,
    ) -> None:
        """With `forgive`, an event that has ended processes before is tried once more in its turn."""
        self._directory = directory
        self._tracker = tracker
        self._trainer_pid = trainer_pid
        self._redelivery = ledger.delivered > ledger.safe_delivered
        self._careful = ledger.careful
        blamed = blames(ledger, ledger.stuck_at) and not forgive
        self._blamed = ledger.stuck_at if blamed else 0
        self._death = ProcessDied(ledger.error or "its process died")
        if ledger.trying:  # known now; should this process die, it is of something else
            ledger = dataclasses.replace(ledger, trying=0)
            ledger.save(directory)
        if tracker.durable_on == "close":
            ledger = dataclasses.replace(ledger, delivered=ledger.safe_delivered, offset=ledger.safe_offset)
        self._reader = JournalReader(directory / TRACKING_DIR / FILE_NAME, ledger.offset)
        after = self._reader.header.after
        if ledger.delivered < after:
            ledger = dataclasses.replace(ledger, delivered=after, safe_delivered=after)
        self.ledger = ledger
        self._confirmed = ledger  # what the tracker has said is safe; a failure falls back to it
        self._handover = HandOver(self._reader.path, tracker, ledger.delivered)
        self._open = False
        self._held = 0  # the service says it holds the events up to this number
        self._ended = False
        self._doubt: _Doubt | None = None

    def run(self, writer_gone: Callable[[], bool]) -> Ledger:
        """Deliver until the run's status has been delivered, or until no more can come.

        `writer_gone` tells whether the process that writes the journal has ended; a run that ended
        without a status is closed as interrupted. Raises `DeliveryFailed`.
        """
        while True:
            gone = writer_gone()  # asked before the read: what was written before the end is read
            batch = self._reader.read()
            for index, (event, offset) in enumerate(batch):
                self._hand_over(event, offset, last=index == len(batch) - 1)
            if batch:
                self._flush()
            elif gone or self._ended:
                return self._finish()
            else:
                time.sleep(POLL_SECONDS)

    def _hand_over(self, event: Event, offset: int, last: bool) -> None:
        self._note_gap(event.seq)
        if event.seq <= self.ledger.delivered and event.seq not in self.ledger.missing:
            return
        refused = self.ledger.refused
        if event.seq in refused:  # by an earlier delivery of it; `retry_refused` is for these
            self._advance(event.seq, offset, refused)
            return
        if self._too_late(event):
            self._note_refusal(event.seq, _TOO_LATE)
            self._advance(event.seq, offset, (*refused, event.seq))
            return
        try:
            delivered = self._deliver(event, last)
        # SystemExit is not an Exception, and an SDK that calls sys.exit is a failure like another.
        except (Exception, SystemExit) as error:
            if self._doubt is not None or not self._is_refusal(error, event.seq):
                self._failed(error, event.seq)
            # Is it this event that the tracker cannot take, or does it take none? The next one tells.
            self._doubt = _Doubt(error, event.seq)
            refused = (*refused, event.seq)
        else:
            if delivered and self._doubt is not None:
                self._note_refusal(self._doubt.seq, self._doubt.error)
                self._doubt = None
        self._advance(event.seq, offset, refused)

    def _note_gap(self, seq: int) -> None:
        """Numbers between the last event and this one are missing: their lines are damaged, or come later
        in a file that somebody has reordered."""
        gap = range(self.ledger.delivered + 1, seq)
        if gap:
            missing = (*self.ledger.missing, *gap[:_MOST_MISSING])
            self.ledger = dataclasses.replace(self.ledger, missing=missing[:_MOST_MISSING])

    def _is_refusal(self, error: BaseException, seq: int) -> bool:
        """Whether a failure is the last of several at one event, with the service reachable."""
        if isinstance(error, ProcessDied):
            return True
        ledger = self._confirmed
        again = ledger.attempts if seq == ledger.stuck_at else 0
        return self._open and not isinstance(error, OSError) and again + 1 >= MOST_ATTEMPTS

    def retry_refused(self, after: int = 0) -> None:
        """Hand over again what the tracker has refused before, but for events up to the number `after`.
        Comes after `run`. Raises `DeliveryFailed`."""
        wanted = {seq for seq in self.ledger.refused if seq > after}
        if not wanted:
            return
        failure: BaseException | None = None
        self._careful, self._blamed = True, 0
        final = last_event(self._reader.path)
        for event in JournalReader(self._reader.path):
            if event.seq not in wanted:
                continue
            if self._too_late(event):
                failure = failure or _TOO_LATE
                self._note_refusal(event.seq, _TOO_LATE)
                continue
            try:
                if not self._open:
                    self._open_run()
                self._held = 0  # what it holds came after this
                self._deliver(event, last=event == final)
            except (Exception, SystemExit) as error:
                if not self._open or isinstance(error, OSError):
                    self._failed(error, 0)
                failure = failure or error
                self._note_refusal(event.seq, error)
            else:
                left = tuple(seq for seq in self.ledger.refused if seq != event.seq)
                self.ledger = dataclasses.replace(self.ledger, refused=left)
                if self._tracker.durable_on == "call":
                    self._confirm()
        if self._open:
            self._close_as_recorded()
        self._complete()
        if failure is not None:
            raise DeliveryFailed(failure) from failure

    def _too_late(self, event: Event) -> bool:
        """Whether the tracker's service would drop the event, as it holds later ones."""
        rows = event.kind in ("metrics", "table")
        return rows and not self._tracker.takes_late and event.seq < self.ledger.delivered

    def _note_refusal(self, seq: int, error: BaseException) -> None:
        text = f"event {seq} was refused: {DeliveryFailed(error)}"
        self.ledger = dataclasses.replace(self.ledger, error=text, error_time=time.time())

    def _deliver(self, event: Event, last: bool) -> bool:
        """Hand one event to the tracker; whether there was anything to hand over."""
        if event.kind == "resume" or (event.kind == "status" and not (last and self._at_end())):
            return False  # a status that more events follow was not the end: the run was resumed
        if event.seq == self._blamed:
            raise self._death
        if not self._open:
            self._open_run()
        if event.seq <= self._held:
            return False
        if self._careful:
            dataclasses.replace(self._confirmed, trying=event.seq).save(self._directory)
        self._handover.give(event)
        if event.kind == "status":
            self._close(cast(Status, event.status), event.error)
        elif self._careful:
            self._tracker.flush()  # an SDK that sends in the background is to die here, not at a later event
        return True

    def _open_run(self) -> None:
        ledger = self.ledger
        run = self._tracker.open(
            RunStart(
                name=self._reader.header.run,
                directory=str(self._directory),
                tracker_run_id=ledger.run_id,
                redelivery=self._redelivery,
                trainer_pid=self._trainer_pid,
                run_id=self._reader.header.id,
                after=self._reader.header.after,
            )
        )
        self._open, self._ended, self._redelivery = True, False, False
        self._held = run.delivered_through or 0
        opened: dict[str, Any] = {"run_id": run.id, "url": run.url, "note": run.note, "closed": False}
        self.ledger = dataclasses.replace(ledger, **opened)
        self._confirmed = dataclasses.replace(self._confirmed, **opened)
        self._confirmed.save(self._directory)

    def _close(self, status: Status, error: str | None) -> None:
        self._tracker.close(status, error)
        self._open, self._ended = False, True
        self.ledger = dataclasses.replace(self.ledger, closed=True)

    def _advance(self, seq: int, offset: int, refused: tuple[int, ...]) -> None:
        safe = self.ledger.closed or self._tracker.durable_on == "call"
        stuck = seq < self.ledger.stuck_at
        last = max(seq, self.ledger.delivered)
        error = self.ledger.error if stuck or refused else None
        self.ledger = dataclasses.replace(
            self.ledger,
            delivered=last,
            missing=tuple(each for each in self.ledger.missing if each != seq),
            total=max(last, self.ledger.total),
            offset=offset,
            safe_delivered=last if safe else self.ledger.safe_delivered,
            safe_offset=offset if safe else self.ledger.safe_offset,
            refused=refused,
            changes=self._handover.changes,
            stuck_at=self.ledger.stuck_at if stuck else 0,
            attempts=self.ledger.attempts if stuck else 0,
            error=error,
            error_time=self.ledger.error_time if error else None,
        )
        if self._careful or not self._tracker.idempotent:
            self._confirm()

    def _flush(self) -> None:
        if self._open:
            try:
                self._tracker.flush()
            except (Exception, SystemExit) as error:
                self._failed(error, 0)
        self._confirm()

    def _confirm(self) -> None:
        if self._doubt is not None:
            return  # the event in doubt is not left behind yet
        self._confirmed = self.ledger
        self.ledger.save(self._directory)

    def _finish(self) -> Ledger:
        if self._doubt is not None:
            self._failed(self._doubt.error, self._doubt.seq)
        if not self.ledger.closed and self.ledger.delivered:
            self._close_as_recorded()
        self._complete()
        return self.ledger

    def _close_as_recorded(self) -> None:
        """Close the tracker's run with the status that the journal ends with."""
        final = last_event(self._reader.path)
        ended = final is not None and final.kind == "status"
        try:
            if not self._open:
                self._open_run()
            if ended and final is not None:
                self._close(cast(Status, final.status), final.error)
            else:
                self._close("interrupted", None)
        except (Exception, SystemExit) as error:
            self._failed(error, 0)

    def _complete(self) -> None:
        done = self.ledger
        left = bool(done.refused or done.missing)
        self.ledger = dataclasses.replace(
            done,
            safe_delivered=done.delivered,
            safe_offset=done.offset,
            state="failed" if left else "complete",
            error=done.error if left else None,
            error_time=done.error_time if left else None,
            careful=False,
        )
        self._confirm()

    def _failed(self, error: BaseException, seq: int) -> NoReturn:
        if self._doubt is not None:  # nothing came after it: it is not that event alone
            error, seq, self._doubt = self._doubt.error, self._doubt.seq, None
        # A service that is away says nothing about the event; anything else may be about this event.
        known = self._open or isinstance(error, ProcessDied)
        blamed = seq if known and not isinstance(error, OSError) else 0
        again = blamed and blamed == self._confirmed.stuck_at
        self.ledger = dataclasses.replace(
            self._confirmed,
            state="behind",
            stuck_at=blamed,
            attempts=(self._confirmed.attempts + 1 if again else 1) if blamed else 0,
            error=str(DeliveryFailed(error)),
            error_time=time.time(),
        )
        self._confirm()
        raise DeliveryFailed(error) from error

    def _at_end(self) -> bool:
        return self._reader.offset >= self._reader.path.stat().st_size
