"""All that a run has tracked: the points of each metric, and its tables. Of a step that a resumed run has
tracked again, those of the last time count."""

from __future__ import annotations

import bisect
import itertools
import math
import operator
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmstune.config.paths.runs import holds_run, no_such_run
from fmstune.delivery.journal.reader import Event, JournalError
from fmstune.errors import ConfigError
from fmstune.report.replay import Name, Replay, replay, step_of
from fmstune.report.summary import joined, journal_of
from fmstune.text import shown_path

_EXACT = 2**53
_NO_STEP = math.nan


@dataclass(frozen=True, slots=True)
class Point:
    """One value of a metric. `step` and `epoch` are `None` where it has none; `time` is Unix seconds."""

    step: int | float | None
    epoch: float | None
    time: float
    value: Any


@dataclass(frozen=True, slots=True)
class Figures:
    """What a curve comes to. `points` are those that count, of the `tracked` values; `lowest` and `highest`
    are of its numbers but NaN, of which there are none in a metric of texts. `not_finite` counts NaN and
    infinite values."""

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
        """The stage and the name as one."""
        return joined(self.stage, self.name)


@dataclass(slots=True)
class Curve:
    """The values of a metric, in the order in which they were tracked. A journal may have millions: they are
    numbers in arrays, and the few that no float holds (texts, long integers) in a mapping."""

    stage: str | None
    name: str
    _steps: array[float] = field(default_factory=lambda: array("d"))
    _epochs: array[float] = field(default_factory=lambda: array("d"))
    _times: array[float] = field(default_factory=lambda: array("d"))
    _values: array[float] = field(default_factory=lambda: array("d"))
    _others: dict[int, Any] = field(default_factory=dict)
    _integers: bool = True
    _resumed: list[int] = field(default_factory=list)
    """How many values there were at each resumption of the run."""

    @property
    def key(self) -> str:
        """The stage and the name as one."""
        return joined(self.stage, self.name)

    def add(self, step: int | float | None, epoch: Any, time: float, value: Any) -> None:
        """Add the next value."""
        if type(value) is float:
            self._integers = False
        elif type(value) is not int or abs(value) > _EXACT:
            self._others[len(self._values)] = value
            value = math.nan
        self._steps.append(_NO_STEP if step is None else step)
        self._epochs.append(epoch if type(epoch) in (int, float) else math.nan)
        self._times.append(time)
        self._values.append(value)

    def resume(self) -> None:
        """What is added from here on is of a further process of the run."""
        self._resumed.append(len(self._values))

    @property
    def tracked(self) -> int:
        """How many values were tracked."""
        return len(self._values)

    def total(self) -> float:
        """The sum of all numbers that were tracked, those that were tracked again included."""
        return math.fsum(value for value in self._values if math.isfinite(value))

    def by_process(self) -> Iterator[list[tuple[float, float]]]:
        """The time and the value of each number that a process of the run has tracked, for each of them."""
        for begin, end in itertools.pairwise([0, *self._resumed, len(self._values)]):
            pairs = zip(self._times[begin:end], self._values[begin:end], strict=True)
            yield [(time, value) for time, value in pairs if math.isfinite(value)]

    def points(self) -> Iterator[Point]:
        """The values of each step, by step, from the last process of the run that has any there; then those
        without a step, in their order."""
        for at in self._newest():
            yield self._point(at)

    def finite(self) -> tuple[Sequence[float], Sequence[float], Sequence[float]]:
        """Steps, times and values of the points that have a step and a finite number, by step."""
        newest, steps, values = self._newest(), self._steps, self._values
        if isinstance(newest, range) and not self._others and all(map(math.isfinite, values)):
            return steps, self._times, values
        kept = [at for at in newest if steps[at] == steps[at] and is_finite(self._others.get(at, values[at]))]
        found = [float(self._others.get(at, values[at])) for at in kept]
        return [steps[at] for at in kept], [self._times[at] for at in kept], found

    def figures(self) -> Figures:
        """What it comes to."""
        newest = self._newest()
        values = self._values
        if isinstance(newest, range) and not self._others and all(map(math.isfinite, values)):
            return self._figures(newest, values.index(min(values)), values.index(max(values)), 0)
        exact = {at: value for at, value in self._others.items() if type(value) is int}
        numbers = [at for at in newest if at in exact or values[at] == values[at]]
        others = [at for at in newest if at in self._others and at not in exact]
        infinite = sum(1 for at in numbers if at not in exact and math.isinf(values[at]))
        lowest = min(numbers, key=lambda at: exact.get(at, values[at]), default=None)
        highest = max(numbers, key=lambda at: exact.get(at, values[at]), default=None)
        return self._figures(newest, lowest, highest, len(newest) - len(numbers) - len(others) + infinite)

    def _figures(
        self, newest: Sequence[int], least: int | None, most: int | None, not_finite: int
    ) -> Figures:
        last, first = self.last, self._point(newest[0])
        lowest = None if least is None else self._point(least)
        highest = None if most is None else self._point(most)
        return Figures(
            stage=self.stage,
            name=self.name,
            points=len(newest),
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
        """Those of the points that are numbers, NaN and infinite ones included."""
        return (point for point in self.points() if not isinstance(point.value, (str, bool, type(None))))

    @property
    def last(self) -> Point:
        """The value that was tracked last."""
        return self._point(len(self._values) - 1)

    def _newest(self) -> Sequence[int]:
        steps = self._steps
        if all(map(operator.lt, steps, itertools.islice(steps, 1, None))) and steps[0] == steps[0]:
            return range(len(steps))  # of a run that was never resumed, as nearly all are
        stepless = [at for at, step in enumerate(steps) if step != step]
        newest = {step: at for at, step in enumerate(steps) if step == step}
        if len(newest) + len(stepless) == len(steps):
            return [newest[step] for step in sorted(newest)] + stepless
        # Where the process begins that has tracked the last value of a step.
        begun = {step: self._process(at) for step, at in newest.items()}
        kept = [at for at, step in enumerate(steps) if step == step and at >= begun[step]]
        return sorted(kept, key=steps.__getitem__) + stepless

    def _process(self, at: int) -> int:
        before = bisect.bisect_right(self._resumed, at)
        return self._resumed[before - 1] if before else 0

    def _point(self, at: int) -> Point:
        step, epoch, value = self._steps[at], self._epochs[at], self._values[at]
        return Point(
            None if step != step else int(step) if step.is_integer() else step,
            None if epoch != epoch else epoch,
            self._times[at],
            self._others[at] if at in self._others else int(value) if self._integers else value,
        )


def is_finite(value: object) -> bool:
    """Whether a value is a number that can be drawn."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


@dataclass(slots=True)
class TrackedRun:
    """A run with its curves, in the order in which they began, and its tables, texts, images, histograms and
    artifacts: the newest of a name at a step."""

    directory: Path
    replay: Replay
    curves: list[Curve]
    tables: list[Event]
    media: list[Event]


def read_run(directory: Path) -> TrackedRun:
    """Read all that the run in a directory has tracked. Raises `ConfigError` when there is no run in it, and
    `JournalError` when its journal is none, or cannot be read."""
    require_run(directory)
    curves: dict[Name, Curve] = {}
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
                    curve = curves[event.stage, name] = Curve(event.stage, name)
                curve.add(step, event.epoch, event.time, value)
        elif event.kind == "table":
            step = step_of(event)
            tables[event.stage, event.name, event.seq if step is None else ("step", step)] = event
        elif event.kind in ("text", "image", "histogram", "artifact"):
            at = step_of(event)
            where = event.seq if at is None else ("step", at)
            media[event.kind, event.stage, event.name, where] = event

    journal = journal_of(directory)
    try:
        run = replay(journal, add)
    except OSError as error:
        raise JournalError(f"{journal} cannot be read: {error.strerror or error}.") from error
    return TrackedRun(directory, run, list(curves.values()), list(tables.values()), list(media.values()))


def require_run(directory: Path) -> None:
    """Raise `ConfigError`, which names the nearest run, when there is no run in a directory."""
    if not directory.exists():
        raise ConfigError(no_such_run(directory))
    if not holds_run(directory):
        raise ConfigError(f"{shown_path(directory)} holds no run: there is no journal in it.")
