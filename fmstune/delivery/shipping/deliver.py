"""Feeding one tracker from the journal, in the shipper process.

There is one way through it: open the tracker's run, hand over each event after the ledger's offset, and
close the run at the status event. An event that the tracker fails at is set aside (see `suspicion`); when
the SDK may be broken the process ends, and the next one starts from the ledger, so that recovering from an
exception, a hang and a kill is the same code.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, cast

from fmstune.delivery.journal.reader import Event, JournalReader, final_status, last_seq, sessions
from fmstune.delivery.ledger import Ledger, State
from fmstune.delivery.shipping.handover import HandOver
from fmstune.delivery.spans import EMPTY, Spans
from fmstune.delivery.suspicion import MOST_STRIKES, How, Mark, Suspicion
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.trackers.base import Tracker
from fmstune.trackers.records import RunStart, Status

POLL_SECONDS = 0.1

_ROWS = ("metrics", "table")
_MOST_CAUSE = 500
"""Characters kept of an error's text; SDKs put whole request bodies into theirs."""
_LONGEST_RUN_ID = 10_000
_SLOW_SECONDS = 5.0
"""When failures in a row take so long, the service seems to hang: the process tries no more of the rest."""
_MOST_PROBES = 16
"""Suspects that a process tries in a row with nothing taken, so that attempts in an outage stay few."""
_MOST_ROUNDS, _MOST_ROUNDS_IN_ORDER = 12, 100
"""Processes in a row, with nothing taken, that are worth starting at once; the latter where events have to
wait for each other, so that each needs processes of its own."""
_MOST_BEGINNINGS = 3
"""So often in a row it is worth starting at once with all of the journal, when the storage loses it."""


class DeliveryFailed(Exception):
    """The tracker raised; the ledger says how far the delivery had come. `again`: a new process may get
    further at once."""

    def __init__(self, text: str, *, again: bool) -> None:
        self.again = again
        super().__init__(text)


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
        """With `forgive`, every event that the tracker has failed at gets another chance."""
        self._directory = directory
        self._tracker = tracker
        self._trainer_pid = trainer_pid
        # What a cut-off process has opened and not closed holds nothing that is safe. When it failed at the
        # first event already, the counts are equal, and each round would leave an empty run behind.
        cut_off = tracker.durable_on == "close" and ledger.run_id is not None and not ledger.closed
        self._redelivery = cut_off or ledger.delivered > ledger.safe_delivered
        suspicion = ledger.suspicion.forgiven(self._in_order) if forgive else ledger.suspicion
        if ledger.trying or forgive:  # should this process die, it is not of what was tried before
            begun_again = 0 if forgive else ledger.begun_again
            ledger = dataclasses.replace(ledger, trying=0, suspicion=suspicion, begun_again=begun_again)
            ledger.save(directory)
        if tracker.durable_on == "close":
            ledger = dataclasses.replace(ledger, delivered=ledger.safe_delivered, offset=ledger.safe_offset)
        self._reader = JournalReader(
            directory / TRACKING_DIR / JOURNAL_NAME, ledger.offset, expected=ledger.delivered + 1
        )
        after = self._reader.header.after
        if ledger.delivered < after:
            ledger = dataclasses.replace(ledger, delivered=after, safe_delivered=after)
        self.ledger = ledger
        self._confirmed = ledger  # what the tracker has said is safe; a failure falls back to it
        self._handover = HandOver(self._reader.path, tracker, ledger.delivered)
        self._open = False
        self._opened = False  # at any time in this process: failures are the event's, or the service's
        self._held = 0  # the service says it holds the events up to this number
        self._ended = False
        self._took = False  # something, since the last time that it was known to be safe
        self._returned: set[int] = set()  # suspects that were taken, until that is safe
        self._failing: dict[int, bool] = {}  # events failed at in a row; whether this cast doubt on the SDK
        self._failing_since = 0.0
        self._error: BaseException | None = None
        self._offsets: dict[int, int] = {}  # where in the journal the suspects of this process are
        self._gone: set[int] = set()  # suspects that the journal does not hold any more

    @property
    def _in_order(self) -> bool:
        return not self._tracker.takes_late

    def run(self, writer_gone: Callable[[], bool]) -> Ledger:
        """Deliver until the run's status has been delivered, or until no more can come.

        `writer_gone` tells whether the process that writes the journal has ended; a run that ended
        without a status is closed as interrupted. Raises `DeliveryFailed`.
        """
        self._try_first()
        while True:
            gone = writer_gone()  # asked before the read: what was written before the end is read
            start = self._reader.offset
            batch = self._reader.read(patient=True)
            for index, (event, offset) in enumerate(batch):
                self._next(event, start, offset, last=index == len(batch) - 1)
                start = offset
            if batch:
                self._flush()
            elif (gone or self._ended) and self._reader.is_readable:
                return self._finish()
            elif len(self._failing) > 1 and any(self._failing.values()):
                self._end(None)  # nothing has been taken for a while: a new process may find the SDK whole
            else:
                time.sleep(POLL_SECONDS)
            if not self._ended:
                self._try_again(self.ledger.suspicion.confirmed)

    # -- one event ----------------------------------------------------------------------------

    def _next(self, event: Event, start: int, offset: int, last: bool) -> None:
        """The next event of the journal, which lies between the bytes `start` and `offset` of it."""
        self._note_gap(event.seq)
        if event.seq <= self.ledger.delivered and event.seq not in self.ledger.missing:
            return
        final = event.kind == "status" and last and self._reader.at_end
        mark = self.ledger.suspicion.mark(event.seq)
        known = mark is not None and not (final or self._waits_for(mark))
        if known or event.seq in self.ledger.suspicion.refused or event.seq in self._returned:
            self._advance(event.seq, offset)
            return
        if (mark is not None or event.seq in self.ledger.missing) and self._is_late(event):
            self._refuse_late(event)
            self._advance(event.seq, offset)
            return
        if final:  # whatever can still be taken has to be taken before the run is closed
            self._flush()
            self._try_again(self.ledger.suspicion.confirmed)
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
        """Hand one event to the tracker; whether that was no failure. Raises when the run can't be opened."""
        if event.kind == "resume" or (event.kind == "status" and not final):
            self.ledger = self._with_suspicion(self.ledger.suspicion.taken([event.seq]))
            return True  # a status that more events follow was not the end: the run was resumed
        self._open_run()
        if event.seq <= self._held and not again:
            self._returned.add(event.seq)
            return True
        if self._careful or again:
            self._save(trying=event.seq)
        try:
            called = self._hand_over(event)
            if event.kind != "status" and (self._careful or again):
                self._tracker.flush()  # an SDK that sends in the background is to fail here, not later
        # SystemExit, KeyboardInterrupt or any other BaseException of an SDK is a failure like another.
        except BaseException as error:
            self._note_failure(event, error, fresh=not again or self.ledger.suspicion.rounds > 0)
            return False
        if event.kind == "status" and not self._holds():
            self._begin_again()
        if called:
            self._took = True
            self._failing.clear()
        if called and event.kind in _ROWS:
            last_row = max(event.seq, self.ledger.last_row)
            self.ledger = dataclasses.replace(self.ledger, last_row=last_row)
        if called and (event.kind in _ROWS or event.values):
            last_given = max(event.seq, self.ledger.last_given)
            self.ledger = dataclasses.replace(self.ledger, last_given=last_given)
        if self.ledger.suspicion.mark(event.seq) is None:
            return True
        if event.seq > self._confirmed.safe_delivered:
            # Should it be lost, it comes again with all the others, in its turn.
            self.ledger = self._with_suspicion(self.ledger.suspicion.taken([event.seq]))
        else:
            self._returned.add(event.seq)
        return True

    def _hand_over(self, event: Event) -> bool:
        called = self._handover.give(event)
        if event.kind != "status":
            return called
        self._close(cast(Status, event.status), event.error)
        return True

    def _note_failure(self, event: Event, error: BaseException, *, fresh: bool) -> None:
        self._error = error
        if not self._failing:
            self._failing_since = time.monotonic()
        how: How = "outage" if isinstance(error, OSError) else "raised"
        suspicion = self.ledger.suspicion.failed(
            event.seq, cause_text(error), how, leads=not self._failing
        )  # fmt: skip
        self._failing[event.seq] = fresh
        self.ledger = self._with_suspicion(suspicion)
        self._save()

    def _note_gap(self, seq: int) -> None:
        """Numbers between the last event and this one are missing: their lines are damaged, or come later
        in a file that somebody has reordered."""
        first = self.ledger.delivered + 1
        if first < seq:
            missing = self.ledger.missing.with_span(first, seq - 1)
            self.ledger = dataclasses.replace(self.ledger, missing=missing)

    # -- suspects -----------------------------------------------------------------------------

    def _must_wait(self, mark: Mark) -> bool:
        """Whether later events have to wait, since the event is to be tried again by a new process first:
        where it could not be taken late, and in what looks like an outage."""
        return (self._in_order or mark.how == "outage") and not mark.exhausted

    def _waits_for(self, mark: Mark) -> bool:
        """Whether a suspect is to be tried again when its turn comes."""
        if self._must_wait(mark):
            return True
        return self._oldest_first(mark) if self._in_order else mark.unproven

    def _oldest_first(self, mark: Mark) -> bool:
        # In two of three processes the oldest suspect comes first: should an outage have ended, nothing is
        # lost. In the third the others get a process that this event has not broken.
        return mark.open and mark.how != "died" and self.ledger.suspicion.rounds % 3 != 2

    def _try_first(self) -> None:
        """Before anything else: suspects that an earlier process may have been too broken for."""
        suspicion = self.ledger.suspicion
        if self._tracker.takes_late:
            self._try_again(suspicion.unproven, most=_MOST_PROBES)
        elif self._tracker.durable_on == "call" and suspicion.rounds % 3 != 2:
            self._try_again(suspicion.waiting)

    def _try_again(self, wanted: Spans, most: int | None = None) -> None:
        """Hand over suspects once more, in the order of the journal; at most `most` in a row that fail."""
        # The others come in their turn: a process has died at them, or all is delivered once more.
        wanted = wanted.up_to(self.ledger.delivered)
        todo = set(wanted) - self._returned - self._gone if wanted else set()
        if not todo:
            return
        offset = min(self._offsets.get(seq, 0) for seq in todo)
        for event in JournalReader(self._reader.path, offset):
            if event.seq not in todo:
                continue
            todo.remove(event.seq)
            if event.kind != "status":  # which comes in its turn
                self._try_one_again(event)
            if not todo or (most is not None and len(self._failing) >= most):
                break
        else:
            self._gone |= todo
        self._flush()

    def _try_one_again(self, event: Event) -> None:
        if self._is_late(event):
            self._refuse_late(event)
        elif not self._attempt(event, again=True):
            mark = self.ledger.suspicion.mark(event.seq)
            if mark is not None and self._in_order and not mark.exhausted and not mark.strikes:
                self._end(event, patient=True)
            self._end_if_slow()

    def _is_late(self, event: Event) -> bool:
        """Whether the tracker's service would drop the event, as it holds later ones."""
        if self._tracker.takes_late or event.kind not in _ROWS:
            return False
        return event.seq < self.ledger.last_row

    def _refuse_late(self, event: Event) -> None:
        cause = "it takes no row after later ones; the journal has it"
        self.ledger = self._with_suspicion(self.ledger.suspicion.refuse(event.seq, cause))

    def _end_if_slow(self) -> None:
        if len(self._failing) > 1 and time.monotonic() - self._failing_since > _SLOW_SECONDS:
            self._end(None)

    # -- the tracker's run --------------------------------------------------------------------

    def _open_run(self) -> None:
        if self._open:
            return
        ledger = self.ledger
        header = self._reader.header
        start = RunStart(
            name=header.run,
            directory=str(self._directory),
            tracker_run_id=ledger.run_id,
            redelivery=self._redelivery,
            trainer_pid=self._trainer_pid,
            run_id=header.id,
            after=header.after,
            sessions=sessions(self._reader.path),
        )
        try:
            run = self._tracker.open(start)
            run_id = None if run.id is None else str(run.id)
            if run_id is not None and len(run_id) > _LONGEST_RUN_ID:
                raise ValueError(f"the id of the tracker's run has {len(run_id)} characters")
            opened: dict[str, Any] = {"run_id": run_id, "url": run.url, "note": run.note, "closed": False}
            self._held = self._believed(int(run.delivered_through or 0))
        except BaseException as error:
            self._end(error)
        self._open, self._opened, self._ended, self._redelivery = True, True, False, False
        if self._held in ledger.suspicion.unconfirmed:
            self._returned.add(self._held)  # the process died after the call's effect
        self.ledger = dataclasses.replace(ledger, **opened)
        self._confirmed = dataclasses.replace(self._confirmed, **opened)
        self._save()
        another = ledger.run_id is not None and run_id not in (None, ledger.run_id)
        if self.ledger.delivered > header.after and (another or not self._holds()):
            self._begin_again()

    def _believed(self, held: int) -> int:
        """What the service says it holds, unless that is more than there is: the events to come would be
        passed over as delivered."""
        if held > self.ledger.delivered and held > (last := last_seq(self._reader.path)):
            raise ValueError(
                f"it says that it holds the events up to {held}, but the journal ends with event {last}"
            )
        return held

    def _holds(self) -> bool:
        try:
            return bool(self._tracker.holds(self.ledger.last_given))
        except BaseException as error:
            self._end(error)

    def _begin_again(self) -> NoReturn:
        """The tracker's run does not hold what it was given, or is another one: the next process delivers all
        of the journal."""
        after, times = self._reader.header.after, self.ledger.begun_again + 1
        text = "its storage was removed, replaced or restored to an older state"
        self.ledger = dataclasses.replace(
            self.ledger,
            delivered=after,
            safe_delivered=after,
            offset=0,
            safe_offset=0,
            last_row=0,
            last_given=0,
            missing=EMPTY,
            closed=False,
            state="behind",
            begun_again=times,
            error=text,
            error_time=time.time(),
        )
        self.ledger.save(self._directory)
        raise DeliveryFailed(text, again=times <= _MOST_BEGINNINGS)

    def _close(self, status: Status, error: str | None) -> None:
        self._tracker.close(status, error)
        self._open, self._ended = False, True
        self.ledger = dataclasses.replace(self.ledger, closed=True)

    def _advance(self, seq: int, offset: int) -> None:
        last = max(seq, self.ledger.delivered)
        self.ledger = dataclasses.replace(
            self.ledger,
            delivered=last,
            missing=self.ledger.missing.without(seq),
            total=max(last, self.ledger.total),
            offset=offset,
            changes=self._handover.changes,
        )
        if self.ledger.closed:
            self._confirm(proved=True)
        elif self._careful or not self._tracker.idempotent:
            self._confirm(proved=False)

    def _flush(self) -> None:
        if self._open and self._took:
            try:
                self._tracker.flush()
                whole = self._tracker.holds(self.ledger.last_given)
            except BaseException as error:
                # Which of the events it was is found out by a process that waits after each of them.
                self._confirmed = dataclasses.replace(self._confirmed, careful=True)
                self._end(error)
            if not whole:
                self._begin_again()
        self._confirm(proved=True)

    def _confirm(self, *, proved: bool) -> None:
        """Write down how far the delivery is. Where that is safe, suspects that were taken are none any more;
        with `proved`, what failed before something was taken has a strike."""
        if self.ledger.closed or self._tracker.durable_on == "call":
            suspicion = self.ledger.suspicion.taken(self._returned)
            self._returned = set()
            if proved and self._took:
                suspicion, self._took = suspicion.proved(but=self._failing), False
                self.ledger = dataclasses.replace(self.ledger, error=None, error_time=None)
            self.ledger = dataclasses.replace(
                self.ledger,
                suspicion=suspicion,
                safe_delivered=self.ledger.delivered,
                safe_offset=self.ledger.offset,
            )
        self._confirmed = self.ledger
        self.ledger.save(self._directory)

    def _finish(self) -> Ledger:
        for _ in range(MOST_STRIKES + 1):  # what is tried again may open the run once more
            self._flush()
            self._try_again(self.ledger.suspicion.confirmed)
            if not self.ledger.closed and self.ledger.delivered:
                self._close_as_recorded()
        return self._complete()

    def _close_as_recorded(self) -> None:
        """Close the tracker's run with the status that it ended with."""
        final = final_status(self._reader.path)
        self._open_run()
        self._save(trying=0)
        try:
            if final is not None:
                self._handover.give(final)
                self._close(cast(Status, final.status), final.error)
            else:
                self._tracker.seq = None  # no event says so
                self._close("interrupted", None)
        except BaseException as error:
            self._end(error)
        if not self._holds():
            self._begin_again()
        self._took = True
        self._failing.clear()
        if final is not None:
            self._returned.add(final.seq)
        self._confirm(proved=True)

    def _complete(self) -> Ledger:
        done = self.ledger
        sentence = done.suspicion.sentence()
        left: State = "failed" if done.suspicion.refused or done.missing else "complete"
        self.ledger = dataclasses.replace(
            done,
            state="behind" if done.suspicion.suspects else left,
            error=sentence,
            error_time=time.time() if sentence else None,
            careful=False,
        )
        self._confirm(proved=False)
        return self.ledger

    def _end(self, trouble: Event | BaseException | None, *, patient: bool = False) -> NoReturn:
        """End this process: at an event that was failed at, for an error that is not one event's, or since
        nothing was taken after the events of `_failing`. With `patient`, later events wait for it."""
        suspicion = self.ledger.suspicion.ended()
        most_rounds = _MOST_ROUNDS_IN_ORDER if patient or self._in_order else _MOST_ROUNDS
        hope = suspicion.hopeful(most_rounds)
        if isinstance(trouble, BaseException):
            self._error, text = trouble, cause_text(trouble)
            # The next process is careful and can tell, or is not broken by what this one has tried.
            hope = hope or self._confirmed.careful > self.ledger.careful
            hope = hope or (bool(self._failing) and suspicion.rounds < most_rounds)
        else:
            text = suspicion.cause(next(iter(self._failing), 0))
        if isinstance(trouble, Event) and trouble.kind == "status":  # which nothing can be passed over for
            mark = suspicion.mark(trouble.seq)
            hope = hope and mark is not None and not mark.exhausted
        self.ledger = dataclasses.replace(
            self._confirmed,
            suspicion=suspicion,
            last_row=self.ledger.last_row,
            last_given=self.ledger.last_given,
            state="behind",
            error=text,
            error_time=time.time(),
        )
        self.ledger.save(self._directory)
        raise DeliveryFailed(text, again=self._opened and hope) from self._error

    # -- the ledger ---------------------------------------------------------------------------

    @property
    def _careful(self) -> bool:
        return self.ledger.careful

    def _with_suspicion(self, suspicion: Suspicion) -> Ledger:
        return dataclasses.replace(self.ledger, suspicion=suspicion)

    def _save(self, trying: int = 0) -> None:
        """Write down what is known of the suspects, which holds whether or not the rest is safe."""
        dataclasses.replace(
            self._confirmed,
            suspicion=self.ledger.suspicion,
            last_row=self.ledger.last_row,
            last_given=self.ledger.last_given,
            trying=trying,
        ).save(self._directory)


def cause_text(error: BaseException) -> str:
    """An error as one line of bounded length, whatever it does when it is asked for its text."""
    try:
        text = str(error)
    except BaseException:  # a tracker's own exception may raise here too
        text = ""
    text = " ".join(": ".join(part for part in (type(error).__name__, text) if part).split())
    return text if len(text) <= _MOST_CAUSE else f"{text[:_MOST_CAUSE]}…"
