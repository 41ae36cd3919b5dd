"""Compare the data that a service stores for a run with the run's journal; report differences as
sentences."""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fmstune.delivery.journal.reader import Event
from fmstune.testing.findings import Stored
from fmstune.trackers.records import merged
from fmstune.trackers.values.normalise import as_text, flatten

MOST_SHOWN = 5

Points = dict[tuple[str, int | None], list[Any]]


def differences(
    events: Sequence[Event],
    stored: Stored,
    changes: Sequence[str],
    *,
    replaces: bool,
    repeats: int = 0,
    single: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> list[str]:
    """The values that are missing, different or duplicated; `changes`, the adaptations listed in the report,
    are accepted. With `replaces`, a step that is logged again after a resume replaces the earlier value. Up
    to `repeats` values may be duplicates. With `single`, the service has single precision. `extra` are
    expected params that are not tracked as such."""
    expected = points_of(events, replaces)
    if single:
        expected = {key: [as_single(value) for value in values] for key, values in expected.items()}
    found = [*_of_points(expected, stored.points, changes, repeats)]
    if stored.params is not None:
        found += _of_params({**params_of(events), **(extra or {})}, stored.params, changes)
    return found


def shortened(found: list[str]) -> list[str]:
    """The first differences, and the number of others."""
    more = len(found) - MOST_SHOWN
    return [*found[:MOST_SHOWN], f"And {more} more like these."] if more > 0 else found


def points_of(events: Iterable[Event], replaces: bool) -> Points:
    """The expected values of each metric at each step."""
    held: Points = {}
    logged: dict[tuple[str, int | None], int] = {}
    for event in events:
        if event.kind == "resume" and replaces:
            again = event.step or 0
            logged = {key: n for key, n in logged.items() if key[1] is None or key[1] <= again}
        for name, value in event.values.items() if event.kind == "metrics" else ():
            key = (f"{event.stage}/{name}" if event.stage else name, event.step)
            number = logged.get(key, 0)
            logged[key] = number + 1
            held.setdefault(key, [])[number : number + 1] = [value]
    return held


def as_single(value: Any) -> Any:
    """Round a number to single precision; one out of its range is unchanged."""
    if not isinstance(value, (int, float)) or not abs(value) < 3.4e38:
        return value
    return struct.unpack("f", struct.pack("f", value))[0]


def params_of(events: Iterable[Event]) -> dict[str, Any]:
    """The expected params of each namespace."""
    found: dict[str, Any] = {}
    for event in events:
        if event.kind == "params":
            name = event.name or "params"
            found[name] = merged(found.get(name, {}), event.values)
    return found


def is_named(key: str, changes: Iterable[str]) -> bool:
    """Whether the report lists a change to the metric, param or column with this name, or to its stage."""
    first, _, rest = key.partition("/")
    last = key.rpartition("/")[2]
    shown = {part if part.isprintable() else ascii(part)[1:-1] for part in (key, first, rest, last) if part}
    shown = {part if len(part) <= 80 else part[:79] + "…" for part in shown}
    return not last or any(
        re.search(rf"(^|[\s.]){re.escape(part)}([\s.]|$)", change) for part in shown for change in changes
    )


def comparable(value: Any) -> Any:
    """Normalise a value: services have a single number type, and three spellings of non-finite values."""
    if isinstance(value, (int, float)):
        return repr(float(value) + 0.0)  # -0.0 becomes 0.0
    words = {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}
    return words.get(value, value) if isinstance(value, str) else repr(value)


def _of_points(
    expected: Points, points: Sequence[tuple[str, int | None, Any]], changes: Sequence[str], repeats: int
) -> Iterable[str]:
    got: dict[str, Counter[tuple[int | None, Any]]] = {}
    for key, step, value in points:
        got.setdefault(key, Counter())[step, comparable(value)] += 1
    left = repeats
    for key in dict.fromkeys(key for key, _ in expected):
        if is_named(key, changes):
            continue
        there = got.get(key, Counter())
        # Values without a step come last: services number them, or use step 0.
        steps = sorted((step is None, step) for name, step in expected if name == key)
        for _, step in steps:
            for value in expected[key, step]:
                if not _takes_out(there, step, comparable(value)):
                    where = "" if step is None else f" at step {step}"
                    yield f"{key}{where} is missing: {value!r}"
        left -= (spare := sum(there.values()))
        if spare and left < 0:
            (step, value), _ = there.most_common(1)[0]
            yield f"{key} has {spare} values too many, such as {value} at step {step}"


def _takes_out(there: Counter[tuple[int | None, Any]], step: int | None, value: Any) -> bool:
    at = (step, value)
    if step is None:
        at = next((each for each, count in there.items() if count and each[1] == value), at)
    if not there[at]:
        return False
    there[at] -= 1
    return True


def _of_params(
    expected: Mapping[str, Any], found: Mapping[str, Any], changes: Sequence[str]
) -> Iterable[str]:
    there = dict(flatten(found))
    for key, value in flatten(expected):
        name = key.partition(".")[2]
        if is_named(name, changes) or is_named(name.rpartition(".")[2], changes) or is_named(key, changes):
            continue
        if key not in there:
            yield f"the param {key} is missing: {value!r}"
        elif as_text(there[key]) != as_text(value) and comparable(there[key]) != comparable(value):
            yield f"the param {key} is {there[key]!r} instead of {value!r}"
