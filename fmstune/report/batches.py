"""Read lines of a journal into columns: metrics that were logged together, with a column for each name.

This reads journals of ten million lines, a few thousand lines at a time. Any other line is returned as an
event, in order, parsed by `JournalReader`'s parser.
"""

from __future__ import annotations

import itertools
import math
import operator
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from fmstune.delivery.journal.encoding import CHECKSUM, KEYS, is_intact
from fmstune.delivery.journal.events import Later, later
from fmstune.delivery.journal.reader import Event, parse

_EXACT, _LONG = 2**53, float(2**63)
_NUMBERS, _OR_NOTHING = frozenset({int, float}), frozenset({int, float, type(None)})

Raw = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """The values of a metric, all finite; `lowest` and `highest` are indices into them."""

    values: array[float]
    integers: bool
    lowest: int
    highest: int
    last: int | float


@dataclass(frozen=True, slots=True)
class Logged:
    """Metrics of a stage that were repeatedly logged together. A missing step or epoch is NaN; `increasing`
    means that each step is larger than the one before."""

    stage: str | None
    steps: array[float]
    epochs: array[float]
    times: array[float]
    increasing: bool
    columns: Mapping[str, Column]


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive metrics in the journal. No metric is in two of `logged`. `seqs` are their sequence numbers;
    `step` is the last step that is not missing."""

    logged: Sequence[Logged]
    seqs: Sequence[int]
    began: float
    ended: float
    step: int | float | None


def batches(lines: Sequence[bytes], after: int = 0) -> Iterator[Batch | Event | Later | None]:
    """Parse lines; `None` stands for a line without an event. A batch has increasing
    numbers, after `after` and those of earlier lines: a journal may have lines twice."""
    waiting: list[bytes] = []
    raws: list[Raw] = []
    for line, raw in zip(lines, _loaded(lines), strict=True):
        if raw is not None and _is_plain(raw):
            waiting.append(line)
            raws.append(raw)
            continue
        if raws:
            for found in _batch(waiting, raws, after):
                if found is not None:
                    after = max(after, found.seqs[-1] if isinstance(found, Batch) else found.seq)
                yield found
            waiting, raws = [], []
        if line.strip():
            event = parse(line) or later(line)
            after = after if event is None else max(after, event.seq)
            yield event
    if raws:
        yield from _batch(waiting, raws, after)


def _loaded(lines: Sequence[bytes]) -> list[Any]:
    try:
        if all(map(is_intact, lines)):
            return list(map(orjson.loads, lines))
    except ValueError:
        pass
    return [_load(line) for line in lines]


def _load(line: bytes) -> Any:
    try:
        return orjson.loads(line) if is_intact(line) else None
    except ValueError:  # `json` may still read it
        return None


def _is_plain(raw: Any) -> bool:
    try:
        return (
            len(raw) == KEYS + (CHECKSUM in raw) and raw["kind"] == "metrics" and type(raw["values"]) is dict
        )
    except (TypeError, KeyError):
        return False


def _batch(lines: Sequence[bytes], raws: Sequence[Raw], after: int) -> Iterator[Batch | Event | None]:
    found = _columns(raws)
    if found is not None and _increase(found.seqs, after):
        yield found
    else:
        yield from map(parse, lines)


def _increase(seqs: Sequence[int], after: int) -> bool:
    return seqs[0] > after and all(map(operator.lt, seqs, itertools.islice(seqs, 1, None)))


def _columns(raws: Sequence[Raw]) -> Batch | None:
    """The metrics as columns; `None` if columns cannot represent the lines exactly."""
    groups: dict[tuple[Any, ...], list[Raw]] = {}
    try:
        for raw in raws:
            key = (raw["stage"], *raw["values"])
            group = groups.get(key)
            if group is None:
                groups[key] = [raw]
            else:
                group.append(raw)
        seqs, steps = [raw["seq"] for raw in raws], [raw["step"] for raw in raws]
        names = [(key[0], name) for key in groups for name in key[1:]]
        if len(set(names)) < len(names) or set(map(type, seqs)) != {int} or min(seqs) < 1:
            return None
        logged = [_logged(key, group) for key, group in groups.items()]
    except (TypeError, KeyError, OverflowError):
        return None
    if None in logged:
        return None
    step = next((each for each in reversed(steps) if each is not None), None)
    began, ended = float(raws[0]["time"]), float(raws[-1]["time"])
    return Batch([each for each in logged if each is not None], seqs, began, ended, step)


def _logged(key: tuple[Any, ...], group: Sequence[Raw]) -> Logged | None:
    stage, names = key[0], key[1:]
    if not (stage is None or type(stage) is str):
        return None
    times = [raw["time"] for raw in group]
    steps = _numbers([raw["step"] for raw in group], _EXACT)
    epochs = _numbers([raw["epoch"] for raw in group], _LONG)
    if not _NUMBERS.issuperset(map(type, times)) or steps is None or epochs is None:
        return None
    columns = dict[str, Column]()
    for name, values in zip(names, zip(*(raw["values"].values() for raw in group), strict=True), strict=True):
        column = _column(values)
        if column is None:
            return None
        columns[name] = column
    increasing = all(map(operator.lt, steps, itertools.islice(steps, 1, None))) and steps[0] == steps[0]
    return Logged(stage, steps, epochs, array("d", times), increasing, columns)


def _numbers(found: list[Any], below: float) -> array[float] | None:
    kinds = set(map(type, found))
    if not _OR_NOTHING.issuperset(kinds):
        return None
    there = [each for each in found if each is not None] if type(None) in kinds else found
    if there and not (-below < min(there) and max(there) < below):
        return None
    return array("d", found if there is found else [math.nan if each is None else each for each in found])


def _column(values: tuple[Any, ...]) -> Column | None:
    kinds = set(map(type, values))
    if not _NUMBERS.issuperset(kinds):
        return None
    lowest, highest = min(values), max(values)
    if float in kinds:
        # A larger float may be an integer in the file, which `json` reads exactly. JSON has no other
        # non-finite numbers.
        if not (lowest > -_LONG and highest < _LONG):
            return None
        whole = [each for each in values if type(each) is int] if len(kinds) > 1 else []
    else:
        whole = [lowest, highest]
    if whole and not (min(whole) >= -_EXACT and max(whole) <= _EXACT):
        return None
    places = values.index(lowest), values.index(highest)
    return Column(array("d", values), float not in kinds, *places, values[-1])
