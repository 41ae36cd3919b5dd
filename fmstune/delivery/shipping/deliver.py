"""Feed one tracker from the journal, in the shipper process.

There is one code path: open the tracker's run, deliver each event after the ledger's offset, and close the
run at the status event. An event that the tracker fails on is set aside (see `suspicion`). If the SDK may
be broken, the process ends and the next one starts from the ledger, so that recovery from an exception, a
hang and a kill is the same code. `DeliveryProgress` has the progress and the ledger; this module has the
calls of the tracker.
"""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from fmstune.delivery.journal.labels import labels
from fmstune.delivery.journal.reader import Event, JournalReader, final_status, sessions
from fmstune.delivery.ledger import Ledger
from fmstune.delivery.shipping.batches import BatchDelivery
from fmstune.delivery.shipping.progress import ROWS
from fmstune.delivery.spans import Spans
from fmstune.delivery.suspicion import MOST_STRIKES
from fmstune.trackers.places import other_place, place_of
from fmstune.trackers.records import RunStart, Status, run_of

POLL_SECONDS = 1.0
"""Each look takes the processor from a training, and more events at once cost less."""
_FIRST_POLL_SECONDS = 0.1
_AT_ONCE = 256

_LONGEST_RUN_ID = 10_000
_SLOW_SECONDS = 5.0
"""When consecutive failures take this long, the service seems to hang: the process stops trying."""
_MOST_PROBES = 16
"""The most consecutive suspects that a process tries with nothing accepted, to limit attempts in an
outage."""


class Delivery(BatchDelivery):
    """The delivery of the journal in `directory` to one tracker, from the position in `ledger`."""

    def run(self, writer_gone: Callable[[], bool], pause: Callable[[float], None] = time.sleep) -> Ledger:
        """Deliver until the run's status has been delivered, or until no more can come.

        `writer_gone` tells whether the process that writes the journal has ended; a run that ended without a
        status is closed as interrupted. `pause` waits this many seconds for more. Raises `DeliveryFailed`.
        """
        self._writer_gone = writer_gone
        self._retry_first()
        while True:
            gone = writer_gone()  # checked before the read: everything written before the end is read
            start, at = self._reader.offset, 0
            batch = self._read(_AT_ONCE)
            while at < len(batch):
                if given := self._deliver_batch(batch, at):
                    at += given
                else:
                    event, offset = batch[at]
                    self._next(event, start, offset, last=at == len(batch) - 1)
                    at += 1
                start = batch[at - 1][1]
                if self._is_due:
                    self._flush()
            if batch:
                if len(batch) < _AT_ONCE or self._is_due or self._reader.at_end:
                    self._flush()
            elif (gone or self._ended) and self._reader.is_readable:
                return self._finish()
            elif len(self._failing) > 1 and any(self._failing.values()):
                self._end(None)  # nothing accepted for a while: a new process may have a working SDK
            elif self.ledger is not self._confirmed:
                self._flush()
            else:
                pause(POLL_SECONDS if self._opened else min(POLL_SECONDS, _FIRST_POLL_SECONDS))
            if not self._ended:
                self._retry(self.ledger.suspicion.confirmed)

    # -- one event ----------------------------------------------------------------------------

    def _next(self, event: Event, start: int, offset: int, last: bool) -> None:
        """The next event of the journal, which is between the bytes `start` and `offset`."""
        self._note_gap(event.seq)
        if event.seq <= self.ledger.delivered and event.seq not in self.ledger.missing:
            return
        final = event.kind == "status" and last and self._reader.at_end
        mark = self.ledger.suspicion.mark(event.seq)
        known = mark is not None and not (final or self._waits_for(mark))
        if known or event.seq in self.ledger.suspicion.refused or event.seq in self._redelivered:
            self._advance(event.seq, offset)
            return
        if (mark is not None or event.seq in self.ledger.missing) and self._is_late(event):
            self._refuse_late(event)
            self._advance(event.seq, offset)
            return
        if final:  # everything possible must be delivered before the run is closed
            self._flush()
            self._retry(self.ledger.suspicion.confirmed)
            self._flush()
        if len(self._offsets) < 10_000:
            self._offsets[event.seq] = start
        if not self._attempt(event, final):
            mark = self.ledger.suspicion.mark(event.seq)
            if final or (mark is not None and self._must_wait(mark)):
                self._end(event, patient=not final)
            self._end_if_slow()
        self._advance(event.seq, offset)

    def _attempt(self, event: Event, final: bool = False, *, again: bool = False) -> bool:
        """Deliver one event; return whether it did not fail. Raises when the run cannot be opened."""
        ignored = event.kind == "resume" and not self._tracker.hears_of_resumes
        if ignored or (event.kind == "status" and not final):
            self.ledger = self._with_suspicion(self.ledger.suspicion.accepted([event.seq]))
            return True  # a status followed by more events was not final: the run was resumed
        self._open_run()
        if event.seq <= self._held and not again and self._is_known_held(event.seq):
            self._redelivered.add(event.seq)
            self._note_given(event)
            return True
        if self._handover.takes(event):
            self._note_sending(int(event.item.get("size", 0)))
        if careful := self._careful(event.seq) or again:
            self._save(trying=event.seq)
        unflushed, self._tracker.given = self._unflushed, 0
        try:
            called = self._deliver(event)
            if event.kind != "status" and careful:
                self._tracker.flush()  # an SDK that sends in the background must fail here, not later
            self._unflushed = not careful
        # SystemExit, KeyboardInterrupt or any other BaseException of an SDK is a failure like another.
        except BaseException as error:
            if unflushed and self._tracker.buffers and self._tracker.durable_on == "call":
                self._dropped = error  # it may have sent a batch with earlier events
            self._note_failure(event, error, fresh=not again or self.ledger.suspicion.rounds > 0)
            return False
        if event.kind == "status" and not self._holds():
            self._start_over()
        if called:
            self._any_accepted = True
            self._failing.clear()
            self._note_given(event)
        if self.ledger.suspicion.mark(event.seq) is None:
            return True
        if event.seq > self._confirmed.safe_delivered:
            # If it is lost, it is delivered again with all others, in order.
            self.ledger = self._with_suspicion(self.ledger.suspicion.accepted([event.seq]))
        else:
            self._redelivered.add(event.seq)
            if again and not self._tracker.idempotent:  # or a death at the next suspect would repeat it
                self._confirm(proved=False)
        return True

    def _note_given(self, event: Event) -> None:
        """Record an event that the service has, among its rows if it is one."""
        given = {
            "last_row": event.kind in ROWS,
            "last_given": event.kind in (*ROWS, "artifact") or event.values,
        }
        last = {key: max(event.seq, getattr(self.ledger, key)) for key, counts in given.items() if counts}
        self.ledger = dataclasses.replace(self.ledger, **last)

    def _is_known_held(self, seq: int) -> bool:
        """Whether the service holds an event up to the last one that it reports; later ones may have been
        accepted after a suspect was not."""
        return seq in self._redelivered or self.ledger.suspicion.mark(seq) is None

    def _deliver(self, event: Event) -> bool:
        if (raised := self._pop_raised(event)) is not None:
            raise raised
        called = self._handover.deliver(event, self.ledger.suspicion.values_given(event.seq))
        if event.kind != "status":
            return called
        self._close(cast(Status, event.status), event.error)
        return True

    # -- suspects -----------------------------------------------------------------------------

    def _retry_first(self) -> None:
        """Before anything else: suspects that an earlier process may have been too broken for."""
        suspicion = self.ledger.suspicion
        if self._tracker.takes_late:
            self._retry(suspicion.unproven, most=_MOST_PROBES)
        elif self._tracker.durable_on == "call" and suspicion.rounds % 3 != 2:
            self._retry(suspicion.waiting)

    def _retry(self, wanted: Spans, most: int | None = None) -> None:
        """Deliver suspects again, in the journal's order, until `most` consecutive ones have failed."""
        # The others come in order: a process died at them, or everything is delivered again.
        wanted = wanted.up_to(self.ledger.delivered)
        todo = set(wanted) - self._redelivered - self._not_in_journal if wanted else set()
        if not todo:
            return
        offset = min(self._offsets.get(seq, 0) for seq in todo)
        for event in JournalReader(self._reader.path, offset):
            if event.seq not in todo:
                continue
            todo.remove(event.seq)
            if event.kind != "status":  # a status comes in order
                self._retry_one(event)
            if not todo or (most is not None and len(self._failing) >= most):
                break
        else:
            self._not_in_journal |= todo
        self._flush()

    def _retry_one(self, event: Event) -> None:
        if self._is_late(event):
            self._refuse_late(event)
        elif not self._attempt(event, again=True):
            mark = self.ledger.suspicion.mark(event.seq)
            if mark is not None and self._in_order and not mark.exhausted and not mark.strikes:
                self._end(event, patient=True)
            self._end_if_slow()

    def _end_if_slow(self) -> None:
        if len(self._failing) > 1 and time.monotonic() - self._failing_since > _SLOW_SECONDS:
            self._end(None)

    # -- the tracker's run --------------------------------------------------------------------

    def _open_run(self) -> None:
        if self._open:
            return
        if self.ledger.new_run_id is None:
            self.ledger = dataclasses.replace(self.ledger, new_run_id=secrets.token_hex(12))
            self._confirmed = dataclasses.replace(self._confirmed, new_run_id=self.ledger.new_run_id)
            self._save()
        ledger = self.ledger
        header, called = self._reader.header, labels(self._reader.path)
        start = RunStart(
            name=called.name,
            directory=str(self._directory),
            tracker_run_id=ledger.run_id,
            redelivery=self._redelivery,
            trainer_pid=self._trainer_pid,
            run_id=header.id,
            after=header.after,
            sessions=sessions(self._reader.path),
            new_run_id=ledger.new_run_id,
            group=called.group,
            tags=called.tags,
            notes=called.notes,
        )
        try:
            run = run_of(self._tracker.open(start), start)
            run_id = None if run.id is None else str(run.id)
            if run_id is not None and len(run_id) > _LONGEST_RUN_ID:
                raise ValueError(f"the id of the tracker's run has {len(run_id)} characters")
            opened: dict[str, Any] = {"run_id": run_id, "url": run.url, "note": run.note, "closed": False}
            opened |= {"new_run_id": None, "place": place_of(self._tracker), "cwd": str(Path.cwd())}
            self._held = self._plausible(int(run.delivered_through or 0))
            if ledger.run_id is not None and ledger.place is not None and not self._held:
                # If the service reports that it holds the run's events, it is the same run at a new address.
                opened["moved"] = other_place(self._tracker, ledger.place) or ledger.moved
        except BaseException as error:
            self._end(error)
        self._open, self._opened, self._ended, self._redelivery = True, True, False, False
        if self._held in ledger.suspicion.unconfirmed:
            self._redelivered.add(self._held)  # the process died after the call's effect
        self.ledger = dataclasses.replace(ledger, **opened)
        self._confirmed = dataclasses.replace(self._confirmed, **opened)
        self._save()
        another = ledger.run_id is not None and run_id not in (None, ledger.run_id)
        if self.ledger.delivered > header.after and (another or not self._holds()):
            self._start_over()

    def look(self) -> bool:
        """Whether the tracker's storage was seen to hold the complete run. If it does not, records that in
        the ledger and raises `DeliveryFailed`: everything is to be delivered again."""
        header = self._reader.header
        start = RunStart(
            name=header.run,
            directory=str(self._directory),
            tracker_run_id=self.ledger.run_id,
            run_id=header.id,
            after=header.after,
        )
        stored = self._tracker.is_stored(start, self.ledger.last_given)
        if stored is False:
            self._start_over()
        return stored is True

    def _holds(self) -> bool:
        try:
            return bool(self._tracker.holds(self.ledger.last_given))
        except BaseException as error:
            self._end(error)

    def _close(self, status: Status, error: str | None) -> None:
        self._tracker.close(status, error)
        self._open, self._ended = False, True
        self.ledger = dataclasses.replace(self.ledger, closed=True)

    def _flush(self) -> None:
        if self._open and self._any_accepted:
            try:
                if self._dropped is not None:
                    raise self._dropped
                self._tracker.flush()
                self._unflushed = False
                whole = self._tracker.holds(self.ledger.last_given)
            except BaseException as error:
                # A process that waits after each of these events will find out which one it was.
                careful = max(self.ledger.careful, self.ledger.delivered)
                self._confirmed = dataclasses.replace(self._confirmed, careful=careful)
                self._end(error)
            if not whole:
                self._start_over()
        self._confirm(proved=True)

    def _finish(self) -> Ledger:
        for _ in range(MOST_STRIKES + 1):  # a retry may reopen the run
            self._flush()
            self._retry(self.ledger.suspicion.confirmed)
            if not self.ledger.closed and (self.ledger.delivered or self.ledger.run_id is not None):
                self._close_as_recorded()
        if not self.ledger.delivered and self.ledger.run_id is None:
            # It ended before its first event: there is no data for a run in the tracker.
            self.ledger = dataclasses.replace(self.ledger, closed=True)
        return self._complete()

    def _close_as_recorded(self) -> None:
        """Close the tracker's run with the status that it ended with."""
        final = final_status(self._reader.path)
        self._open_run()
        self._save(trying=0)
        try:
            if final is not None:
                self._handover.deliver(final)
                self._close(cast(Status, final.status), final.error)
            else:
                self._tracker.seq = None  # no event records it
                self._close("interrupted", None)
        except BaseException as error:
            self._end(error)
        if not self._holds():
            self._start_over()
        self._any_accepted = True
        self._failing.clear()
        if final is not None:
            self._redelivered.add(final.seq)
        self._confirm(proved=True)
