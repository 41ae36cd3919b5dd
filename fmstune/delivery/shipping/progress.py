"""The progress of the delivery to one tracker, its ledger, and when its process ends."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from fmstune import access
from fmstune.delivery.journal.reader import Event, JournalReader, last_seq
from fmstune.delivery.ledger import Ledger, State
from fmstune.delivery.shipping.handover import HandOver
from fmstune.delivery.spans import EMPTY
from fmstune.delivery.suspicion import How, Mark, Suspicion
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.secrets.redaction import beginning
from fmstune.trackers.base import Tracker
from fmstune.trackers.network import in_words

ROWS = ("metrics", "table", "text", "image", "histogram")
"""The kinds of events that have a place among a tracker's rows."""
_MOST_CAUSE = 500
"""The most characters kept of an error's message; SDKs put whole request bodies into theirs."""
_MOST_ROUNDS, _MOST_ROUNDS_IN_ORDER = 12, 100
"""How many consecutive processes with nothing accepted are worth starting at once; the latter if events
must wait for each other, so that each needs its own processes."""
_MOST_BEGINNINGS = 3
"""How often to restart at once with the whole journal, when the storage loses it."""


class DeliveryFailed(Exception):
    """The tracker raised; the ledger has the progress of the delivery. `again`: a new process may get further
    at once."""

    def __init__(self, text: str, *, again: bool) -> None:
        self.again = again
        super().__init__(text)


class RunRemoved(Exception):
    """The directory no longer holds the run: what is left of it cannot be delivered."""


class DeliveryProgress:
    """The progress of delivering the journal in `directory` to one tracker, starting with `ledger`.

    `ledger` is what this process has done, `_confirmed` what the tracker reported as safe, to which a failure
    falls back. Nothing here calls the tracker.
    """

    def __init__(
        self,
        directory: Path,
        tracker: Tracker,
        ledger: Ledger,
        trainer_pid: int | None = None,
        *,
        forgive: bool = False,
    ) -> None:
        """With `forgive`, every event that the tracker failed on gets another chance."""
        self._directory = directory
        self._tracker = tracker
        self._trainer_pid = trainer_pid
        # What an interrupted process opened and did not close holds nothing safe. If it failed on the first
        # event, the counts are equal, and each round would leave an empty run behind.
        cut_off = tracker.durable_on == "close" and ledger.run_id is not None and not ledger.closed
        self._redelivery = cut_off or ledger.delivered > ledger.safe_delivered
        suspicion = ledger.suspicion.forgiven(self._in_order) if forgive else ledger.suspicion
        if ledger.trying or forgive:  # if this process dies, what was tried before is not the reason
            ledger = dataclasses.replace(ledger, trying=0, suspicion=suspicion)
            if forgive:  # an earlier delivery's actions are not reported
                ledger = dataclasses.replace(ledger, begun_again=0, moved=None)
            ledger.save(directory)
        if forgive and ledger.missing:  # lines may be repaired, or this version may know their kind
            ledger = dataclasses.replace(ledger, offset=0, safe_offset=0, later=())
        if tracker.durable_on == "close":
            # What follows is delivered again, in order: rows after it make none of it late.
            safe = ledger.safe_delivered
            last_row = min(ledger.last_row, safe)
            ledger = dataclasses.replace(ledger, delivered=safe, offset=ledger.safe_offset, last_row=last_row)
        self._reader = JournalReader(
            directory / TRACKING_DIR / JOURNAL_NAME, ledger.offset, expected=ledger.delivered + 1
        )
        after = self._reader.header.after
        if ledger.delivered < after:
            ledger = dataclasses.replace(ledger, delivered=after, safe_delivered=after)
        self.ledger = ledger
        self._confirmed = ledger  # what the tracker reported as safe; a failure falls back to it
        self._confirmed_at = time.monotonic()
        self._handover = HandOver(self._reader.path, tracker, ledger.delivered, ledger.adapted)
        self._writer_gone: Callable[[], bool] = lambda: False  # the process that writes the journal
        self._open = False
        self._opened = False  # at any time in this process: failures are the event's, or the service's
        self._held = 0  # the service reports that it holds the events up to this number
        self._ended = False
        self._any_accepted = False  # anything since the last time that it was known to be safe
        self._unflushed = False  # whether events were given to the tracker since the last `flush`
        self._dropped: BaseException | None = None  # a failure that may have dropped such events, too
        self._redelivered: set[int] = set()  # suspects that were accepted, until that is safe
        self._failing: dict[int, bool] = {}  # consecutive failures; whether one casts doubt on the SDK
        self._failing_since = 0.0
        self._error: BaseException | None = None
        self._offsets: dict[int, int] = {}  # where in the journal the suspects of this process are
        self._not_in_journal: set[int] = set()  # suspects that are no longer in the journal

    @property
    def _in_order(self) -> bool:
        return not self._tracker.takes_late

    def _careful(self, seq: int) -> bool:
        """Whether to deliver the event by itself, as it may be the one that breaks the tracker."""
        return seq <= self.ledger.careful

    def _must_wait(self, mark: Mark) -> bool:
        """Whether later events must wait because a new process must retry this event first: if it could not
        be delivered late, and in what looks like an outage."""
        return (self._in_order or mark.how == "outage") and not mark.exhausted

    def _waits_for(self, mark: Mark) -> bool:
        """Whether to retry a suspect when its turn comes."""
        if self._must_wait(mark):
            return True
        return self._oldest_first(mark) if self._in_order else mark.unproven

    def _oldest_first(self, mark: Mark) -> bool:
        # In two of three processes the oldest suspect comes first: if an outage has ended, nothing is lost.
        # In the third one the others get a process that this event has not broken.
        return mark.open and mark.how != "died" and self.ledger.suspicion.rounds % 3 != 2

    def _is_late(self, event: Event) -> bool:
        """Whether the tracker's service would drop the event, as it holds later ones."""
        if self._tracker.takes_late or event.kind not in ROWS:
            return False
        return event.seq < self.ledger.last_row

    def _refuse_late(self, event: Event) -> None:
        cause = "it accepts no row after later ones; the journal has it"
        self.ledger = self._with_suspicion(self.ledger.suspicion.refuse(event.seq, cause))

    def _note_failure(self, event: Event, error: BaseException, *, fresh: bool) -> None:
        self._error = error
        if not self._failing:
            self._failing_since = time.monotonic()
        how: How = "outage" if isinstance(error, OSError) else "raised"
        tracker = self._tracker
        suspicion = self.ledger.suspicion
        keeps = not tracker.buffers and tracker.durable_on == "call"
        given = suspicion.values_given(event.seq) + tracker.given if keeps else 0
        suspicion = suspicion.failed(event.seq, cause_text(error), how, leads=not self._failing, given=given)
        self._failing[event.seq] = fresh
        self.ledger = self._with_suspicion(suspicion)
        self._save()

    def _plausible(self, held: int) -> int:
        """The last event that the service reports as stored, unless it is beyond the journal: later events
        would be skipped as delivered."""
        if held > self.ledger.delivered and held > (last := last_seq(self._reader.path)):
            raise ValueError(
                f"it says that it holds the events up to {held}, but the journal ends with event {last}"
            )
        return held

    def _note_gap(self, seq: int) -> None:
        """Numbers between the last event and this one are missing: their lines are damaged, or come later
        in a file that was reordered."""
        first = self.ledger.delivered + 1
        if first < seq:
            missing = self.ledger.missing.with_span(first, seq - 1)
            self.ledger = dataclasses.replace(self.ledger, missing=missing)

    def _advance(self, seq: int, offset: int) -> None:
        last = max(seq, self.ledger.delivered)
        self.ledger = dataclasses.replace(
            self.ledger,
            delivered=last,
            missing=self.ledger.missing.without(seq),
            total=max(last, self.ledger.total),
            offset=offset,
            changes=self._handover.changes,
            adapted=self._handover.adapted,
        )
        if self.ledger.closed:
            self._confirm(proved=True)
        elif self._careful(seq) or not (self._tracker.idempotent or self._tracker.buffers):
            self._confirm(proved=False)

    def _note_sending(self, size: int) -> None:
        """Record that files of this size are being delivered: the call, or the end if the SDK sends in the
        background, gets more time."""
        before = self.ledger.sending if self._tracker.durable_on == "close" else 0
        refers = self.ledger.refers or self._tracker.refers_to_files
        self.ledger = dataclasses.replace(self.ledger, sending=before + size, refers=refers)
        self._confirmed = dataclasses.replace(self._confirmed, sending=before + size, refers=refers)
        self._save()

    def _confirm(self, *, proved: bool) -> None:
        """Record the progress. Once it is safe, accepted suspects are none any more; with `proved`, what
        failed before something was accepted gets a strike."""
        if self.ledger.closed or self._tracker.durable_on == "call":
            suspicion = self.ledger.suspicion.accepted(self._redelivered)
            self._redelivered = set()
            if proved and self._any_accepted:
                suspicion, self._any_accepted = suspicion.proved(but=self._failing), False
                self.ledger = dataclasses.replace(self.ledger, error=None, error_time=None)
            self.ledger = dataclasses.replace(
                self.ledger,
                suspicion=suspicion,
                safe_delivered=self.ledger.delivered,
                safe_offset=self.ledger.offset,
                sending=0,
            )
        if self._reader.later:
            later = tuple(sorted({*self.ledger.later, *self._reader.later}))
            self.ledger = dataclasses.replace(self.ledger, later=later)
        self._confirmed, self._confirmed_at = self.ledger, time.monotonic()
        self._store(self.ledger)

    def _complete(self) -> Ledger:
        last = max(self._reader.later.values(), default=0)
        if last > self.ledger.delivered:  # the journal ends with events that only a later version knows
            self._note_gap(last + 1)
            self.ledger = dataclasses.replace(self.ledger, delivered=last, total=max(last, self.ledger.total))
        done = self.ledger
        sentence = done.suspicion.sentence()
        left: State = "failed" if done.suspicion.refused or done.missing else "complete"
        self.ledger = dataclasses.replace(
            done,
            state="behind" if done.suspicion.suspects else left,
            error=sentence,
            error_time=time.time() if sentence else None,
            careful=0,
        )
        self._confirm(proved=False)
        return self.ledger

    def _start_over(self) -> NoReturn:
        """The tracker's run does not hold what was delivered, or is another one: the next process delivers
        the whole journal."""
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
            suspicion=dataclasses.replace(self.ledger.suspicion, given=()),
            adapted=(),
            missing=EMPTY,
            closed=False,
            careful=0,
            state="behind",
            begun_again=times,
            error=text,
            error_time=time.time(),
        )
        self._store(self.ledger)
        raise DeliveryFailed(text, again=times <= _MOST_BEGINNINGS)

    def _end(self, cause: Event | BaseException | None, *, patient: bool = False) -> NoReturn:
        """End this process: at a failed event, for an error that does not belong to one event, or because
        nothing was accepted after the events in `_failing`. With `patient`, later events wait for it."""
        suspicion = self.ledger.suspicion.ended()
        most_rounds = _MOST_ROUNDS_IN_ORDER if patient or self._in_order else _MOST_ROUNDS
        hope = suspicion.worth_retrying(most_rounds)
        if isinstance(cause, BaseException):
            self._error, text = cause, cause_text(cause)
            # The next process is careful and can tell, or is not broken by what this one tried.
            new = bool(self._failing) or self._confirmed.careful > self.ledger.careful
            hope = hope or (new and suspicion.rounds < most_rounds)
        else:
            text = suspicion.cause(next(iter(self._failing), 0))
        if isinstance(cause, Event) and cause.kind == "status":  # a status cannot be skipped
            mark = suspicion.mark(cause.seq)
            hope = hope and mark is not None and not mark.exhausted
        self.ledger = dataclasses.replace(
            self._confirmed,
            suspicion=suspicion,
            last_row=self._last_row,
            state="behind",
            error=text,
            error_time=time.time(),
        )
        self._store(self.ledger)
        raise DeliveryFailed(text, again=self._opened and hope) from self._error

    @property
    def _last_row(self) -> int:
        """The last row that the service may hold if this process ends now.

        A tracker that buffers rows until `flush` loses them. If the service has them nevertheless, it
        recognises them when they are delivered again; a row that is mistaken for late would be refused for
        good.
        """
        holds_back = self._tracker.idempotent and self._tracker.durable_on == "call"
        return (self._confirmed if holds_back else self.ledger).last_row

    def _with_suspicion(self, suspicion: Suspicion) -> Ledger:
        return dataclasses.replace(self.ledger, suspicion=suspicion)

    def _save(self, trying: int = 0) -> None:
        """Save the state of the suspects, which is valid whether or not the rest is safe."""
        self._store(
            dataclasses.replace(
                self._confirmed,
                suspicion=self.ledger.suspicion,
                last_row=self._last_row,
                trying=trying,
            )
        )

    def _read(self, most: int) -> list[tuple[Event, int]]:
        batch = self._reader.read(most, patient=True)
        if batch and self._reader.is_replaced:
            raise RunRemoved
        return batch

    @property
    def run_is_removed(self) -> bool:
        """Whether the directory holds another run, or none, which the training would have restored."""
        return self._reader.is_replaced or (self._reader.is_deleted and self._writer_gone())

    def _store(self, ledger: Ledger) -> None:
        if self.run_is_removed:
            raise RunRemoved
        ledger.save(self._directory)


def cause_text(error: BaseException) -> str:
    """An error as one line of bounded length, whatever its `__str__` does; with its path and the remedy, if
    it is one of the system."""
    text = in_words(_told(access.in_words, error) or _told(str, error))
    text = " ".join(": ".join(part for part in (type(error).__name__, text) if part).split())
    return text if len(text) <= _MOST_CAUSE else f"{beginning(text, _MOST_CAUSE)}…"


def _told(words: Callable[[BaseException], str | None], error: BaseException) -> str:
    try:
        return words(error) or ""
    except BaseException:  # a tracker's own exception may raise here too
        return ""
