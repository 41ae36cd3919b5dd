"""The fast path for consecutive metrics while nothing fails: nearly all events of a run.

`Delivery` updates the ledger for each event; this updates it once per batch of events: in a run of a
million events, the ledger takes longer than most SDKs. Failures are left to `Delivery`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from fmstune.delivery.journal.reader import Event
from fmstune.delivery.shipping.progress import DeliveryProgress

_MOST_EVENTS, _MOST_SECONDS = 4096, 1.0
"""The ledger is written after this many events, or this long: a shipper without progress seems to hang."""


class BatchDelivery(DeliveryProgress):
    """A delivery without failures."""

    _raised: tuple[int, BaseException] | None = None

    def _deliver_batch(self, batch: Sequence[tuple[Event, int]], at: int) -> int:
        """Deliver the metrics of a batch from the index `at` on; return how many. Stops at any other event,
        if the tracker raises, or after a second."""
        ledger = self.ledger
        if (
            self._raised is not None
            or not self._open
            or self._failing
            or self._redelivered
            or ledger.missing
            or ledger.closed
        ):
            return 0
        careful = self._careful(ledger.delivered + 1)
        if careful or not self._tracker.idempotent or ledger.suspicion.last > ledger.delivered:
            return 0
        events = _consecutive_metrics(batch, at, ledger.delivered + 1)
        if not events or events[0].seq <= self._held:
            return 0
        given, called, error = self._handover.deliver_all(events, self._confirmed_at + _MOST_SECONDS)
        if error is not None:
            self._raised = (events[given].seq, error)
        if called:
            self._any_accepted = self._unflushed = True
        if given:
            seq, offset = events[given - 1].seq, batch[at + given - 1][1]
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

    def _pop_raised(self, event: Event) -> BaseException | None:
        """The exception that the tracker has just raised for this event."""
        raised, self._raised = self._raised, None
        return raised[1] if raised is not None and raised[0] == event.seq else None

    @property
    def _is_due(self) -> bool:
        """Whether the ledger is far behind, in seconds or events."""
        events = self.ledger.delivered - self._confirmed.delivered
        return events >= _MOST_EVENTS or time.monotonic() > self._confirmed_at + _MOST_SECONDS


def _consecutive_metrics(batch: Sequence[tuple[Event, int]], at: int, seq: int) -> list[Event]:
    """The metrics of a batch from the index `at` on that are numbered from `seq` on without a gap."""
    events = [event for event, _ in batch[at:]]
    kinds, numbers = [event.kind for event in events], [event.seq for event in events]
    if kinds.count("metrics") == len(events) and numbers == [*range(seq, seq + len(events))]:
        return events  # nearly always: a check for all of them, not one for each
    found = list[Event]()
    for event in events:
        if event.kind != "metrics" or event.seq != seq + len(found):
            break
        found.append(event)
    return found
