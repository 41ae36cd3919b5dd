"""Read a run's tracked data: the points of each metric, and its tables. For steps that a resumed run tracked
again, the newest values are used."""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any

from fmstune.access import reason
from fmstune.config.paths.runs import holds_run, no_such_run
from fmstune.delivery.journal.reader import Event, JournalError
from fmstune.errors import ConfigError
from fmstune.report.batches import Batch, Column, Logged
from fmstune.report.columns import Numbers, Room
from fmstune.report.newest import newest
from fmstune.report.replay import Name, Replay, as_step, replay, step_of
from fmstune.report.summary import joined, journal_of
from fmstune.text import shown_path

_EXACT = 2**53
_NO_STEP = math.nan

Block = tuple["array[float]", ...]
"""Steps, epochs, times and values of points."""


@dataclass(frozen=True, slots=True)
class Point:
    """A value of a metric. `step` and `epoch` are `None` if missing; `time` is in Unix seconds."""

    step: int | float | None
    epoch: float | None
    time: float
    value: Any


@dataclass(frozen=True, slots=True)
class Figures:
    """Summary figures of a curve. `points` is the number of values used, out of the `tracked` ones; `lowest`
    and `highest` ignore NaN and strings. `not_finite` counts NaN and infinite values."""

    stage: str | None
    name: str
    points: int
    tracked: int
    first: Any
    last: Any
    last_step: int | float | None
    lowest: int | float | None = None
    lowest_step: int | float | None = None
    highest: int | float | None = None
    highest_step: int | float | None = None
    not_finite: int = 0

    @property
    def key(self) -> str:
        """The stage and the name, joined."""
        return joined(self.stage, self.name)


@dataclass(slots=True)
class Curve:
    """The values of a metric, in the order of tracking. There may be millions, so numbers are in arrays, and
    the few that a float cannot hold (strings, long integers) in a mapping."""

    stage: str | None
    name: str
    room: InitVar[Room | None] = None
    _steps: Numbers = field(init=False)
    _epochs: Numbers = field(init=False)
    _times: Numbers = field(init=False)
    _values: Numbers = field(init=False)
    _others: dict[int, Any] = field(default_factory=dict)
    _integers: bool = True
    _resumed: list[int] = field(default_factory=list)
    """The number of values at each resume of the run."""
    _plain: bool = True
    """Whether all values are finite numbers and the steps increase, as in nearly all runs that were never
    resumed; `_lowest` and `_highest` are then these values and their indices."""
    _lowest: tuple[float, int] = (math.inf, 0)
    _highest: tuple[float, int] = (-math.inf, 0)
    _last_step: float = -math.inf

    def __post_init__(self, room: Room | None) -> None:
        room = room or Room()
        self._steps, self._epochs, self._times, self._values = (Numbers(room) for _ in range(4))

    @property
    def key(self) -> str:
        """The stage and the name, joined."""
        return joined(self.stage, self.name)

    def add(self, step: int | float | None, epoch: Any, time: float, value: Any) -> None:
        """Add the next value."""
        if type(value) is float:
            self._integers = False
        elif type(value) is not int or abs(value) > _EXACT:
            self._others[len(self._values)] = value
            value = math.nan
        step = _NO_STEP if step is None else step
        self._plain = self._plain and math.isfinite(value) and step > self._last_step
        if self._plain:
            self._note(step, value, value, len(self._values), len(self._values))
        self._steps.append(step)
        self._epochs.append(_as_float(epoch) if type(epoch) in (int, float) else math.nan)
        self._times.append(time)
        self._values.append(value)

    def extend(self, logged: Logged, column: Column) -> None:
        """Add the values of a column."""
        at = len(self._values)
        self._integers = self._integers and column.integers
        self._plain = self._plain and logged.increasing and logged.steps[0] > self._last_step
        if self._plain:
            lowest, highest = column.values[column.lowest], column.values[column.highest]
            self._note(logged.steps[-1], lowest, highest, at + column.lowest, at + column.highest)
        self._steps.extend(logged.steps)
        self._epochs.extend(logged.epochs)
        self._times.extend(logged.times)
        self._values.extend(column.values)

    def _note(self, step: float, lowest: float, highest: float, at_lowest: int, at_highest: int) -> None:
        self._last_step = step
        if lowest < self._lowest[0]:
            self._lowest = lowest, at_lowest
        if highest > self._highest[0]:
            self._highest = highest, at_highest

    def resume(self) -> None:
        """Mark the start of another process of the run."""
        self._resumed.append(len(self._values))

    @property
    def tracked(self) -> int:
        """The number of tracked values."""
        return len(self._values)

    def total(self) -> float:
        """The sum of all tracked numbers, including those tracked again."""
        return math.fsum(value for value in self._values if math.isfinite(value))

    def by_process(self) -> Iterator[list[tuple[float, float]]]:
        """For each process of the run, the time and value of each number that it tracked."""
        both = zip(self._times, self._values, strict=True)
        for begin, end in itertools.pairwise([0, *self._resumed, len(self._values)]):
            pairs = itertools.islice(both, end - begin)
            yield [(time, value) for time, value in pairs if math.isfinite(value)]

    def points(self) -> Iterator[Point]:
        """The values sorted by step, for each step from the last process that tracked it; then those without
        a step, in order."""
        if (blocks := self.plain_blocks()) is None:
            yield from map(self._point, self._newest())
            return
        for block in blocks:
            for step, epoch, time, value in zip(*block, strict=True):
                yield Point(
                    as_step(step),
                    None if epoch != epoch else epoch,
                    time,
                    int(value) if self._integers else value,
                )

    @property
    def integers(self) -> bool:
        """Whether all numbers are integers."""
        return self._integers

    @property
    def is_plain(self) -> bool:
        """Whether all values are finite numbers and the steps increase."""
        return self._plain

    def plain_blocks(self) -> Iterator[Block] | None:
        """The points of a plain curve, in blocks of some thousands; `None` for any other curve. A missing
        epoch is NaN."""
        columns = self._steps, self._epochs, self._times, self._values
        return zip(*(each.blocks() for each in columns), strict=True) if self._plain else None

    def plain(self) -> tuple[Numbers, Numbers] | None:
        """Steps and values of a plain curve, not all in memory; `None` for any other curve."""
        return (self._steps, self._values) if self._plain else None

    def finite(self) -> tuple[Sequence[float], Sequence[float], Sequence[float]]:
        """Steps, times and values of the points with a step and a finite value, sorted by step."""
        steps, times, values = self._steps.whole(), self._times.whole(), self._values.whole()
        if self._plain:
            return steps, times, values
        others = self._others
        kept = array("q")
        for at in self._newest():
            if steps[at] == steps[at] and is_finite(others.get(at, values[at])):
                kept.append(at)
        found = array("d", (float(others.get(at, values[at])) for at in kept))
        return array("d", map(steps.__getitem__, kept)), array("d", map(times.__getitem__, kept)), found

    def figures(self) -> Figures:
        """The summary figures."""
        if self._plain:
            return self._figures(range(len(self._values)), self._lowest[1], self._highest[1], 0)
        places, values = self._newest(), self._values.whole()
        exact = {at: value for at, value in self._others.items() if type(value) is int}
        numbers = [at for at in places if at in exact or values[at] == values[at]]
        others = [at for at in places if at in self._others and at not in exact]
        infinite = sum(1 for at in numbers if at not in exact and math.isinf(values[at]))
        lowest = min(numbers, key=lambda at: exact.get(at, values[at]), default=None)
        highest = max(numbers, key=lambda at: exact.get(at, values[at]), default=None)
        return self._figures(places, lowest, highest, len(places) - len(numbers) - len(others) + infinite)

    def _figures(
        self, places: Sequence[int], least: int | None, most: int | None, not_finite: int
    ) -> Figures:
        last, first = self.last, self._point(places[0])
        lowest = None if least is None else self._point(least)
        highest = None if most is None else self._point(most)
        return Figures(
            stage=self.stage,
            name=self.name,
            points=len(places),
            tracked=self.tracked,
            first=first.value,
            last=last.value,
            last_step=last.step,
            lowest=lowest.value if lowest else None,
            lowest_step=lowest.step if lowest else None,
            highest=highest.value if highest else None,
            highest_step=highest.step if highest else None,
            not_finite=not_finite,
        )

    def numbers(self) -> Iterator[Point]:
        """The points whose values are numbers, including NaN and infinite ones."""
        return (point for point in self.points() if not isinstance(point.value, (str, bool, type(None))))

    @property
    def last(self) -> Point:
        """The last tracked value."""
        return self._point(len(self._values) - 1)

    def _newest(self) -> Sequence[int]:
        return range(len(self._steps)) if self._plain else newest(self._steps.whole(), self._resumed)

    def _point(self, at: int) -> Point:
        step, epoch, value = self._steps[at], self._epochs[at], self._values[at]
        return Point(
            as_step(step),
            None if epoch != epoch else epoch,
            self._times[at],
            self._others[at] if at in self._others else int(value) if self._integers else value,
        )


def is_finite(value: object) -> bool:
    """Whether a value is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False


@dataclass(slots=True)
class TrackedRun:
    """A run with its curves, in the order of their first values, and its tables, texts, images, histograms
    and artifacts: the newest for each name and step."""

    directory: Path
    replay: Replay
    curves: list[Curve]
    tables: list[Event]
    media: list[Event]


def read_run(directory: Path) -> TrackedRun:
    """Read all tracked data of the run in a directory. Raises `ConfigError` if there is no run, and
    `JournalError` if its journal is invalid or cannot be read."""
    require_run(directory)
    curves: dict[Name, Curve] = {}
    room = Room()
    tables: dict[tuple[Any, ...], Event] = {}
    media: dict[tuple[Any, ...], Event] = {}

    def add(event: Event) -> None:
        if event.kind == "resume":
            for known in curves.values():
                known.resume()
        elif event.kind == "metrics":
            step = step_of(event)
            for name, value in event.values.items():
                curve = curves.get((event.stage, name))
                if curve is None:
                    curve = curves[event.stage, name] = Curve(event.stage, name, room)
                curve.add(step, event.epoch, event.time, value)
        elif event.kind == "table":
            step = step_of(event)
            tables[event.stage, event.name, event.seq if step is None else ("step", step)] = event
        elif event.kind in ("text", "image", "histogram", "artifact"):
            at = step_of(event)
            where = event.seq if at is None else ("step", at)
            media[event.kind, event.stage, event.name, where] = event

    def add_batch(batch: Batch) -> None:
        for each in batch.logged:
            for name, column in each.columns.items():
                curve = curves.get((each.stage, name))
                if curve is None:
                    curve = curves[each.stage, name] = Curve(each.stage, name, room)
                curve.extend(each, column)

    journal = journal_of(directory)
    try:
        run = replay(journal, add, add_batch)
    except OSError as error:
        raise JournalError(f"{journal} cannot be read: {reason(error, journal)}.") from error
    return TrackedRun(directory, run, list(curves.values()), list(tables.values()), list(media.values()))


def require_run(directory: Path) -> None:
    """Raise `ConfigError`, with the nearest run, if there is no run in a directory."""
    if not directory.exists():
        raise ConfigError(no_such_run(directory))
    if not holds_run(directory):
        raise ConfigError(f"{shown_path(directory)} is not a run: it has no journal.")


def _as_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:  # an integer too large for a float, in a line not written by fmstune
        return math.inf if number > 0 else -math.inf
