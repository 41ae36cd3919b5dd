"""The shared normaliser: adapts metrics, params and tables to a tracker's declared limits.

It never raises and never drops silently: each adaptation is a sentence in the ledger, and the journal keeps
the original.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fmstune.trackers.records import Limits, utf8
from fmstune.trackers.values.changes import Changes, Kind
from fmstune.trackers.values.names import Names

_STEP_BITS = 64
_NUMBERS, _INTEGERS, _FLOATS = frozenset({int, float}), frozenset({int}), frozenset({float})
_MOST_SINGLE, _MOST_COUNT = 3.4028234e38, 1 << 24
_MOST_STAGES = 1000


class Normaliser:
    """Adapt values to `limits`; `changes` lists what was changed, each kind of change once."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._changes = Changes()
        self._metric_names: dict[str | None, Names] = {}
        self._namespaces = Names(limits, reserved=limits.reserved_params, stripped=limits.strips_params)
        self._table_names: dict[str | None, Names] = {}
        self._media_names: dict[tuple[str, str | None], Names] = {}
        self._stages = Names(limits, series=True)
        self._known_stages: dict[str, str | None] = {}
        bits = limits.integer_bits
        self._any_holds = _MOST_COUNT if bits is None or bits > _MOST_COUNT.bit_length() else 0
        self._taken: dict[str | None, set[str]] = {}
        self._owners: dict[str, tuple[str, str]] = {}

    @property
    def changes(self) -> tuple[str, ...]:
        """What was changed: losses first, with the number of values that were left out."""
        return self._changes.sentences

    def metrics(self, values: Mapping[str, Any], stage: str | None = None) -> dict[str, Any]:
        """Metrics of a stage as the tracker accepts them: numbers under allowed names."""
        names = self._metric_names.get(stage)
        if names is None:
            names = self._metric_names[stage] = Names(
                self._limits, taken=self._taken_in(stage), prefix=self._prefix(stage), series=True
            )
        kept: dict[str, Any] = {}
        fitting, most = names.known, self._any_holds
        for name, value in values.items():
            # Nearly all are numbers of this size, which every service stores unchanged.
            if not ((type(value) is float or type(value) is int) and -most <= value <= most):
                value = self._metric(value, name)
                if value is None:
                    continue
            kept[fitting.get(name) or self._name(name, names)] = value
        return kept

    def keeps(self, values: Sequence[Any]) -> bool:
        """Whether all are numbers that every service stores unchanged. One call for many costs little."""
        if not _NUMBERS.issuperset(map(type, values)):
            return False
        most = self._any_holds
        fits = not values or (min(values) >= -most and max(values) <= most)
        # NaN compares false with everything, so that it may hide from both, but not from a sum.
        return fits and not math.isnan(sum(values))

    def params(self, values: Mapping[str, Any], namespace: str | None = None) -> dict[str, Any]:
        """Params as the tracker accepts them: nested or flat, with strings of an allowed length. Flat ones
        whose name equals that of another `namespace` are renamed: `c` of `a.b`, and `b.c` of `a`."""
        items = values.items() if self._limits.nested else flatten(values)
        found = self._renamed(items, "", stripped=self._limits.strips_params)
        if self._limits.joins and not self._limits.nested and namespace is not None:
            found = {self._apart(namespace, key): value for key, value in found.items()}
        if not self._limits.text_params:
            return found
        return {key: self._text(as_text(value), key) for key, value in found.items()}

    def _apart(self, namespace: str, key: str) -> str:
        mine, fitting, count = (namespace, key), key, 1
        while self._owners.setdefault(f"{namespace}.{fitting}", mine) != mine:
            count += 1
            fitting = f"{key}_{count}"
        if fitting != key:
            first = self._owners[f"{namespace}.{key}"][0]
            self.note(
                f"{_shown(key)} of the params {_shown(namespace)} is called {_shown(fitting)}, as the params "
                f"{_shown(first)} have one that is written the same",
                "renamed",
            )
        return fitting

    def namespace(self, name: str | None) -> str | None:
        """The accepted form of a namespace of params."""
        return None if name is None else self._name(str(name), self._namespaces)

    def table(self, name: str | None, stage: str | None = None) -> str:
        """The accepted form of a table's name."""
        names = self._table_names.get(stage)
        if names is None:
            limits = self._limits
            taken = self._taken_in(stage) if limits.one_series else None
            names = self._table_names[stage] = Names(
                limits, chars=limits.table_chars, most=limits.max_table, taken=taken, series=True
            )
        return self._name("table" if name is None else str(name), names)

    def media(self, kind: str, name: str | None, stage: str | None = None) -> str:
        """The accepted form of the name of a text, an image or a histogram."""
        names = self._media_names.get((kind, stage))
        if names is None:
            limits, prefix = self._limits, self._prefix(stage)
            taken = self._taken_in(stage) if limits.one_series else None
            names = self._media_names[kind, stage] = Names(
                limits,
                chars=limits.table_chars,
                most=limits.max_table,
                taken=taken,
                prefix=prefix,
                series=True,
            )
        return self._name(kind if name is None else str(name), names)

    def _prefix(self, stage: str | None) -> str:
        return self._limits.prefix(stage or None) if self._limits.joins else ""

    def _taken_in(self, stage: str | None) -> set[str]:
        """The metric names in use in a stage, or in all stages if the service joins stage and name."""
        where = None if self._limits.joins else stage
        reserved = self._limits.reserved_metrics
        if where not in self._taken:
            names = reserved if self._limits.joins else _of_stage(reserved, stage)
            fold = str.casefold if self._limits.ignores_case else str
            self._taken[where] = set(map(fold, names))
        return self._taken[where]

    def rows(self, rows: tuple[Mapping[str, Any], ...], table: str) -> tuple[dict[str, Any], ...]:
        """The rows of a table, with the same column names in all of them."""
        columns = Names(self._limits)
        return tuple(
            {
                self._name(str(column), columns): self._value(value, f"{table}.{column}")
                for column, value in row.items()
            }
            for row in rows
        )

    def stage(self, stage: Any) -> str | None:
        """The stage as text that any service can store, or, where it is part of names, that these allow."""
        if stage is None:
            return None
        if type(stage) is str and stage in self._known_stages:
            return self._known_stages[stage]
        known = self._stage(stage)
        if type(stage) is str and len(self._known_stages) < _MOST_STAGES:
            self._known_stages[stage] = known
        return known

    def _stage(self, stage: Any) -> str | None:
        if self._limits.joins and self._limits.name_chars:
            known = self._stages.fit(str(stage))
            if known != stage:
                self.note(f"the stage {_shown(str(stage))} is called {_shown(known)}", "renamed")
            return known
        fitting = utf8(str(stage))
        if not self._limits.nul:
            fitting = fitting.replace("\0", "_")
        if fitting != stage:
            self.note(f"the stage {_shown(str(stage))} is called {_shown(fitting)}", "renamed")
        return fitting

    def step(self, step: Any) -> int | None:
        """The step, if it is an integer of at most 64 bits."""
        if type(step) is int and _fits(step, _STEP_BITS):
            return step
        if isinstance(step, (int, float)) and math.isfinite(step) and _fits(int(step), _STEP_BITS):
            if step != int(step):
                self.note(f"the step {step!r} is not an integer, and became {int(step)}")
            return int(step)
        if step is not None:
            self.note(f"the step {_shown(str(step))} is not a 64-bit integer, and is left out", "lost")
        return None

    def steps(self, steps: Sequence[Any]) -> Sequence[int | None]:
        """`step` of each, in a few calls if it changes none."""
        known = [step for step in steps if step is not None] if None in steps else steps
        if _INTEGERS.issuperset(map(type, known)) and (
            not known or (_fits(min(known), _STEP_BITS) and _fits(max(known), _STEP_BITS))
        ):
            return steps
        return [self.step(step) for step in steps]

    def epochs(self, epochs: Sequence[Any]) -> Sequence[float | None]:
        """`epoch` of each, in a few calls if it changes none."""
        known = [epoch for epoch in epochs if epoch is not None] if None in epochs else epochs
        if _FLOATS.issuperset(map(type, known)) and (
            not known or (min(known) > -1e300 and max(known) < 1e300 and not math.isnan(sum(known)))
        ):
            return epochs
        return [self.epoch(epoch) for epoch in epochs]

    def epoch(self, epoch: Any) -> float | None:
        """The epoch, if it is a finite number."""
        if isinstance(epoch, (int, float)) and -1e300 < epoch < 1e300:
            return float(epoch)
        if epoch is not None:
            self.note(f"the epoch {_shown(str(epoch))} is not a number, and is left out", "lost")
        return None

    def _metric(self, value: Any, name: str) -> Any:
        """The metric in a form that the tracker can store; `None` if there is none."""
        shown = _shown(name)
        bits = self._limits.integer_bits
        if isinstance(value, bool):
            return int(value)
        if isinstance(value, int) and bits is not None and not _fits(value, bits):
            try:
                rounded = float(value)
            except OverflowError:
                return self._leave_out(
                    f"metric {shown} is too large a number and is kept in the journal only"
                )
            self.note(f"metric {shown} has integers beyond {bits} bits, which are rounded")
            return rounded
        if isinstance(value, float) and not self._takes(value):
            return self._leave_out(
                f"metric {shown} was not finite at times; those points are in the journal only"
            )
        if isinstance(value, (int, float)):
            return self._single(value, shown) if self._limits.single_precision else value
        if self._limits.text_metrics and value is not None:
            return self._value(value, name)
        return self._leave_out(f"metric {shown} is not a number and is kept in the journal only")

    def _single(self, value: float, shown: str) -> Any:
        """A number for a service with single precision. That it keeps seven digits is not reported for each
        metric; a changed count is."""
        if isinstance(value, float) and not math.isfinite(value):
            return value
        if abs(value) > _MOST_SINGLE:
            return self._leave_out(
                f"metric {shown} was beyond 3.4e38 at times; those points are in the journal only"
            )
        if abs(value) > _MOST_COUNT and value == int(value) and value != _as_single(value):
            self.note(f"metric {shown} has integers beyond 24 bits, which are rounded")
        return value

    def _takes(self, value: float) -> bool:
        if math.isfinite(value):
            return True
        return self._limits.nan and (self._limits.infinite or math.isnan(value))

    def _value(self, value: Any, key: str) -> Any:
        if isinstance(value, Mapping):
            return self._renamed(value.items(), f"{key}.")
        if isinstance(value, list):
            return [self._value(item, key) for item in value]
        if isinstance(value, str):
            return self._text(value, key)
        bits = self._limits.integer_bits
        if isinstance(value, int) and bits is not None and not _fits(value, bits):
            self.note(f"{_shown(key)} is an integer beyond {bits} bits and is kept as text")
            return str(value)
        return value

    def _text(self, value: str, key: str) -> str:
        text = utf8(value)
        if text != value:
            self.note(f"{_shown(key)} has characters that Unicode does not have, kept as escapes")
        if not self._limits.nul and "\0" in text:
            self.note(f"{_shown(key)} has the character NUL, kept as \\0")
            text = text.replace("\0", "\\0")
        most = self._limits.max_value
        if most is not None and len(text) > most:
            self.note(f"param {_shown(key)} was cut from {len(text)} to {most} characters", "lost")
            return text[:most]
        return text

    def _renamed(self, items: Any, prefix: str, stripped: bool = False) -> dict[str, Any]:
        names = Names(self._limits, stripped=stripped)
        found: dict[str, Any] = {}
        for key, value in items:
            fitting = self._name(str(key), names, again=True)
            found[fitting] = self._value(value, f"{prefix}{key}")
        return found

    def _name(self, name: str, names: Names, *, again: bool = False) -> str:
        fitting = names.fit(name, again=again)
        if fitting != name:
            self.note(f"{_shown(name)} is called {_shown(fitting)}", "renamed")
        return fitting

    def _leave_out(self, change: str) -> None:
        self.note(change, "lost", values=1)

    def note(self, change: str, kind: Kind = "changed", *, values: int = 0) -> None:
        """Record a change, once."""
        self._changes.note(change, kind, values=values)


def as_text(value: Any) -> str:
    """A param for a service that only knows strings: numbers and the like as Python writes them, lists as
    JSON."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, Mapping)) else str(value)


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted keys and their values; an empty mapping stays a value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _of_stage(reserved: frozenset[str], stage: str | None) -> frozenset[str]:
    prefix = f"{stage}/" if stage else ""
    return frozenset(name.removeprefix(prefix) for name in reserved if name.startswith(prefix))


def _as_single(value: float) -> float:
    found: float = struct.unpack("f", struct.pack("f", value))[0]
    return found


def _fits(value: int, bits: int) -> bool:
    return -(1 << (bits - 1)) <= value < 1 << (bits - 1)


def _shown(name: str) -> str:
    """A name for use in a sentence: on one line, and shortened."""
    text = repr(name) if not name.strip() else name if name.isprintable() else ascii(name)[1:-1]
    return text if len(text) <= 80 else text[:79] + "…"
