"""The Recorder: the only tracker that the training knows. It writes the journal, and nothing else.

No value makes it raise into the training, apart from the interface's own `ValueError`s.
"""

from __future__ import annotations

import importlib
import itertools
import math
import os
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fmstune.delivery.journal.labels import Labels
from fmstune.delivery.journal.reader import NON_FINITE, Event, Kind, event_of
from fmstune.delivery.journal.writer import JournalWriter
from fmstune.delivery.no_run import RECORDS, no_run
from fmstune.errors import is_stop
from fmstune.secrets.redaction import Redactor, process_redactor
from fmstune.trackers.base import Tracker
from fmstune.trackers.records import MetricPoint, Status, Table
from fmstune.trackers.values.plain import MOST_TABLE_VALUES, Walk, is_mapping, mapping_of, plain, text_of

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from fmstune.delivery.in_process import GuardedTracker

_MOST_NAMES = 10_000
_NUMBERS, _TEXTS = frozenset({float, int}), frozenset({str})
_STEPS = (float, int, type(None))
_active: Recorder | None = None


class Recorder(Tracker):
    """Write tracked values to the run's journal, redacted, for the shippers to deliver."""

    registered_name = "recorder"
    description = "the run's journal"

    def __init__(self, journal: JournalWriter, redactor: Redactor | None = None) -> None:
        """Without a `redactor`, hide the secrets that the process knows now or learns later."""
        super().__init__()
        self.journal = journal
        self._in_process: list[GuardedTracker] = []
        self._samples: deque[Event] = deque()
        self._pid = os.getpid()
        self._closed = False
        self._given_redactor = redactor or process_redactor()
        self._known = self._given_redactor.known
        self._names: dict[str, str] = {}  # as written; the same few recur at each step
        self._hidden_names: set[str] = set()
        self._plain: set[tuple[Any, ...]] = set()
        self.named: set[tuple[str, str]] = set()  # kinds and names that were warned about

    @property
    def _redactor(self) -> Redactor:
        if self._known is not (known := self._given_redactor.known):
            self._known = known  # a name may have become a secret since it was checked
            self._names, self._plain = {}, set()
        return self._given_redactor

    @property
    def in_process(self) -> list[GuardedTracker]:
        """The trackers that must run in this process. A forked child has none: their SDKs have threads and
        connections that a fork breaks, for the parent too."""
        return self._in_process if os.getpid() == self._pid and not self._closed else []

    def get_hf_callback(self, *, strict: bool = False) -> TrainerCallback:
        from fmstune.trackers.hf.callback import TrackerCallback

        return TrackerCallback(self)

    def track(self, metric: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None:
        if metric is None or name is None:  # this raises; a foreign object's text may raise anything
            super().track(plain(metric), None if name is None else text_of(name))
        name = text_of(name)
        step = _step(self.step if step is None else step)
        self._record("metrics", self._fields(MetricPoint({name: metric}, stage, step)))

    def track_point(self, point: MetricPoint) -> None:
        # What the Trainer logs; the callbacks of trackers in this process receive it directly.
        if self._samples:
            self._pass_on_samples()
        if (fields := self._plain_fields(point)) is not None:
            self.journal.append("metrics", fields, finite=True)
        else:
            self.journal.append("metrics", self._fields(point))

    def track_sample(self, values: Mapping[str, float], stage: str, step: int) -> None:
        """Record values that a background thread has measured.

        Trackers in this process receive them later, in the training thread: a guard restores the random
        generators, which must not happen in the middle of a step.
        """
        found = self._plain_fields(point := MetricPoint(values, stage, step))
        if (event := self._append("metrics", found or self._fields(point), finite=bool(found))) is not None:
            self._samples.append(event)

    def _pass_on_samples(self) -> None:
        while self._samples:
            event = self._samples.popleft()
            for tracker in self.in_process:
                tracker.deliver(event)

    def _record(self, kind: Kind, fields: Mapping[str, Any]) -> None:
        """Write an event that no callback reports, and pass it to the trackers in this process."""
        self._pass_on_samples()
        if (event := self._append(kind, fields)) is not None:
            for tracker in self.in_process:
                tracker.deliver(event)

    def _append(self, kind: Kind, fields: Mapping[str, Any], *, finite: bool = False) -> Event | None:
        """Write an event, and return it if there are trackers in this process."""
        seq = self.journal.append(kind, fields, finite=finite)
        if not self.in_process:
            return None
        number = seq or self.journal.last_seq + 1  # while it is buffered
        return event_of({"seq": number, "time": time.time(), "kind": kind, **plain(fields)})

    def _plain_fields(self, point: MetricPoint) -> dict[str, Any] | None:
        """The fields of the training's own logs: finite numbers, without secrets, under names that recur
        together at each step; `None` for anything else. On a loaded machine, an event's time is that of the
        code it executes, so these have a fast path."""
        stage = point.stage
        if type(point.values) is not dict or not (stage is None or type(stage) is str):
            return None
        values = point.values.copy()  # another thread may change it
        if not (_NUMBERS.issuperset(map(type, values.values())) and _TEXTS.issuperset(map(type, values))):
            return None
        _ = self._redactor  # forgets names that have become secrets
        if (stage, *values) not in self._plain and not self._plain_names(stage, values):
            return None
        step, epoch = point.step, point.epoch
        if not (type(step) in _STEPS and type(epoch) in _STEPS and _is_finite(values, step, epoch)):
            return None
        return {"stage": stage, "step": step, "epoch": epoch, "values": values}

    def _fields(self, point: MetricPoint) -> dict[str, Any]:
        found, redactor = mapping_of(point.values), self._redactor
        texts = [self._name(key) for key in found if _is_text_of_number(point.values, key)]
        values = {self._name(key): redactor.metric(item, key) for key, item in found.items()}
        stage, step, epoch = self._optional(point.stage), _step(point.step), _step(point.epoch)
        fields: dict[str, Any] = {"stage": stage, "step": step, "epoch": epoch}
        fields |= {"texts": texts} if texts else {}
        return {**fields, "values": values}

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        if params is not None and not is_mapping(params):
            raise ValueError(f"set_params needs a mapping, got {type(params).__name__}")
        if params is not None:
            namespace = "" if name is None else text_of(name)
            if namespace == "config":  # the run's own
                values = self._redactor.configuration(mapping_of(params))
            else:
                values = self._redactor.mapping(mapping_of(params), namespace, tracked=True)
            self._record("params", {"name": self._optional(name) or "params", "values": values})

    def track_table(self, table: Table) -> None:
        rows = [self._redactor.mapping(row, tracked=True) for row in _rows(table.rows)]
        step = _step(self.step if table.step is None else table.step)
        name, stage = self._name(table.name), self._optional(table.stage)
        fields: dict[str, Any] = {"name": name, "stage": stage, "step": step, "rows": rows}
        epoch = _step(table.epoch)
        self._record("table", fields | ({"epoch": epoch} if epoch is not None else {}))

    def record_item(self, kind: Kind, name: Any, stage: Any, step: Any, item: Mapping[str, Any]) -> None:
        """Record a text, an image, a histogram or files; `item` is the line's entry, without secrets."""
        where = {"name": self._name(name), "stage": self._optional(stage)}
        self._record(kind, where | {"step": _step(self.step if step is None else step), "item": item})

    def record_files(self, name: str, step: int, item: Mapping[str, Any]) -> None:
        """Record files from a background thread; trackers in this process receive them like samples."""
        fields = {"name": self._name(name), "stage": None, "step": step, "item": item}
        if (event := self._append("artifact", fields)) is not None:
            self._samples.append(event)

    def hidden(self, text: str, name: Any = None) -> str:
        """The text without secrets, given the name that it is tracked under, which may be a secret's."""
        return self._redactor.text(text) if name is None else str(self._redactor.metric(text, text_of(name)))

    def _plain_names(self, stage: str | None, values: Mapping[str, Any]) -> bool:
        """Whether a stage and its names contain no secrets."""
        plain_ones = all(self._name(name) == name for name in (*values, stage or ""))
        if plain_ones and len(self._plain) < _MOST_NAMES:
            self._plain.add((stage, *values))
        return plain_ones

    def _optional(self, name: Any) -> str | None:
        return None if name is None else self._name(name)

    def _name(self, name: Any) -> str:
        """The name of a metric, a stage, a table or a namespace, as text without secrets. Two names that
        differ only in their secrets stay different."""
        if type(name) is not str:
            name = text_of(name)
        redactor = self._redactor
        written = self._names.get(name)
        if written is None:
            written = stem = redactor.text(name)
            count = 1
            while written != name and written in self._hidden_names:
                count += 1
                written = f"{stem} {count}"
            if len(self._names) < _MOST_NAMES:
                self._names[name] = written
                if written != name:
                    self._hidden_names.add(written)
        return written

    def resumed(self, step: int, labels: Labels | None = None) -> None:
        """Record that the training resumes at `step`: later steps logged before are logged again. `labels`
        are the run's name and labels from now on."""
        self._closed = False
        fields = {"step": step, "session": uuid.uuid4().hex} | (labels.fields() if labels else {})
        self.journal.append("resume", fields)

    def close(self, status: Status, error: str | None = None, *, seconds: float | None = None) -> None:
        """Write the status, and the `seconds` that the process ran; later events are only counted."""
        fields: dict[str, Any] = {"status": status}
        fields |= {} if error is None else {"error": self._redactor.text(error)}
        fields |= {} if seconds is None else {"item": {"seconds": round(seconds, 3)}}
        self._pass_on_samples()
        self.journal.append("status", fields)
        trackers, self._closed = self.in_process, True
        for tracker in trackers:
            tracker.close(status, fields.get("error"))


def _is_finite(values: Mapping[str, float], step: float | None, epoch: float | None) -> bool:
    try:
        return all(map(math.isfinite, (*values.values(), step or 0, epoch or 0)))
    except OverflowError:  # an integer too large for a float
        return False


def _is_text_of_number(values: Mapping[str, Any], key: str) -> bool:
    """Whether a metric is a string like `"NaN"`, which in the journal represents the number."""
    value = values.get(key) if type(values) is dict else None  # a foreign `__class__` may raise; a type not
    return issubclass(type(value), str) and str.__str__(value) in NON_FINITE


def _step(step: Any) -> Any:
    """A step or an epoch as a number, or else as text, which no tracker treats as one."""
    if type(step) is int or type(step) is float or step is None:
        return step
    found = plain(step)
    return found if isinstance(found, (int, float)) else text_of(found)


def _rows(rows: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    """The rows of a table as JSON, as many as fit."""
    walk = Walk(MOST_TABLE_VALUES)
    for row in rows:
        if walk.is_over:
            yield {"…": walk.cut}
            return
        yield mapping_of(row, walk)


@contextmanager
def active(recorder: Recorder | None) -> Iterator[None]:
    """Make `recorder` the one that `fmstune.track` and `fmstune.set_params` write to."""
    global _active
    importlib.import_module("fmstune.delivery.tracked")  # fails in a signal handler that interrupts it
    before, _active = _active, recorder
    if recorder is not None:
        os.environ[RECORDS] = str(os.getpid())
    try:
        yield
    finally:
        _active = before
        if before is None:
            os.environ.pop(RECORDS, None)


def active_recorder() -> Tracker:
    """The recorder of the run that is active in this process, or in the one that forked it; else one that
    does nothing."""
    return no_run() if _active is None else _active


def set_params(params: Mapping[str, Any] | None, name: str | None = None) -> None:
    """Attach parameters to the active run under the namespace `name`, from anywhere in the training
    process. Does nothing when no run is active here.

    Raises `ValueError` when `params` is not a mapping.
    """
    active_recorder().set_params(params, name)


def track_table(
    rows: Iterable[Mapping[str, Any]], name: str, stage: str | None = None, *, step: int | None = None
) -> None:
    """Track rows that belong together, such as samples, as a table of the active run, from anywhere in the
    training process. Each row maps column names to strings or numbers. Does nothing when no run is active
    here.

    Raises `ValueError` when the name is `None` or a row is not a mapping.
    """
    read = _read(rows)
    if name is None or read is None or not all(map(is_mapping, read)):
        raise ValueError("track_table needs a name, and rows that map columns to values")
    active_recorder().track_table(Table(name, read, stage, step))


def _read(rows: Any) -> tuple[Any, ...] | None:
    """The rows, reading which may raise anything or never end; `None` if they cannot be iterated over."""
    try:
        iterator = iter(rows)
    except BaseException as error:
        if is_stop(error):
            raise
        return None
    found: list[Any] = []
    try:
        found.extend(itertools.islice(iterator, MOST_TABLE_VALUES + 1))
    except BaseException as error:
        if is_stop(error):
            raise
        found.append({"…": f"<the rows after these could not be read: {type(error).__name__}>"})
    return tuple(found)
