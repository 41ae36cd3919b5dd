"""The series of a SwanLab run: one kind each, and one value at a step.

What SwanLab is given beyond that it drops without a word, when it is logged, synced or resumed. What is said
of it was seen with swanlab 0.10."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pyroaring import BitMap64
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record

MOST_STEP = 1 << 48
"""Values of later steps are dropped (`core_python/metrics`)."""
MOST_SERIES = 100
"""So many values of a name at one step are kept, in a series each."""
SCALAR = 1
_UNKNOWN = 0  # of media that the service has, it does not say what they are
_SYSTEM = "__swanlab__."
_EDGES = " ./"


class Place(NamedTuple):
    """Where a value goes: the name of the series, and the step there. `held`: SwanLab has that step already,
    since before this process or since an attempt of it that failed in part."""

    name: str
    step: int
    held: bool = False


class Series:
    """What a run has: of each series its kind, and the steps that have a value."""

    def __init__(self) -> None:
        self._kinds: dict[str, int] = {}
        self._steps: dict[str, BitMap64] = {}
        self._before: dict[str, int] = {}
        self._arrived: set[tuple[str, int]] = set()
        self._fitted: dict[str, str] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._kinds

    @property
    def last_before(self) -> int:
        """The last step that the service had a value of, when the run was opened; -1 for none."""
        return max(self._before.values(), default=-1)

    def define(self, name: str, kind: int) -> None:
        """Note that there is such a series."""
        self._kinds.setdefault(name, kind)

    def note(self, name: str, step: int) -> None:
        """Note a value."""
        from pyroaring import BitMap64

        self._steps.setdefault(name, BitMap64()).add(step)

    def note_before(self, name: str, scalar: bool, last: int) -> None:
        """Note that the service has a series up to this step. It tells nothing else of it."""
        self.define(name, SCALAR if scalar else _UNKNOWN)
        self._before[name] = max(last, self._before.get(name, -1))

    def freeze(self) -> None:
        """Take what there is now for what was there before: the steps that come are logged again."""
        for name, steps in self._steps.items():
            if steps:
                self._before[name] = max(steps.max(), self._before.get(name, -1))

    def take_back(self, records: Iterable[Record], arrived: Iterable[Record] = ()) -> None:
        """Forget records that did not arrive, of an attempt of which others may have `arrived`."""
        for record in records:
            if record.HasField("column"):
                self._kinds.pop(record.column.column_key, None)
            elif (value := _value(record)) is not None:
                self._steps[value[0]].discard(value[1])
        self._arrived |= {value for record in arrived if (value := _value(record)) is not None}

    def place(self, name: str, kind: int, step: int, repeats: int) -> Place | None:
        """The place of a value that came after so many others of the same name and step; `None` when there
        are too many."""
        for number in range(repeats + 1, MOST_SERIES + 1):
            found = name if number == 1 else f"{name} ({number})"
            if not self._fits(found, kind):
                continue
            if step <= self._before.get(found, -1) or (found, step) in self._arrived:
                return Place(found, step, held=True)
            if step not in self._steps.get(found, ()):
                return Place(found, step)
        return None

    def next_step(self, name: str) -> int:
        """A step behind all others, as SwanLab counts what is logged without one."""
        steps = self._steps.get(name)
        return steps.max() + 1 if steps else 0

    def fitted(self, key: str) -> str:
        """What a metric is called: SwanLab cuts some characters off both ends, and drops names of its own."""
        known = self._fitted.get(key)
        if known is not None:
            return known
        core = key.strip(_EDGES)
        left = len(key) - len(key.lstrip(_EDGES))
        name = "_" * left + core + "_" * (len(key) - left - len(core))
        name = ("_" + name if name.startswith(_SYSTEM) else name)[:500]
        names = set(self._fitted.values())
        while name != key and name in names:
            name += "_"
        self._fitted[key] = name
        return name

    def _fits(self, name: str, kind: int) -> bool:
        there = self._kinds.get(name, kind)
        return there == kind or (there == _UNKNOWN and kind != SCALAR)


def _value(record: Record) -> tuple[str, int] | None:
    """The series and the step of a record that has a value."""
    for kind in ("scalar", "media"):
        if record.HasField(kind):
            found = getattr(record, kind)
            return found.key, found.step
    return None
