"""Metrics one after another, as long as nothing goes wrong: all but a few of the events of a run.

What `Delivery` asks of each event is asked here of a stretch of them, and the ledger is replaced once: in a
run of a million events that takes longer than most SDKs do. What fails is left to `Delivery`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from fmstune.delivery.journal.reader import Event
from fmstune.delivery.shipping.standing import Standing

_MOST_EVENTS, _MOST_SECONDS = 4096, 1.0
"""After so many events, and so long, the ledger is written: a shipper that gets no further seems to hang."""


class GivingOn(Standing):
    """A delivery in which nothing has failed."""

    _raised: tuple[int, BaseException] | None = None

    def _give_on(self, batch: Sequence[tuple[Event, int]], at: int) -> int:
        """Give the metrics of a batch from the place `at` on, and return how many that were. They end where
        something else comes, where the tracker raises, or after a second."""
        ledger = self.ledger
        if (
            self._raised is not None
            or not self._open
            or self._failing
            or self._returned
            or ledger.missing
            or ledger.closed
        ):
            return 0
        if self._careful or not self._tracker.idempotent or ledger.suspicion.last > ledger.delivered:
            return 0
        give, seq, called, offset = self._handover.give, ledger.delivered, 0, ledger.offset
        until = self._confirmed_at + _MOST_SECONDS
        for index in range(at, len(batch)):
            event, behind = batch[index]
            if event.kind != "metrics" or event.seq != seq + 1 or event.seq <= self._held:
                break
            try:
                if give(event):
                    called = event.seq
            # An SDK may raise any BaseException, and each is a failure like another: `Delivery` notes it.
            except BaseException as error:
                self._raised = (event.seq, error)
                break
            seq, offset = event.seq, behind
            if time.monotonic() > until:
                break
        if called:
            self._took = True
        if (given := seq - ledger.delivered) > 0:
            self.ledger = dataclasses.replace(
                ledger,
                delivered=seq,
                total=max(seq, ledger.total),
                offset=offset,
                changes=self._handover.changes,
                adapted=self._handover.adapted,
                last_row=max(called, ledger.last_row),
                last_given=max(called, ledger.last_given),
            )
        return given

    def _take_raised(self, event: Event) -> BaseException | None:
        """What the tracker has raised for this event a moment ago."""
        raised, self._raised = self._raised, None
        return raised[1] if raised is not None and raised[0] == event.seq else None

    @property
    def _is_due(self) -> bool:
        """Whether the ledger is far behind, in seconds or events."""
        events = self.ledger.delivered - self._confirmed.delivered
        return events >= _MOST_EVENTS or time.monotonic() > self._confirmed_at + _MOST_SECONDS
