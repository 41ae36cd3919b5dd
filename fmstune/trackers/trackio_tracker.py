"""The tracker `trackio`: a database on this machine, your own server, or a Space on the hub.

trackio's own variables still apply. Its behaviour was observed with 0.43.
"""

from __future__ import annotations

import functools
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from fmstune.trackers.continued import MARK, is_of_another, mark, note
from fmstune.trackers.records import (
    Artifact,
    Check,
    Limits,
    Media,
    MetricPoint,
    RunStart,
    Status,
    Table,
    TrackerRun,
    utf8,
)
from fmstune.trackers.trackio.places import TrackioOptions, check_place, open_store, place_of
from fmstune.trackers.trackio.stores import Held, Row, Store
from fmstune.trackers.whole_points import WholePointTracker

AXES = ("train/global_step", "train/epoch")
"""The optimizer step and the epoch of a row, as named by transformers' own integration."""
OWN = frozenset({"_Username", "_Created", "_Group", "status", "error", "tags", "notes", MARK})
"""Keys of a run's config other than the params."""
_MOST_ROWS = 5000
_LONGEST_NAME = 100


class TrackioTracker(WholePointTracker):
    """Name metrics as transformers' own integration does (`train/loss`, `eval/loss`), with
    `train/global_step` and `train/epoch`; trackio's step is the optimizer step, too.

    A row carries the number of its event, so that it is stored once. Rows wait until their batch is full and
    are written in one go with the run's config, which records the last stored event.
    """

    registered_name = "trackio"
    description = "trackio: a database on this machine, a server, or a Space on the hub"
    package = "trackio"
    install_hint = "pip install 'fmstune[trackio]'"
    Config = TrackioOptions
    config: TrackioOptions
    idempotent = True
    takes_artifacts = True
    places = (
        ("space_id", "server_url", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"),
        ("project", "TRACKIO_PROJECT"),
        ("TRACKIO_DIR",),
    )
    media = frozenset({"text", "image", "histogram"})
    # A string metric is not drawn anywhere; a row's own fields hide metrics of these names.
    limits = Limits(
        integer_bits=64,
        reserved_metrics=frozenset({"project", "run", "timestamp", "step", "time", "metrics", *AXES}),
        reserved_params=OWN,
        joins=True,
        one_series=True,
    )

    def __init__(self, name: str | None = None, tracker_config: Any = None) -> None:
        super().__init__(name, tracker_config)
        self._store: Store | None = None
        self._open = self._lost = False
        self._run_id = self._name = ""
        self._config: dict[str, Any] = {}
        self._mark: dict[str, Any] = {}
        self._held = self._confirmed = 0
        self._waiting: list[Row] = []
        self._changed = False
        self._last_row: str | None = None
        self._renamed: dict[str, None] = {}

    @property
    def adapted(self) -> tuple[str, ...]:
        return tuple(self._renamed)

    def open(self, start: RunStart) -> TrackerRun:
        place = place_of(self.config)
        if self._open:  # by `open_alone`, under a placeholder name
            self._called(start)
            return TrackerRun(self._run_id, place.page, note=place.note)
        self._store = store = open_store(place)
        self._run_id = start.tracker_run_id or start.new_run_id or uuid.uuid4().hex
        held, noted = store.held(self._run_id), None
        if held is not None and is_of_another(held.config.get(MARK), start):
            held, noted, self._run_id = None, note(start), uuid.uuid4().hex
        self._begin(start, held)
        self._open, self._lost = True, False
        notes = " · ".join(part for part in (noted, place.note) if part) or None
        return TrackerRun(self._run_id, place.page, note=notes)

    def _begin(self, start: RunStart, held: Held | None) -> None:
        self._config = {} if held is None else dict(held.config)
        found = self._config.get(MARK)
        found = found if isinstance(found, Mapping) else {}
        own = found.get("run_id") == start.run_id
        self._held = self._confirmed = int(found.get("last_event", 0)) if own else 0
        self._last_row = found.get("last_row")
        self._mark = mark(start) if start.run_id is not None else {}
        for ended in ("status", "error"):
            self._config.pop(ended, None)
        self._config.setdefault("_Created", _stamp(time.time()))
        self._config.setdefault("_Username", None)
        self._name = held.name if held is not None else ""
        self._called(start)

    def _called(self, start: RunStart) -> None:
        """Set the run's name and labels; those of an existing run may have changed."""
        assert self._store is not None
        given = self.config.name or start.name
        # It becomes a part of paths.
        name = re.sub(r"[/\\\0]", "_", utf8(given))[:_LONGEST_NAME].strip(" .") or "run"
        if name != given:
            self._renamed[f"the run is called {name}, as its name is a part of paths there"] = None
        if self._name and self._name != name and self._store.held(self._run_id) is not None:
            self._store.rename(self._run_id, self._name, name)
        self._name = name
        self._config["_Group"] = utf8(self.config.group or start.group or "") or None
        tags = list(dict.fromkeys(utf8(tag) for tag in start.tags if tag))
        said = {"tags": tags, "notes": utf8(start.notes or "")}
        self._config = {key: value for key, value in self._config.items() if key not in said}
        self._config |= {key: value for key, value in said.items() if value}
        self._changed = self._changed or self._open

    def holds(self, last: int) -> bool:
        if self._lost or self._store is None or not self._mark:
            return not self._lost
        return self._stored_to(self._store) >= last

    def is_stored(self, start: RunStart, last: int) -> bool | None:
        place = place_of(self.config)
        if place.remote or start.tracker_run_id is None:
            return None
        held = open_store(place).held(start.tracker_run_id)
        found = held.config.get(MARK) if held is not None else None
        if not isinstance(found, Mapping):
            return False
        return found.get("run_id") != start.run_id or found.get("last_event", 0) >= last

    def track(self, metric: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None:
        super().track(metric, name, stage, step=step)
        if self.seq is None:
            self.flush()

    def track_point(self, point: MetricPoint) -> None:
        values, stage = self._fitted(point)
        prefix = self.limits.prefix(stage)
        self._add({prefix + name: value for name, value in values.items()}, point)

    def track_points(self, points: Iterator[MetricPoint]) -> None:
        self._opened()
        own = f"{self._run_id}-{self._mark.get('run_id')}"
        for values, stage, step, epoch, moment, seq, _ in points:
            self.seq, prefix = seq, self.limits.prefix(stage)
            row = {prefix + name: value for name, value in values.items()} if prefix else dict(values)
            if step is not None:
                row[AXES[0]] = step
            if epoch is not None:
                row[AXES[1]] = epoch
            self._waiting.append(Row(row, step or 0, _stamp(moment or time.time()), f"{own}-{seq}"))
            self._held, self._changed = max(self._held, seq or 0), True
            if len(self._waiting) > _MOST_ROWS:
                self.flush()

    def track_table(self, table: Table) -> None:
        from trackio import Table as TrackioTable

        self._add_shown(TrackioTable(data=table.filled())._to_dict(self._name, "", 0), table)

    def track_media(self, media: Media) -> None:
        from trackio import Histogram, Image, Markdown

        if media.kind == "text":
            shown = Markdown(media.text)._to_dict()
        elif media.kind == "histogram":
            width = (media.high - media.low) / len(media.counts)
            edges = [media.low + width * number for number in range(len(media.counts))]
            shown = Histogram(np_histogram=(list(media.counts), [*edges, media.high]))._to_dict()
        else:
            assert media.file is not None
            store = self._opened()
            own = uuid.uuid5(uuid.NAMESPACE_OID, f"{self._run_id} {self._log_id()}")
            path = store.put_image(self._name, media.step or 0, media.file, f"{own}{media.file.suffix}")
            shown = {"_type": Image.TYPE, "file_path": path, "caption": media.text or None}
        self._add_shown(shown, media)

    def track_artifact(self, artifact: Artifact) -> None:
        self._opened().put_files(self._run_id, self._name, artifact)
        self._note_held()

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        super().set_params(params, name)
        if params is None:
            return
        self._opened()
        namespace, self._config[namespace] = self._fitted_params(params, name, self._config)
        self._note_held()
        if self.seq is None:
            self.flush()

    def flush(self) -> None:
        if not (self._open and (self._waiting or self._changed)):
            return
        store = self._opened()
        if self._mark and self._stored_to(store) < self._confirmed:
            # The storage was removed or restored to an older state. Writing now would hide that.
            self._lost, self._waiting = True, []
            return
        # A config is only sent with rows. One that is already there changes nothing else; for a run without
        # any, it is sent without values.
        rows = self._waiting or [Row({}, 0, self._config["_Created"], self._last_row or self._run_id)]
        self._last_row = rows[-1].log_id
        said = {"last_event": self._held} if self._mark else {}
        self._config[MARK] = self._mark | said | {"last_row": self._last_row}
        store.write(self._run_id, self._name, rows, self._config)
        self._waiting, self._changed, self._confirmed = [], False, self._held

    def appear(self) -> None:
        self._opened()
        self._changed = True
        self.flush()

    def train_ended(self, status: Status) -> None:
        self._config["status"] = status
        self.appear()

    def close(self, status: Status, error: str | None = None) -> None:
        if not self._open:
            return
        self._config |= {"status": status} | ({"error": utf8(error)} if error else {})
        self._changed = True
        self.flush()
        self._open = False

    def check(self, timeout: float) -> Check:
        return check_place(self.config, timeout, self.name)

    # -- the rest -----------------------------------------------------------------------------

    def _opened(self) -> Store:
        if not self._open:
            self.open_alone()
        assert self._store is not None
        return self._store

    def _stored_to(self, store: Store) -> int:
        """The last event of this run in the storage; infinite where another run has continued it."""
        found = (store.config(self._run_id) or {}).get(MARK)
        if not isinstance(found, Mapping):
            return 0
        return int(found.get("last_event", 0)) if found.get("run_id") == self._mark["run_id"] else 1 << 62

    def _log_id(self) -> str:
        if self.seq is None:
            return uuid.uuid4().hex
        return f"{self._run_id}-{self._mark.get('run_id')}-{self.seq}"

    def _add_shown(self, shown: Mapping[str, Any], what: Table | Media) -> None:
        self._add({self.limits.prefix(what.stage) + what.name: shown}, what)
        if self.seq is None:
            self.flush()

    def _add(self, values: dict[str, Any], where: MetricPoint | Table | Media) -> None:
        self._opened()
        if where.step is not None:
            values[AXES[0]] = where.step
        if where.epoch is not None:
            values[AXES[1]] = where.epoch
        moment = where.time or self.event_time or time.time()
        self._waiting.append(Row(values, where.step or 0, _stamp(moment), self._log_id()))
        self._note_held()

    def _note_held(self) -> None:
        self._held, self._changed = max(self._held, self.seq or 0), True
        if len(self._waiting) > _MOST_ROWS:
            self.flush()


def _stamp(moment: float) -> str:
    second = int(moment)
    micro = round((moment - second) * 1e6)
    if 0 < micro < 1_000_000 and second > 0:
        return f"{_second(second)}.{micro:06}+00:00"
    return datetime.fromtimestamp(moment, UTC).isoformat()


@functools.lru_cache(maxsize=4)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
