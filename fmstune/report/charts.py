"""The data of charts: a chart for each requested metric, with a line for each run."""

from __future__ import annotations

import bisect
import fnmatch
import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fmstune.config.check.suggest import hint
from fmstune.errors import ConfigError
from fmstune.report.columns import Numbers
from fmstune.report.curves import Curve, Point, TrackedRun, is_finite
from fmstune.report.replay import as_step
from fmstune.text import listed, shown

XAxis = Literal["step", "time", "tokens"]
_WORDS = {"step": "step", "time": "seconds", "tokens": "tokens"}
_AT_ONCE = 8192
TOKENS = "train/num_tokens"
"""The number of tokens that a run has seen by a step."""


@dataclass(frozen=True, slots=True)
class Line:
    """A run's finite values, sorted by x. `left_out` counts values that cannot be drawn: non-finite ones,
    strings, and those without a step."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Chart:
    """A metric in one or more runs. `x` is the label of the x-axis."""

    key: str
    x: str
    lines: Sequence[Line]

    def to_json(self) -> dict[str, Any]:
        """The chart as JSON-compatible values."""
        lines = [
            {
                "label": line.label,
                "xs": [as_step(float(x)) if self.x == _WORDS["step"] else x for x in line.xs],
                "ys": list(line.ys),
            }
            | {"left_out": line.left_out}
            for line in self.lines
        ]
        return {"key": self.key, "x": self.x, "lines": lines}


def charts(
    runs: Sequence[TrackedRun], patterns: Sequence[str], *, x: XAxis = "step", smoothing: float = 0.0
) -> list[Chart]:
    """Return a chart for each metric that matches a pattern: `eval/*`, or a name in any stage, such as
    `loss`.

    With `x` = `time`, x is the seconds since the start of the run; with `tokens`, the number of tokens seen.
    `smoothing` is between 0 and 1, as in TensorBoard. Raises `ConfigError` if no run has a matching metric,
    or none has counted its tokens.
    """
    keys = dict.fromkeys(curve.key for run in runs for curve in run.curves)
    chosen: dict[str, None] = {}
    for pattern in patterns:
        named = [key for key in keys if _is_named(key, pattern)]
        if not named:
            raise ConfigError(
                f"no run here has the metric {shown(pattern)}."
                + (
                    hint(pattern, [*keys, *(key.rpartition("/")[2] for key in keys)])
                    or f" Available: {listed(sorted(keys))}."
                )
            )
        chosen |= dict.fromkeys(named)
    seen = {id(run): tokens_by_step(run) for run in runs} if x == "tokens" else {}
    if x == "tokens" and not any(steps for steps, _ in seen.values()):
        raise ConfigError(f"no run here has counted its tokens ({TOKENS}); use --x step or --x time.")
    return [
        Chart(
            key,
            _WORDS[x],
            [
                _line(run, curve, x, smoothing, seen.get(id(run), ([], [])))
                for run in runs
                for curve in _of(run, key)
            ],
        )
        for key in chosen
    ]


Seen = tuple[Sequence[float], Sequence[float]]
"""Steps, and the number of tokens that a run had seen by each."""


def tokens_by_step(run: TrackedRun) -> Seen:
    """The number of tokens that a run had seen by each step that logged it, starting at 0; empty if it did
    not count them."""
    for curve in _of(run, TOKENS):
        steps, _, tokens = curve.finite()
        if steps:
            begin = [0.0] if steps[0] > 0 else []
            return [*begin, *steps], [*begin, *tokens]
    return [], []


def tokens_at(step: float, seen: Seen) -> float | None:
    """The number of tokens seen by a step, interpolated linearly; `None` after the last logged step."""
    steps, tokens = seen
    at = bisect.bisect_left(steps, step)
    if at >= len(steps):
        return None
    if steps[at] == step or at == 0:
        return tokens[at] if steps[at] == step else None
    share = (step - steps[at - 1]) / (steps[at] - steps[at - 1])
    return tokens[at - 1] + share * (tokens[at] - tokens[at - 1])


def smoothed(values: Iterable[float], smoothing: float) -> Iterator[float]:
    """The exponential moving average of values, with bias correction for the first ones."""
    average = weight = 0.0
    for value in values:
        average = smoothing * average + (1 - smoothing) * value
        weight = smoothing * weight + (1 - smoothing)
        yield average / weight


def _smoothed(values: Numbers, smoothing: float) -> Numbers:
    found, averages = values.sibling(), smoothed(values, smoothing)
    while block := array("d", itertools.islice(averages, _AT_ONCE)):
        found.extend(block)
    return found


def _is_named(key: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(key, pattern) or (
        "/" not in pattern and fnmatch.fnmatchcase(key.rpartition("/")[2], pattern)
    )


def _of(run: TrackedRun, key: str) -> Iterator[Curve]:
    return (curve for curve in run.curves if curve.key == key)


def _line(run: TrackedRun, curve: Curve, x: XAxis, smoothing: float, seen: Seen) -> Line:
    if x == "step" and (found := curve.plain()) is not None:  # flat memory for millions
        steps, values = found
        return Line(str(run.directory), steps, _smoothed(values, smoothing) if smoothing else values)
    drawn = [
        (at, float(point.value))
        for point in curve.points()
        if (at := _x(point, run, x, seen)) is not None and is_finite(point.value)
    ]
    drawn.sort(key=lambda pair: pair[0])  # steps that were logged again are out of order
    xs, ys = [at for at, _ in drawn], [value for _, value in drawn]
    left_out = sum(1 for _ in curve.points()) - len(drawn)
    return Line(str(run.directory), xs, list(smoothed(ys, smoothing)) if smoothing else ys, left_out)


def _x(point: Point, run: TrackedRun, x: XAxis, seen: Seen) -> float | None:
    if x == "tokens":
        return None if point.step is None else tokens_at(point.step, seen)
    return point.step if x == "step" else point.time - run.replay.header.time
