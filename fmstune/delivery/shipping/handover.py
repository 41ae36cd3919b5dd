"""Convert events of the journal to calls of one tracker, each in the context of the earlier ones.

A call can depend on earlier events: which value of a metric at its step it is, what is known of a namespace
of params, what a name is called there. So each event is processed once, in the order of the journal's lines,
including those that another process has delivered: a new process reads them from the journal.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fmstune.delivery.journal.reader import Event
from fmstune.delivery.shipping.media import with_content, with_files
from fmstune.delivery.shipping.past import Call, Params, Past, Resumed
from fmstune.trackers.base import Tracker
from fmstune.trackers.records import Artifact, Media, MetricPoint, Table


class Delivered(NamedTuple):
    """How many of the events were delivered, and the number of the last one for which the tracker was called;
    `error` is what was raised for the next one."""

    events: int
    called: int = 0
    error: BaseException | None = None


class HandOver:
    """Deliver the events of the journal at `path` to a tracker that already has the first `delivered`."""

    def __init__(self, path: Path, tracker: Tracker, delivered: int, adapted: tuple[str, ...] = ()) -> None:
        """`adapted` is what the tracker reported in an earlier process."""
        self.tracker = tracker
        self._process = os.getpid()
        self._before = adapted
        self._path = path
        self._delivered = delivered
        self._past = Past(path, tracker)
        self._again: Past | None = None  # for an event that is delivered after later ones
        self._last: tuple[int, Call | None] = (0, None)  # an event may be tried several times in a row
        self._ahead: dict[int, MetricPoint | None] = {}  # the points of events that are to be delivered next

    @property
    def changes(self) -> tuple[str, ...]:
        """What had to be adapted to the tracker's limits."""
        return (*self._past.changes, *self.adapted)

    @property
    def adapted(self) -> tuple[str, ...]:
        """The adaptations by the tracker itself, in this process or before: they are not reported again."""
        return tuple(dict.fromkeys((*self._before, *self.tracker.adapted)))

    def takes(self, event: Event) -> bool:
        """Whether the event delivers files that the tracker accepts."""
        return event.kind == "artifact" and self.tracker.takes_artifacts

    def deliver(self, event: Event, given: int = 0) -> bool:
        """Deliver metrics, a table or params to the tracker, adapted to its limits; the caller handles a
        status. Of metrics, the tracker has already taken the first `given` values. Returns whether the
        tracker was called. Raises what the tracker raises."""
        if event.seq != self._last[0]:
            self._last = (event.seq, self._call(event))
        call, tracker = self._last[1], self.tracker
        tracker.seq, tracker.step, tracker.event_time = event.seq, getattr(call, "step", None), event.time
        if isinstance(call, MetricPoint):
            left = dict(itertools.islice(call.values.items(), given, None)) if given else call.values
            tracker.track_point(call._replace(values=left))
        elif isinstance(call, Table):
            tracker.track_table(call)
        elif isinstance(call, Params):
            tracker.set_params(call.values, call.namespace)
        elif isinstance(call, Resumed):
            tracker.resumed(call.step)
        elif isinstance(call, Media):
            tracker.track_media(with_content(call, self._path, event))
        elif isinstance(call, Artifact):
            tracker.track_artifact(with_files(call, self._path, event))
        self._leave_if_forked()
        return call is not None

    def _leave_if_forked(self) -> None:
        """End a child that a call of the tracker has forked: it would deliver the rest a second time."""
        if os.getpid() != self._process:
            os._exit(0)

    def deliver_all(self, events: Sequence[Event], until: float) -> Delivered:
        """Deliver consecutive events, which are all metrics, as `deliver` does for each; stop when the
        tracker raises, or at this time of the monotonic clock."""
        events, points = self._points(events)
        if not events:
            return Delivered(0)
        first, taken, waits = events[0].seq, 0, False

        def given() -> Iterator[MetricPoint]:
            nonlocal taken, waits
            for point in points:
                taken += 1
                if point is not None:
                    waits = True
                    yield point
                    waits = False
                    self._leave_if_forked()
                if time.monotonic() > until:
                    return

        error, self.tracker.seq = None, first
        try:
            self.tracker.track_points(given())
        # An SDK may raise any BaseException, and each is a failure: `Delivery` records it.
        except BaseException as raised:
            error, at = raised, self.tracker.seq
            taken = min(max(at - first, 0), taken - 1) if isinstance(at, int) and taken else 0
        else:
            taken -= waits  # it stopped early, and may have taken the last point without tracking it
        self._ahead = {event.seq: point for event, point in zip(events[taken:], points[taken:], strict=True)}
        called = (point.seq for point in reversed(points[:taken]) if point is not None)
        return Delivered(taken, next(called, None) or 0, error)

    def _points(self, events: Sequence[Event]) -> tuple[Sequence[Event], Sequence[MetricPoint | None]]:
        """The first of these events, and their points; none if they are delivered after later ones."""
        past, ahead = self._past, self._ahead
        if events[0].seq in ahead:
            known = [event for event in events if event.seq in ahead]
            return known, [ahead[event.seq] for event in known]
        if events[0].seq != past.seq + 1:
            past.advance(max(events[0].seq, self._delivered + 1))
        if past.gaps:
            past.advance_to(events[0].seq)
        return (events, past.points(events)) if events[0].seq > past.seq else ((), ())

    def _call(self, event: Event) -> Call | None:
        if event.seq in self._ahead:
            return self._ahead[event.seq]
        past = self._past
        if event.seq != past.seq + 1 or event.seq <= self._delivered:
            past.advance(max(event.seq, self._delivered + 1))
        if event.seq not in past:
            if past.gaps:  # what was skipped may be in lines before this one
                past.advance_to(event.seq)
            return past.take(event)
        if self._again is None or event.seq in self._again:
            self._again = Past(self._path, self.tracker)
        self._again.advance_to(event.seq)
        call = self._again.take(event)
        if isinstance(call, Params) and self.tracker.takes_params == "merged":
            return self._past.params_of(event)  # later values win
        return call
