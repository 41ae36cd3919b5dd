"""The tracker `clearml`: a task on a ClearML server, or an offline session.

ClearML's own variables and its configuration file still apply. Its behaviour was observed with 2.1.12.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmstune.trackers.clearml.events import (
    SINGLE_VALUES,
    Event,
    histogram_plot,
    page_of,
    plot,
    sample,
    scalars,
    series_of,
    table_plot,
    title_of,
)
from fmstune.trackers.clearml.places import ClearmlOptions, ClearmlUnusable, Place, check_place, place_of
from fmstune.trackers.clearml.server import ServerStore
from fmstune.trackers.clearml.session import SessionStore
from fmstune.trackers.clearml.stores import (
    PROPERTIES,
    Labels,
    Store,
    Task,
    is_published,
    param,
    safe,
    uploaded,
)
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
    merged,
    utf8,
)
from fmstune.trackers.unusable import require_writable
from fmstune.trackers.values.normalise import as_text, flatten
from fmstune.trackers.values.occurrences import Occurrences
from fmstune.trackers.values.plain import plain
from fmstune.trackers.whole_points import WholePointTracker

_MOST_WAITING = 500
_LONGEST_NAME, _SHORTEST_NAME = 250, 3


class ClearmlTracker(WholePointTracker):
    """Name metrics as transformers' own integration does: the title is the stage, the series the metric, the
    iteration the optimizer step. Its single values are single values here, too. A namespace of params is a
    section.

    Events wait until their batch is full. The server keeps one event per series and iteration, so that one
    delivered twice is stored once. A property of the task holds the number of its last stored event.
    """

    registered_name = "clearml"
    description = "ClearML: a server, or offline sessions"
    package = "clearml"
    install_hint = "pip install 'fmstune[clearml]'"
    Config = ClearmlOptions
    config: ClearmlOptions
    idempotent = True
    repeated_steps = "replaced"
    takes_artifacts = True
    places = (
        ("offline", "CLEARML_OFFLINE_MODE"),
        ("project", "CLEARML_PROJECT"),
        ("dir", "CLEARML_CACHE_DIR"),
        ("output_uri", "CLEARML_DEFAULT_OUTPUT_URI"),
        ("CLEARML_API_HOST",),
        ("CLEARML_FILES_HOST",),
        ("CLEARML_CONFIG_FILE",),
    )
    media = frozenset({"text", "image", "histogram"})
    # The SDK reports NaN and infinity as 0. The server's database stores single-precision floats, and MongoDB
    # integers of 64 bits and keys without NUL; a debug sample has no caption.
    limits = Limits(
        max_name=1000,
        max_value=100_000,
        nested=False,
        nan=False,
        infinite=False,
        single_precision=True,
        integer_bits=64,
        nul=False,
        captions=False,
        reserved_metrics=SINGLE_VALUES,
        reserved_params=frozenset({MARK, PROPERTIES, PROPERTIES.capitalize(), PROPERTIES.upper()}),
        strips_params=True,
        joins=True,
        one_series=True,
    )

    def __init__(self, name: str | None = None, tracker_config: Any = None) -> None:
        super().__init__(name, tracker_config)
        self._store: Store | None = None
        self._closed: Store | None = None
        self._task = Task("")
        self._mark: dict[str, Any] = {}
        self._held = self._seen = 0
        self._waiting: list[tuple[int | None, Event]] = []
        self._ended = False
        self._params: dict[str, Any] = {}
        self._alone = Occurrences()
        self._changed: dict[str, None] = {}
        self._repeated = ""

    @property
    def adapted(self) -> tuple[str, ...]:
        return (*self._changed, *filter(None, [self._repeated]))

    def open(self, start: RunStart) -> TrackerRun:
        place = place_of(self.config, self.name)
        labels = self._labels(start, place)
        if self._store is not None:  # opened by `open_alone`, under a placeholder name
            self._store.begin(self._task, labels)
            return self._as_run(self._task)
        store = self._new_store(place)
        found, noted = self._continued(store, start, labels), ""
        if found is not None and is_published(found):
            noted = f"a run of its own there, as the task {found.id} was published"
        elif found is not None and start.run_id is not None and is_of_another(found.mark, start):
            noted = note(start)
        task = found
        if task is None or noted:
            task = store.create(labels, None if noted else start.new_run_id)
        own = task.mark.get("run_id") == start.run_id
        self._held = self._seen = int(task.mark.get("last_event", 0)) if own else 0
        self._mark = mark(start) if start.run_id is not None else {}
        self._task = store.begin(task, labels)
        store.write([], self._held_mark())
        self._store, self._ended = store, False
        return self._as_run(self._task, noted)

    def holds(self, last: int) -> bool:
        store = self._store or self._closed
        return store is None or (store.holds() and (not self._mark or self._held >= last))

    def is_stored(self, start: RunStart, last: int) -> bool | None:
        place = place_of(self.config, self.name)
        if not place.offline or start.tracker_run_id is None:
            return None
        found = SessionStore(place.folder).find(start.tracker_run_id)
        if found is None:
            return False
        if found.mark.get("run_id") != start.run_id:
            return None  # another run uses it now
        return bool(found.mark.get("last_event", 0) >= last)

    def track_point(self, point: MetricPoint) -> None:
        self._opened()
        values, stage = self._fitted(point)
        if self.seq is None:
            point = MetricPoint(values, stage, point.step, point.epoch, point.time)
        for name, value in values.items():
            repeat = (point.repeats or {}).get(name, 0)
            if point.repeats is None:
                repeat = self._alone.count((stage, name), point.step)
            if repeat and not self._repeated:
                key = series_of(self.limits.prefix(stage) + name, repeat)
                self._repeated = f"further values of a metric at one step are series of their own, as {key!r}"
            self._add(*scalars(point, name, value, repeat, self._moment(point)))
        self._note()

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        super().set_params(params, name)
        if params is None:
            return
        store, namespace = self._opened(), name or "params"
        given: dict[str, Any] = dict(params)
        if self.seq is None:
            given = self._params[namespace] = merged(self._params.get(namespace, {}), plain(given))
            namespace = self._adapt.namespace(namespace) or "params"
            given = self._adapt.params(given, namespace)
        self._again()
        items = [param(namespace, key, as_text(value), type(value).__name__) for key, value in flatten(given)]
        store.set_params(namespace, items)
        self._note(now=True)

    def track_table(self, table: Table) -> None:
        self._opened()
        self._add(plot(table, table_plot(table), self._moment(table)))
        self._note()

    def track_media(self, media: Media) -> None:
        store, moment = self._opened(), self._moment(media)
        if media.kind == "histogram":
            self._add(plot(media, histogram_plot(media), moment))
            self._note()
            return
        title, series = title_of(media.stage), series_of(media.name, media.repeats or 0)
        step = "none" if media.step is None else f"{media.step:08d}"
        suffix = ".html" if media.file is None else media.file.suffix.lower()
        path = f"metrics/{safe(title)}/{safe(series)}/{step}{suffix}"
        if media.file is not None:
            key, url = store.put_file(path, media.file)
        else:
            with tempfile.TemporaryDirectory() as folder:
                (page := Path(folder, "page.html")).write_bytes(page_of(media.text))
                key, url = store.put_file(path, page)
        self._add(sample(media, key, url, moment))
        self._note(now=True)

    def track_artifact(self, artifact: Artifact) -> None:
        store, kept = self._opened(), []
        for name in artifact.files:
            path = "/".join(map(safe, ("artifacts", artifact.name, *Path(name).parts)))
            _, url = store.put_file(path, artifact.folder / name)
            kept.append(uploaded(name, url, artifact.folder / name))
        self._again()
        store.put_artifact(artifact, kept)
        self._note(now=True)

    def flush(self) -> None:
        if self._store is None or not (self._waiting or self._seen > self._held):
            return
        waiting, self._waiting = self._waiting, []
        seen, self._seen = self._seen, self._held
        try:
            self._again()
            self._store.write([event for _, event in waiting], self._held_mark(seen))
        except BaseException:
            # What failed is not retried with later events, which would fail with it. Earlier ones are: the
            # mark of later ones would count them as stored.
            self._waiting = [(seq, event) for seq, event in waiting if seq != self.seq]
            self._seen = max((seq or 0 for seq, _ in self._waiting), default=self._held)
            raise
        if self._store.holds():
            self._held = self._seen = max(seen, self._held)

    def appear(self) -> None:
        self._opened()
        self.flush()

    def train_ended(self, status: Status) -> None:
        store = self._opened()
        self.flush()
        store.end(status, None)
        self._ended = True

    def close(self, status: Status, error: str | None = None) -> None:
        if self._store is None:
            return
        self.flush()
        self._store.end(status, None if error is None else utf8(error))
        self._closed, self._store = self._store, None

    def check(self, timeout: float) -> Check:
        return check_place(self.config, timeout, self.name)

    # -- the rest -----------------------------------------------------------------------------

    def _new_store(self, place: Place) -> Store:
        if not place.offline:
            return ServerStore(place)
        require_writable(place.folder, ClearmlUnusable)
        return SessionStore(place.folder)

    def _continued(self, store: Store, start: RunStart, labels: Labels) -> Task | None:
        """The task to continue; `None` for a new one, also when it was deleted."""
        if start.tracker_run_id is not None:
            return store.find(start.tracker_run_id)
        if start.new_run_id is None:
            return None
        # The one created by a process that was killed before its id was recorded.
        found = store.made_as(labels, start.new_run_id)
        return None if found is not None and is_of_another(found.mark, start) else found

    def _labels(self, start: RunStart, place: Place) -> Labels:
        import os

        given = self.config.task_name or os.environ.get("CLEARML_TASK") or start.name
        tags = self.config.tags or start.tags
        kept = tuple(dict.fromkeys(tag for tag in (utf8(str(each)).strip() for each in tags) if tag))
        project = self._named(place.project_of(start), "project")
        comment = utf8(start.notes) if start.notes else None
        return Labels(self._named(given, "task"), project, kept, comment)

    def _named(self, given: str, what: str) -> str:
        """A name of 3 to 250 characters without surrounding white space, as the server requires."""
        name = utf8(given).replace("\0", "_").strip()[:_LONGEST_NAME].strip()
        if len(name) < _SHORTEST_NAME:
            name = f"{'run' if what == 'task' else 'project'} {name}".strip()
        if name != given:
            self._changed[f"the {what} is called {name}, as ClearML's names have 3 to 250 characters"] = None
        return name

    def _as_run(self, task: Task, noted: str = "") -> TrackerRun:
        notes = " · ".join(part for part in (noted, task.note) if part) or None
        return TrackerRun(task.id, task.page, delivered_through=self._held or None, note=notes)

    def _moment(self, what: MetricPoint | Table | Media) -> int:
        return int(1000 * (what.time or self.event_time or time.time()))

    def _held_mark(self, seen: int = 0) -> dict[str, Any]:
        return {**self._mark, "last_event": max(seen, self._held)} if self._mark else {}

    def _again(self) -> None:
        """Reopen the task if a training has ended and more follows."""
        if self._ended and self._store is not None:
            self._ended = False
            self._store.resume()

    def _add(self, *events: Event) -> None:
        self._waiting += [(self.seq, event) for event in events]

    def _note(self, *, now: bool = False) -> None:
        """Record the event that is stored next."""
        self._seen = max(self._seen, self.seq or 0)
        if now or self.seq is None or len(self._waiting) > _MOST_WAITING:
            self.flush()

    def _opened(self) -> Store:
        if self._store is None:
            self.open_alone()
        assert self._store is not None
        return self._store
