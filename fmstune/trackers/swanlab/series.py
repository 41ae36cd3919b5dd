"""The series of a SwanLab run: one kind each, and one value at a step.

SwanLab silently drops anything beyond that when it is logged, synced or resumed. Its behaviour was observed
with swanlab 0.10."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from fmstune.trackers.swanlab.account import Account

if TYPE_CHECKING:
    from pyroaring import BitMap64
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record

MOST_STEP = 1 << 48
"""Values of later steps are dropped (`core_python/metrics`)."""
MOST_SERIES = 100
"""The most values of a name kept at one step, in one series each."""
SCALAR = 1
_UNKNOWN = 0  # the service does not report the kind of its media


@dataclass(frozen=True, slots=True)
class Batch:
    """Records that are written together, and their events. Those of the events `late` came after later
    steps of their series. `params` are all params, if they have changed."""

    records: list[Record]
    events: list[int]
    late: list[int]
    params: Mapping[str, Any] | None = None


class Place(NamedTuple):
    """Where a value goes: the name of the series, and the step there. `held`: SwanLab already has that step,
    from before this process or from a partly failed attempt of it. `again`: it has an earlier value there,
    from before the run was resumed. `doubtful`: it may or may not have the value."""

    name: str
    step: int
    held: bool = False
    again: bool = False
    doubtful: bool = False


class Series:
    """The series of a run: the kind of each, and its steps with a value."""

    def __init__(self) -> None:
        self._kinds: dict[str, int] = {}
        self._steps: dict[str, BitMap64] = {}
        self._before: dict[str, int] = {}
        self._arrived: set[tuple[str, int]] = set()
        self.account = Account()

    def __contains__(self, name: str) -> bool:
        return name in self._kinds

    def define(self, name: str, kind: int) -> None:
        """Record a series."""
        self._kinds.setdefault(name, kind)

    def note(self, name: str, step: int) -> None:
        """Record a value."""
        from pyroaring import BitMap64

        self._steps.setdefault(name, BitMap64()).add(step)

    def note_before(self, name: str, scalar: bool, last: int) -> None:
        """Record that the service has a series up to this step. It reports nothing else."""
        self.define(name, SCALAR if scalar else _UNKNOWN)
        self._before[name] = max(last, self._before.get(name, -1))

    def freeze(self, seq: int) -> None:
        """Treat the current values as earlier ones: steps that come after the event `seq` are logged
        again."""
        for name, steps in self._steps.items():
            if steps:
                self._before[name] = max(steps.max(), self._before.get(name, -1))
        self.account.again, self.account.again_after = max(self._before.values(), default=-1), seq

    def take_back(self, records: Iterable[Record], arrived: Iterable[Record] = ()) -> None:
        """Forget records that did not arrive in an attempt; others of it may have `arrived`."""
        for record in records:
            if record.HasField("column"):
                self._kinds.pop(record.column.column_key, None)
            elif (value := _value(record)) is not None:
                self._steps[value[0]].discard(value[1])
        self._arrived |= {value for record in arrived if (value := _value(record)) is not None}

    def place(self, name: str, kind: int, step: int, repeats: int, seq: int | None = None) -> Place | None:
        """The place of a value that follows this many others of the same name and step, with the event `seq`;
        `None` when there are too many."""
        for number in range(repeats + 1, MOST_SERIES + 1):
            found = name if number == 1 else f"{name} ({number})"
            if not self._fits(found, kind):
                continue
            if (place := self._held(found, step, seq)) is not None:
                return place
            if step not in self._steps.get(found, ()):
                return Place(found, step)
        return None

    def _held(self, name: str, step: int, seq: int | None) -> Place | None:
        """The place where SwanLab has, or may have, the value of a step."""
        account = self.account
        if (name, step) in self._arrived or (seq is not None and account.has(seq)):
            return Place(name, step, held=True)
        last = self._before.get(name, -1)
        if step > last:
            return None
        if (seq is None or seq > account.again_after) and step <= account.again:
            return Place(name, step, held=True, again=True)
        if seq is not None and seq > account.until:
            return None  # it is late: SwanLab already has later steps there
        return Place(name, step, held=True, doubtful=seq in account.late)

    def is_free(self, name: str, step: int) -> bool:
        """Whether a series has no value at a step, and none at a later step from before this process."""
        there = step <= self._before.get(name, -1) or step in self._steps.get(name, ())
        return self._fits(name, SCALAR) and not there

    def is_late(self, name: str, step: int) -> bool:
        """Whether a series has later steps."""
        steps = self._steps.get(name)
        return step < max(steps.max() if steps else -1, self._before.get(name, -1))

    def next_step(self, name: str) -> int:
        """The step after all others, as SwanLab numbers values that are logged without one."""
        steps = self._steps.get(name)
        return max(steps.max() if steps else -1, self._before.get(name, -1)) + 1

    def _fits(self, name: str, kind: int) -> bool:
        there = self._kinds.get(name, kind)
        return there == kind or (there == _UNKNOWN and kind != SCALAR)


def _value(record: Record) -> tuple[str, int] | None:
    """The series and the step of a record with a value."""
    for kind in ("scalar", "media"):
        if record.HasField(kind):
            found = getattr(record, kind)
            return found.key, found.step
    return None
