"""Convert events of the journal to calls of one tracker, each in the context of the earlier ones.

A call can depend on earlier events: which value of a metric at its step it is, what is known of a namespace
of params, what a name is called there. So each event is processed once, in the journal's order, including
those that another process has delivered: a new process reads them from the journal.
"""

from __future__ import annotations

import itertools
import operator
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from fmstune.delivery.journal.reader import Event, JournalReader
from fmstune.delivery.shipping.media import changed, why_not, with_content, with_files
from fmstune.trackers.base import Tracker
from fmstune.trackers.records import Artifact, Limits, Media, MediaKind, MetricPoint, Table, merged
from fmstune.trackers.values.normalise import Normaliser
from fmstune.trackers.values.occurrences import Occurrences

_MOST_SHAPES = 1000
_VALUES = operator.methodcaller("values")


@dataclass(frozen=True, slots=True)
class Params:
    """A call of `set_params`."""

    values: Mapping[str, Any]
    namespace: str | None


@dataclass(frozen=True, slots=True)
class Resumed:
    """A call of `resumed`."""

    step: int


Call = MetricPoint | Table | Params | Resumed | Media | Artifact


class Delivered(NamedTuple):
    """How many of the events were delivered, and the number of the last one for which the tracker was called;
    `error` is what was raised for the next one."""

    events: int
    called: int = 0
    error: BaseException | None = None


class _Shape(NamedTuple):
    """What metrics of a stage and these names are called by the tracker; `renamed` if a name is another."""

    stage: str | None
    names: tuple[str, ...]
    renamed: bool


class HandOver:
    """Deliver the events of the journal at `path` to a tracker that already has the first `delivered`."""

    def __init__(self, path: Path, tracker: Tracker, delivered: int, adapted: tuple[str, ...] = ()) -> None:
        """`adapted` is what the tracker reported in an earlier process."""
        self.tracker = tracker
        self._process = os.getpid()
        self._before = adapted
        self._path = path
        self._delivered = delivered
        self._past = _Past(path, tracker)
        self._again: _Past | None = None  # for an event that is delivered after later ones
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

    def deliver(self, event: Event) -> bool:
        """Deliver metrics, a table or params to the tracker, adapted to its limits; the caller handles a
        status. Returns whether the tracker was called. Raises what the tracker raises."""
        if event.seq != self._last[0]:
            self._last = (event.seq, self._call(event))
        call, tracker = self._last[1], self.tracker
        tracker.seq, tracker.step, tracker.event_time = event.seq, getattr(call, "step", None), event.time
        if isinstance(call, MetricPoint):
            tracker.track_point(call)
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
        return (events, past.points(events)) if events[0].seq > past.seq else ((), ())

    def _call(self, event: Event) -> Call | None:
        if event.seq in self._ahead:
            return self._ahead[event.seq]
        past = self._past
        if event.seq != past.seq + 1 or event.seq <= self._delivered:
            past.advance(max(event.seq, self._delivered + 1))
        if event.seq > past.seq:
            return past.take(event)
        if self._again is None or event.seq <= self._again.seq:
            self._again = _Past(self._path, self.tracker)
        self._again.advance(event.seq)
        call = self._again.take(event)
        if isinstance(call, Params) and self.tracker.takes_params == "merged":
            return self._past.params_of(event)  # later values win
        return call


class _Past:
    """The context that the events up to the number `seq` create for later ones."""

    def __init__(self, path: Path, tracker: Tracker) -> None:
        self.seq = 0
        self._path = path
        self._offset = 0
        self._limits: Limits = tracker.limits
        self._media_kinds, self._takes_artifacts = tracker.media, tracker.takes_artifacts
        self._merges = tracker.takes_params == "merged"
        self._normaliser = Normaliser(tracker.limits)
        self._counts = Occurrences()
        self._params: dict[str, dict[str, Any]] = {}
        self._shapes: dict[tuple[str | None, ...], _Shape] = {}

    @property
    def changes(self) -> tuple[str, ...]:
        return self._normaliser.changes

    def advance(self, seq: int) -> None:
        """Process the events before the number `seq` that have not been processed."""
        if seq <= self.seq + 1:
            return
        reader = JournalReader(self._path, self._offset)
        while events := reader.read():
            for event, offset in events:
                if event.seq >= seq:
                    return
                self._offset = offset
                if event.seq > self.seq:
                    self.take(event)

    def take(self, event: Event) -> Call | None:
        """The call for the next event in order."""
        if event.kind == "metrics":
            return self._point(event)
        self.seq = event.seq
        adapt = self._normaliser
        if event.kind == "resume":
            step = adapt.step(event.step)
            if step is not None:
                self._counts.resume(step)
                return Resumed(step)
        elif event.kind == "table":
            return self._table(event)
        elif event.kind in ("text", "image", "histogram"):
            return self._media(event)
        elif event.kind == "artifact":
            return self._artifact(event)
        elif event.kind == "params":
            self._merge(event)
            return self.params_of(event) if self._merges else self._params_call(event, event.values)
        return None

    def params_of(self, event: Event) -> Params:
        """All that is known of the event's namespace."""
        return self._params_call(event, self._params.get(event.name or "params", {}))

    def _params_call(self, event: Event, values: Mapping[str, Any]) -> Params:
        namespace = self._normaliser.namespace(event.name)
        return Params(self._normaliser.params(values, namespace or "params"), namespace)

    def _point(self, event: Event) -> MetricPoint | None:
        self.seq = event.seq
        adapt = self._normaliser
        stage, step = adapt.stage(event.stage), adapt.step(event.step)
        values = adapt.metrics(event.values, stage)
        if not values:
            return None
        repeats = self._counts.count_all(stage, tuple(values), step)
        return MetricPoint(values, stage, step, adapt.epoch(event.epoch), event.time, event.seq, repeats)

    def points(self, events: Sequence[Event]) -> list[MetricPoint | None]:
        """The points of consecutive metrics, each as `take` returns it, in a fifth of the time if all values
        are numbers that any tracker stores unchanged."""
        values = [event.values for event in events]
        if not self._normaliser.keeps([*itertools.chain.from_iterable(map(_VALUES, values))]):
            return list(map(self._point, events))
        found = list[MetricPoint | None]()
        for key, alike in _alike(events):
            shape = self._shapes.get(key)
            if shape is None:
                found.append(self._point(alike[0]))
                shape = self._note_shape(alike.pop(0), key)
            if alike:
                found += map(self._point, alike) if shape is None else self._points_of(alike, shape)
        return found

    def _points_of(self, events: Sequence[Event], shape: _Shape) -> Iterator[MetricPoint]:
        adapt = self._normaliser
        columns: Iterable[Sequence[Any]] = zip(*events, strict=True)
        seqs, times, _, _, steps, epochs, _, values, *_ = columns
        steps, epochs = adapt.steps(steps), adapt.epochs(epochs)
        if shape.renamed:
            values = [dict(zip(shape.names, each.values(), strict=True)) for each in values]
        repeats = self._counts.count_each(shape.stage, shape.names, steps)
        self.seq = seqs[-1]
        stages = itertools.repeat(shape.stage, len(events))
        rows = zip(values, stages, steps, epochs, times, seqs, repeats, strict=True)
        return map(tuple.__new__, itertools.repeat(MetricPoint), rows)

    def _note_shape(self, event: Event, key: tuple[str | None, ...]) -> _Shape | None:
        if not event.values or len(self._shapes) >= _MOST_SHAPES:
            return None
        stage = self._normaliser.stage(event.stage)
        names = tuple(self._normaliser.metrics(event.values, stage))
        self._shapes[key] = shape = _Shape(stage, names, names != tuple(event.values))
        return shape

    def _table(self, event: Event) -> Table:
        adapt = self._normaliser
        stage, step = adapt.stage(event.stage), adapt.step(event.step)
        name = adapt.table(event.name, stage)
        count = self._counts.count(("a table", stage, name), step or 0)
        where = (stage, step, adapt.epoch(event.epoch), event.time, event.seq)
        return Table(name, adapt.rows(event.rows, event.name or "table"), *where, count)

    def _media(self, event: Event) -> Media | None:
        adapt, kind = self._normaliser, cast(MediaKind, event.kind)
        if why := why_not(event, self._media_kinds):
            adapt.note(why, "lost")
            return None
        for change in changed(event, self._limits):
            adapt.note(change, "lost")
        stage, step = adapt.stage(event.stage), adapt.step(event.step)
        name = adapt.media(kind, event.name, stage)
        count = self._counts.count((kind, stage, name), step or 0)
        return Media(kind, name, stage=stage, step=step, time=event.time, seq=event.seq, repeats=count)

    def _artifact(self, event: Event) -> Artifact | None:
        adapt = self._normaliser
        if why := why_not(event, {"artifact"} if self._takes_artifacts else ()):
            adapt.note(why, "lost")
            return None
        name, kind = adapt.media("artifact", event.name), str(event.item.get("type", "file"))
        where = self._path.parent
        return Artifact(name, kind, where, step=adapt.step(event.step), time=event.time, seq=event.seq)

    def _merge(self, event: Event) -> None:
        namespace = event.name or "params"
        held = self._params.get(namespace, {})
        given = event.values if self._limits.params_change else self._without_changes(held, event.values, "")
        self._params[namespace] = merged(held, given)

    def _without_changes(
        self, held: Mapping[str, Any], given: Mapping[str, Any], prefix: str
    ) -> dict[str, Any]:
        """The given params, with the held values where they differ."""
        found: dict[str, Any] = {}
        for key, value in given.items():
            before = held.get(key, value)
            if isinstance(before, Mapping) and isinstance(value, Mapping):
                value = self._without_changes(before, value, f"{prefix}{key}.")
            elif before != value:
                self._normaliser.note(
                    f"param {prefix}{key} was given another value; the first one is kept", "lost"
                )
                value = before
            found[key] = value
        return found


def _alike(events: Sequence[Event]) -> Iterator[tuple[tuple[str | None, ...], list[Event]]]:
    """Consecutive events with the same stage and names, in the same order."""
    keys = [(event.stage, *event.values) for event in events]
    if keys.count(keys[0]) == len(keys):  # nearly always
        yield keys[0], list(events)
        return
    for key, pairs in itertools.groupby(zip(keys, events, strict=True), operator.itemgetter(0)):
        yield key, [event for _, event in pairs]
