"""How far the delivery to one tracker has come, what the ledger says of it, and when its process ends."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import NoReturn

from fmstune.delivery.journal.reader import Event, JournalReader, last_seq
from fmstune.delivery.ledger import Ledger, State
from fmstune.delivery.shipping.handover import HandOver
from fmstune.delivery.spans import EMPTY
from fmstune.delivery.suspicion import How, Suspicion
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.secrets.redaction import beginning
from fmstune.trackers.base import Tracker
from fmstune.trackers.network import in_words

_MOST_CAUSE = 500
"""Characters kept of an error's text; SDKs put whole request bodies into theirs."""
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


class Standing:
    """Where the delivery of the journal in `directory` to one tracker stands, beginning with `ledger`.

    `ledger` is what this process has done, `_confirmed` what the tracker has said is safe, which a failure
    falls back to. Nothing here calls the tracker.
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
            ledger = dataclasses.replace(ledger, trying=0, suspicion=suspicion)
            if forgive:  # what an earlier delivery did is no news
                ledger = dataclasses.replace(ledger, begun_again=0, moved=None)
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
        self._confirmed_at = time.monotonic()
        self._handover = HandOver(self._reader.path, tracker, ledger.delivered, ledger.adapted)
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

    @property
    def _careful(self) -> bool:
        return self.ledger.careful

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

    def _believed(self, held: int) -> int:
        """What the service says it holds, unless that is more than there is: the events to come would be
        passed over as delivered."""
        if held > self.ledger.delivered and held > (last := last_seq(self._reader.path)):
            raise ValueError(
                f"it says that it holds the events up to {held}, but the journal ends with event {last}"
            )
        return held

    def _note_gap(self, seq: int) -> None:
        """Numbers between the last event and this one are missing: their lines are damaged, or come later
        in a file that somebody has reordered."""
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
        elif self._careful or not self._tracker.idempotent:
            self._confirm(proved=False)

    def _note_sending(self, size: int) -> None:
        """Files of this size are handed over now, for which the call gets time, or the end where the SDK
        sends in the background."""
        before = self.ledger.sending if self._tracker.durable_on == "close" else 0
        refers = self.ledger.refers or self._tracker.refers_to_files
        self.ledger = dataclasses.replace(self.ledger, sending=before + size, refers=refers)
        self._confirmed = dataclasses.replace(self._confirmed, sending=before + size, refers=refers)
        self._save()

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
                sending=0,
            )
        self._confirmed, self._confirmed_at = self.ledger, time.monotonic()
        self.ledger.save(self._directory)

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
            adapted=(),
            missing=EMPTY,
            closed=False,
            state="behind",
            begun_again=times,
            error=text,
            error_time=time.time(),
        )
        self.ledger.save(self._directory)
        raise DeliveryFailed(text, again=times <= _MOST_BEGINNINGS)

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
            last_row=self._last_row,
            state="behind",
            error=text,
            error_time=time.time(),
        )
        self.ledger.save(self._directory)
        raise DeliveryFailed(text, again=self._opened and hope) from self._error

    @property
    def _last_row(self) -> int:
        """The last row that the service may hold when this process ends now.

        A tracker that holds rows until `flush` takes them along. Should the service have them all the same,
        it knows them when they come again; a row that is taken for late would be refused for good.
        """
        holds_back = self._tracker.idempotent and self._tracker.durable_on == "call"
        return (self._confirmed if holds_back else self.ledger).last_row

    def _with_suspicion(self, suspicion: Suspicion) -> Ledger:
        return dataclasses.replace(self.ledger, suspicion=suspicion)

    def _save(self, trying: int = 0) -> None:
        """Write down what is known of the suspects, which holds whether or not the rest is safe."""
        dataclasses.replace(
            self._confirmed,
            suspicion=self.ledger.suspicion,
            last_row=self._last_row,
            trying=trying,
        ).save(self._directory)


def cause_text(error: BaseException) -> str:
    """An error as one line of bounded length, whatever it does when it is asked for its text."""
    try:
        text = str(error)
    except BaseException:  # a tracker's own exception may raise here too
        text = ""
    text = in_words(text)
    text = " ".join(": ".join(part for part in (type(error).__name__, text) if part).split())
    return text if len(text) <= _MOST_CAUSE else f"{beginning(text, _MOST_CAUSE)}…"
