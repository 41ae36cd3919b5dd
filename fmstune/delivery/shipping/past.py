"""The calls of a tracker for the events of a journal, each in the context of those in earlier lines."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from fmstune.delivery.journal.reader import Event, JournalReader
from fmstune.delivery.shipping.media import changed, why_not
from fmstune.delivery.spans import EMPTY
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


class _Shape(NamedTuple):
    """What metrics of a stage and these names are called by the tracker; `renamed` if a name is another."""

    stage: str | None
    names: tuple[str, ...]
    renamed: bool


class Past:
    """The context that events create for later ones. `seq` is the highest number of those processed, which
    are all up to it but those in `gaps`: their lines are damaged, or come later."""

    def __init__(self, path: Path, tracker: Tracker) -> None:
        self.seq = 0
        self.gaps = EMPTY
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

    def __contains__(self, seq: int) -> bool:
        return seq <= self.seq and seq not in self.gaps

    def advance(self, seq: int) -> None:
        """Process the events before the first one with the number `seq` or a higher one."""
        if seq > self.seq + 1:
            self._read_until(lambda found: found >= seq)

    def advance_to(self, seq: int) -> None:
        """Process the events before the one with the number `seq`."""
        self._read_until(lambda found: found == seq)

    def _read_until(self, is_reached: Callable[[int], bool]) -> None:
        reader, most = JournalReader(self._path, self._offset), 2  # mostly, it is the next line
        while events := reader.read(most):
            most = 256
            for event, offset in events:
                if is_reached(event.seq):
                    return
                self._offset = offset
                if event.seq not in self:
                    self.take(event)

    def _note(self, seq: int) -> None:
        """Record that this event is processed."""
        if not self.seq and seq > 1:
            self.seq = JournalReader(self._path).header.after
        if seq > self.seq + 1:
            self.gaps = self.gaps.with_span(self.seq + 1, seq - 1)
        elif seq <= self.seq:
            self.gaps = self.gaps.without(seq)
        self.seq = max(seq, self.seq)

    def take(self, event: Event) -> Call | None:
        """The call for the next event in order."""
        if event.kind == "metrics":
            return self._point(event)
        self._note(event.seq)
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
        self._note(event.seq)
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
