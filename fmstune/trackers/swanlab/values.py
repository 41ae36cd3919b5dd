"""The values that are buffered for SwanLab, each at its place in the run's series, and the adaptations
that this needed. SwanLab's behaviour was observed with 0.10."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from fmstune.text import counted
from fmstune.trackers.records import utf8
from fmstune.trackers.swanlab.records import column, media_record, scalar
from fmstune.trackers.swanlab.series import MOST_SERIES, MOST_STEP, SCALAR, Batch, Place, Series

if TYPE_CHECKING:
    from swanlab.proto.swanlab.metric.data.v1.data_pb2 import MediaItem
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record

AXES = ("train/global_step", "train/epoch")
_MOST_MEDIA = 10 << 20
"""The SDK drops larger media (`consumer/builder`)."""
_SYSTEM_AXIS = "_relative_time"


class Where(NamedTuple):
    """Where and when a value was tracked, and the number of its event."""

    stage: str | None
    step: int | None
    time: float
    seq: int | None


class Values:
    """The records of tracked values, and what had to be changed."""

    def __init__(self) -> None:
        self.waiting: list[Record] = []
        self.said: dict[str, None] = {}
        self._series = Series()
        self._section_rule = 0
        self.late: list[int] = []
        self._again: dict[str, None] = {}

    @property
    def adapted(self) -> tuple[str, ...]:
        """What had to be changed or is not stored."""
        if not self._again:
            return tuple(self.said)
        first, more = next(iter(self._again)), len(self._again) - 1
        which = f"{first} and {counted(more, 'other')}" if more else first
        return (*self.said, f"of steps that were logged again, SwanLab keeps the first values: of {which}")

    def begin(self, series: Series, section_rule: int) -> None:
        """Add to these series from now on; new ones go to sections according to the rule."""
        self._series, self._section_rule = series, section_rule

    def log_again(self, seq: int) -> None:
        """Existing steps are logged again after this event."""
        if not self._series.account.has(seq):
            self._series.freeze(seq)

    def add_axes(self, where: Where, epoch: float | None) -> None:
        """Add the x-axis values of a training, once per step."""
        step = where.step
        for axis, number in zip(AXES, (step, epoch), strict=True):
            if step is not None and number is not None and self._series.is_free(axis, step):
                self.add_number(axis, number, where, 0)

    def taken(self, events: list[int], params: Mapping[str, Any] | None) -> Batch:
        """Take what is buffered, to be written next."""
        batch = Batch(self.waiting, events, self.late, params)
        self.waiting, self.late = [], []
        return batch

    def add_number(self, key: str, value: float, where: Where, repeats: int) -> None:
        """Add a number that follows `repeats` others of its name at its step."""
        if (place := self._placed(key, SCALAR, where, repeats)) is not None:
            self.waiting.append(scalar(place.name, place.step, value, where.time))

    def add_shown(self, key: str, kind: int, item: MediaItem, where: Where, repeats: int) -> None:
        """Add a text, an image or a chart."""
        if item.size > _MOST_MEDIA:
            self._say(f"{key} has more than {_MOST_MEDIA >> 20} MB, and is in the journal only")
        elif (place := self._placed(key, kind, where, repeats)) is not None:
            self.waiting.append(media_record(place.name, place.step, kind, item, where.time))

    def _placed(self, key: str, kind: int, where: Where, repeats: int) -> Place | None:
        """Where a value goes; `None` if it is stored already, or cannot be stored, which is reported."""
        series, axis, name, step = self._series, None, key, where.step
        if where.stage == "system" and where.seq is not None:
            # A step may span a hundred samples. SwanLab's own samples are numbered, too.
            step, repeats, axis = where.seq, 0, _SYSTEM_AXIS
        if step is None:
            step = series.next_step(name) if where.seq is None else 0
        if step > MOST_STEP:
            self._say(f"{name} has a step beyond 2^48; such values are in the journal only")
            return None
        if step < 0:
            self._say(f"{name} has a step below 0, which is 0 there")
            step = 0
        place = series.place(name, kind, step, repeats, where.seq)
        if place is None:
            self._say(f"{name} has over {MOST_SERIES} values at one step; the rest are in the journal only")
            return None
        if place.name != name:
            self._say(
                f"{name} has several values at one step; further ones are in the series {name} (2) and so on"
            )
        if place.held:
            if place.again and name not in AXES:
                self._again[name] = None
            if place.doubtful:
                self._say(
                    f"{name} may lack values that came after later steps, as a process ended while they were "
                    "sent; the journal has them"
                )
            return None
        if place.name not in series:
            self.waiting.append(column(place.name, kind, self._section_rule, axis))
            series.define(place.name, kind)
        if where.seq is not None and series.is_late(place.name, place.step):
            self.late.append(where.seq)
        series.note(place.name, place.step)
        return place

    def _say(self, change: str) -> None:
        self.said[utf8(change)] = None
