"""Convert events of the journal to calls of one tracker, each in the context of the earlier ones.

A call can depend on earlier events: which value of a metric at its step it is, what is known of a namespace
of params, what a name is called there. So each event is processed once, in the journal's order, including
those that another process has delivered: a new process reads them from the journal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from fmstune.delivery.journal.reader import Event, JournalReader
from fmstune.delivery.shipping.media import changed, why_not, with_content, with_files
from fmstune.trackers.base import Tracker
from fmstune.trackers.records import Artifact, Limits, Media, MediaKind, MetricPoint, Table, merged
from fmstune.trackers.values.normalise import Normaliser
from fmstune.trackers.values.occurrences import Occurrences


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


class HandOver:
    """Deliver the events of the journal at `path` to a tracker that already has the first `delivered`."""

    def __init__(self, path: Path, tracker: Tracker, delivered: int, adapted: tuple[str, ...] = ()) -> None:
        """`adapted` is what the tracker reported in an earlier process."""
        self.tracker = tracker
        self._before = adapted
        self._path = path
        self._delivered = delivered
        self._past = _Past(path, tracker)
        self._again: _Past | None = None  # for an event that is delivered after later ones
        self._last: tuple[int, Call | None] = (0, None)  # an event may be tried several times in a row

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

    def give(self, event: Event) -> bool:
        """Deliver metrics, a table or params to the tracker, adapted to its limits; the caller handles a
        status. Returns whether the tracker was called. Raises what the tracker raises."""
        if event.seq != self._last[0]:
            self._last = (event.seq, self._call(event))
        call, tracker = self._last[1], self.tracker
        tracker.seq, tracker.step = event.seq, getattr(call, "step", None)
        tracker.event_time = event.time
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
        return call is not None

    def _call(self, event: Event) -> Call | None:
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
        self.seq = event.seq
        if event.kind == "metrics":
            return self._point(event)
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
        adapt = self._normaliser
        stage, step = adapt.stage(event.stage), adapt.step(event.step)
        values = adapt.metrics(event.values, stage)
        count = self._counts.count
        repeats = {name: before for name in values if (before := count((stage, name), step))}
        where = (stage, step, adapt.epoch(event.epoch), event.time, event.seq)
        return MetricPoint(values, *where, repeats) if values else None

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
