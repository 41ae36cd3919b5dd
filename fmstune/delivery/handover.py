"""One event of the journal as the call of a tracker that it is."""

from __future__ import annotations

from fmstune.delivery.journal import Event
from fmstune.delivery.normalise import Normaliser
from fmstune.trackers.base import MetricPoint, Table, Tracker


def hand_over(event: Event, tracker: Tracker, normaliser: Normaliser) -> None:
    """Give metrics, a table or params to the tracker, adapted to what it can hold; what a status asks of it
    is left to the caller. Raises what the tracker raises."""
    tracker.seq, tracker.step = event.seq, event.step
    where = (event.stage, event.step, event.epoch, event.time, event.seq)
    if event.kind == "metrics":
        values = normaliser.metrics(event.values)
        if values:
            tracker.track_point(MetricPoint(values, *where))
    elif event.kind == "table":
        tracker.track_table(Table(event.name or "table", event.rows, *where))
    elif event.kind == "params":
        tracker.set_params(normaliser.params(event.values), event.name)
