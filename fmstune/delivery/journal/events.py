"""The events of a journal, and how they are parsed from its lines."""

from __future__ import annotations

import operator
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import chain, repeat
from typing import Any, Literal, NamedTuple, get_args

import orjson

from fmstune.delivery.journal.encoding import BITS_63, CHECKSUM, KEYS, is_exact, is_intact, loads, numbers
from fmstune.trackers.values.plain import text_of

Kind = Literal["params", "metrics", "table", "text", "image", "histogram", "artifact", "status", "resume"]
_KINDS = frozenset(get_args(Kind))

_NOTHING: Mapping[str, Any] = {}
_KIND = re.compile("[a-z_]{1,40}")


class Event(NamedTuple):
    """One line of the journal; a tuple, as creating a frozen dataclass takes three times as long.

    `time` is Unix seconds; `step` the optimizer step; `epoch` the fraction of the training data seen.
    `name` is the namespace of params, or the name of a table, a text, an image or a histogram; `rows` are the
    table's; `item` is the line's entry for the others: see `files`. `status` and `error` are those of the
    run's end; `session` is the id of the process that resumed the run.
    """

    seq: int
    time: float
    kind: Kind
    stage: str | None = None
    step: int | None = None
    epoch: float | None = None
    name: str | None = None
    values: Mapping[str, Any] = _NOTHING
    rows: tuple[Mapping[str, Any], ...] = ()
    status: str | None = None
    error: str | None = None
    session: str | None = None
    item: Mapping[str, Any] = _NOTHING


class Later(NamedTuple):
    """An event of a kind that only a later version of fmstune knows."""

    seq: int
    kind: str


_FIELDS = operator.itemgetter("seq", "time", "kind", "stage", "step", "epoch", "values")
_NUMBERS, _INTEGERS = frozenset({int, float}), frozenset({int, type(None)})
_TEXTS = frozenset({str, type(None)})


def parse(line: bytes) -> Event | None:
    """The event in a line; `None` if there is none."""
    try:
        return event_of(loads(line))
    except (ValueError, TypeError, RecursionError):
        return None


def later(line: bytes) -> Later | None:
    """The event in a line from which `parse` gets none, if a later version of fmstune has written it."""
    try:
        raw = loads(line)
        seq, kind = raw["seq"], raw["kind"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if type(seq) is not int or seq < 1 or type(kind) is not str:
        return None
    return Later(seq, kind) if kind not in _KINDS and _KIND.fullmatch(kind) else None


def seq_of(line: bytes) -> int | None:
    """The number of the event in a line, also of one that only a later version knows."""
    event = parse(line) or later(line)
    return None if event is None else event.seq


def event_of(raw: Any) -> Event | None:
    """The event of a parsed line of the journal; `None` if it is not one."""
    try:
        if raw["kind"] not in _KINDS or not isinstance(raw["seq"], int) or raw["seq"] < 1:
            return None
        values = raw.get("values") or {}
        if raw["kind"] == "metrics":  # nearly all lines of a large journal
            return Event(
                raw["seq"],
                float(raw["time"]),
                "metrics",
                name_of(raw.get("stage")),
                raw.get("step"),
                raw.get("epoch"),
                values=numbers(values, raw.get("texts") or ()),
            )
        return Event(
            seq=raw["seq"],
            time=float(raw["time"]),
            kind=raw["kind"],
            stage=name_of(raw.get("stage")),
            step=raw.get("step"),
            epoch=raw.get("epoch"),
            name=name_of(raw.get("name")),
            values=dict(values),
            rows=tuple(dict(row) for row in raw.get("rows") or ()),
            status=raw.get("status"),
            error=raw.get("error"),
            session=name_of(raw.get("session")),
            item=dict(raw.get("item") or {}),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return None


def parsed(lines: Sequence[bytes]) -> list[Event | None]:
    """The events of lines, each as `parse` returns it, in half the time if all are ordinary metrics."""
    try:
        raws = list(map(orjson.loads, lines))
    except ValueError:
        return list(map(parse, lines))
    if not all(map(is_intact, lines)):
        return list(map(parse, lines))
    found = _plain_metrics(raws)
    if found is not None:
        return found
    return [event_of(raw) if is_exact(raw) else parse(line) for line, raw in zip(lines, raws, strict=True)]


def _plain_metrics(raws: Sequence[Any]) -> list[Event | None] | None:
    """The events, if all are metrics whose values are numbers that `orjson` reads exactly. Each check is one
    call for all lines."""
    try:
        columns = list(zip(*map(_FIELDS, raws), strict=True))
        seqs, times, kinds, stages, steps, epochs, values = columns
        figures = list(chain.from_iterable(map(dict.values, values)))
        known = [each for each in epochs if each is not None] if None in epochs else epochs
        if not (
            sum(map(len, raws)) == len(raws) * KEYS + sum(map(operator.contains, raws, repeat(CHECKSUM)))
            and set(kinds) == {"metrics"}
            and set(map(type, seqs)) == {int}
            and min(seqs) >= 1
            and _INTEGERS.issuperset(map(type, steps))
            and _TEXTS.issuperset(map(type, stages))
            and all(map(_are_exact, (times, known, figures)))
        ):
            return None
    except (TypeError, KeyError, ValueError):
        return None
    none, empty, item = repeat(None), repeat(()), repeat(_NOTHING)
    rows = zip(
        seqs, map(float, times), kinds, stages, steps, epochs, none, values,
        empty, none, none, none, item, strict=False,
    )  # fmt: skip
    return list(map(tuple.__new__, repeat(Event), rows))


def _are_exact(numbers: Sequence[Any]) -> bool:
    """Whether all are numbers within the bounds outside which a float may have been a longer integer."""
    if not _NUMBERS.issuperset(map(type, numbers)):
        return False
    return not numbers or (min(numbers) > -BITS_63 and max(numbers) < BITS_63)


def name_of(name: Any) -> str | None:
    """A name as a string: journals of earlier versions also have lists and mappings as names."""
    return name if name is None or type(name) is str else text_of(name)


def later_kinds(kinds: Collection[str]) -> str:
    """A sentence about kinds of events that this version does not know."""
    named = ", ".join(sorted(kinds))
    return f"a later fmstune may know events of the kind {named}; upgrade with `pip install -U fmstune`"
