"""The tracker `swanlab`: SwanLab's cloud or your own server, or a folder for `swanlab sync`.

SwanLab's own configuration still applies: it looks up an option that is not given here. Its behaviour was
observed with swanlab 0.10."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fmstune.trackers.continued import MARK
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
)
from fmstune.trackers.swanlab.checks import ask_service
from fmstune.trackers.swanlab.cloud import Experiment
from fmstune.trackers.swanlab.files import RunFolder, folders_of, is_intact, read_state
from fmstune.trackers.swanlab.records import CHART, KINDS, end, media_item, save_record, table_item
from fmstune.trackers.swanlab.settings import (
    SwanLabOptions,
    SwanLabUnusable,
    found_settings,
    start_record,
)
from fmstune.trackers.swanlab.stores import Store, open_store
from fmstune.trackers.swanlab.values import AXES, Values, Where
from fmstune.trackers.unusable import require_writable
from fmstune.trackers.whole_points import WholePointTracker

if TYPE_CHECKING:
    from swanlab.proto.swanlab.metric.data.v1.data_pb2 import MediaItem
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record

_DISABLED = "disabled: nothing is sent to SwanLab and nothing is kept for it"
_MOST_ROWS = 2000


class SwanLabTracker(WholePointTracker):
    """Name metrics as SwanLab's own integration does (`train/loss`, `eval/loss`), at the optimizer's steps,
    with `train/global_step` and `train/epoch`; machine samples are drawn over time.

    SwanLab keeps one value per series and step, the first. Further ones go to separate series. When a resumed
    run logs steps again, an offline run has the new values, and the cloud keeps the first ones.
    """

    registered_name = "swanlab"
    description = "SwanLab: its cloud or a server of yours, or a folder for `swanlab sync`"
    package = "swanlab"
    install_hint = "pip install 'fmstune[swanlab]'"
    Config = SwanLabOptions
    config: SwanLabOptions
    idempotent = True
    repeated_steps: Literal["replaced", "kept"] = "replaced"
    takes_late = False  # the service only reports the last step of a series
    takes_artifacts = True
    places = (
        ("SWANLAB_API_HOST",),
        ("workspace", "SWANLAB_WORKSPACE"),
        ("project", "SWANLAB_PROJ_NAME", "SWANLAB_PROJECT"),
        ("mode", "SWANLAB_MODE"),
        ("dir", "SWANLAB_LOG_DIR", "SWANLAB_LOGDIR"),
    )
    media = frozenset({"text", "image", "histogram"})
    # The service has a single value for everything non-finite.
    limits = Limits(
        name_chars=r" -~\x80-\ud7ff\ue000-\U0010ffff",
        max_name=245,  # out of 500 for stage, name and number
        strips=" ./",
        drops="__swanlab__.",
        infinite=False,
        integer_bits=54,  # each number becomes a double
        paths=True,
        reserved_metrics=frozenset(AXES),
        reserved_params=frozenset({MARK}),
        joins=True,
        one_series=True,
    )

    def __init__(self, name: str | None = None, tracker_config: Any = None) -> None:
        super().__init__(name, tracker_config)
        self._store: Store | None = None
        self._closed: Store | None = None
        self._rename: Callable[[Record], object] | None = None
        self._settings: Any = None
        self._run_id = ""
        self._disabled = self._lost = self._changed = False
        self._values = Values()
        self._events: list[int] = []
        if (self.config.mode or os.environ.get("SWANLAB_MODE")) == "offline":
            self.takes_late = True

    @property
    def adapted(self) -> tuple[str, ...]:
        return self._values.adapted

    def open(self, start: RunStart) -> TrackerRun:
        notes: list[str] = []
        if self._rename is not None:  # opened by `open_alone`, under a placeholder name
            self._rename(start_record(self.config, self._settings, start, self._run_id, notes))
            return self._opened_run(notes)
        self._settings = settings = found_settings(self.config, self.name)
        self._disabled = settings.mode == "disabled"
        if self._disabled:
            return TrackerRun(start.tracker_run_id, note=_DISABLED)
        store, self._run_id = open_store(self.config, settings, start, notes)
        self._store, self._rename, self._lost = store, store.rename, False
        if isinstance(store, RunFolder):
            self._values.said |= dict.fromkeys(store.state.adapted)
        else:
            self.repeated_steps = "kept"
        self._values.begin(store.series, settings.core.section_rule)
        return self._opened_run(notes)

    def _opened_run(self, notes: list[str]) -> TrackerRun:
        if isinstance(self._store, Experiment):
            return TrackerRun(self._run_id, self._store.url, note=" · ".join(notes) or None)
        assert isinstance(self._store, RunFolder)
        # Without the id, `swanlab sync` creates another experiment each time.
        send = f"swanlab sync {shlex.quote(str(self._store.path))} --id {shlex.quote(self._run_id)}"
        return TrackerRun(self._run_id, note=" · ".join([*notes, f"offline, send it with `{send}`"]))

    def holds(self, last: int) -> bool:
        store = self._store or self._closed
        return not self._lost and (store is None or store.holds(last))

    def is_stored(self, start: RunStart, last: int) -> bool | None:
        settings = found_settings(self.config, self.name)
        if settings.mode != "offline" or start.tracker_run_id is None:
            return None
        for folder in folders_of(Path(settings.log_dir).absolute(), start.tracker_run_id):
            if (state := read_state(folder)) is not None:
                if state.mark.get("run_id") != start.run_id:
                    return None  # another run uses it now
                return state.last_event >= last and is_intact(folder, state)
        return False

    def track_point(self, point: MetricPoint) -> None:
        (values, stage), at = self._fitted(point), self._moment(point)
        if self._is_done():
            return
        where = Where(stage, point.step, at, self.seq)
        for name, value in values.items():
            repeats = (point.repeats or {}).get(name, 0)
            self._values.add_number(self.limits.prefix(stage) + name, value, where, repeats)
        if stage == "train":
            self._values.add_axes(where, point.epoch)
        self._note()

    def track_table(self, table: Table) -> None:
        self._show(table, CHART, table_item)

    def track_media(self, media: Media) -> None:
        self._show(media, KINDS[media.kind], media_item)

    def track_artifact(self, artifact: Artifact) -> None:
        if self._is_done():
            return
        for name in artifact.files:
            self._values.waiting.append(save_record(f"{artifact.name}/{name}", artifact.folder / name))
        self._note()
        self.flush()

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        super().set_params(params, name)
        if params is None or self._is_done():
            return
        held = self._opened().params
        namespace, held[namespace] = self._fitted_params(params, name, held)
        self._changed = True
        self._note()

    def resumed(self, step: int) -> None:
        if self._is_done():
            return
        self.flush()
        store = self._opened()
        if isinstance(store, RunFolder):
            store.forget_after(step, lambda name: name.startswith("system/"))
            self._values.begin(store.series, self._settings.core.section_rule)
        else:
            self._values.log_again(self.seq or 0)
        self._note()
        self.flush()

    def flush(self) -> None:
        store = self._store
        if store is None or not (self._values.waiting or self._events or self._changed):
            return
        changed = self._changed
        batch = self._values.taken(self._events, store.params if changed else None)
        self._events, self._changed = [], False
        if isinstance(store, RunFolder) and not store.holds(store.state.last_event):
            # The folder was removed or restored to an older state. Writing now would hide that.
            self._lost = True
            return
        if isinstance(store, RunFolder):
            store.state.adapted = list(self._values.said)
        try:
            store.write(batch)
        except BaseException:
            self._changed = changed
            raise

    def appear(self) -> None:
        self._is_done()
        self.flush()

    def close(self, status: Status, error: str | None = None) -> None:
        store = self._store
        if store is None:
            return
        self.flush()
        if not self._lost:
            store.finish(end(status, error))
        self._store, self._closed, self._rename = None, store, None

    def check(self, timeout: float) -> Check:
        try:
            settings = found_settings(self.config, self.name)
            if settings.mode == "disabled":
                return Check("ok", _DISABLED)
            if settings.mode == "online":
                self.repeated_steps = "kept"
                return ask_service(settings, timeout)
            folder = Path(settings.log_dir).absolute()
            require_writable(folder, SwanLabUnusable)
        except SwanLabUnusable as failed:
            return failed.check
        return Check("ok", f"offline, in {folder}, for `swanlab sync`", server=str(folder))

    # -- the rest -----------------------------------------------------------------------------

    def _show(self, shown: Any, kind: int, make: Callable[[Any], MediaItem]) -> None:
        if self._is_done():
            return
        where = Where(shown.stage, shown.step, self._moment(shown), self.seq)
        name = self.limits.prefix(shown.stage) + shown.name
        self._values.add_shown(name, kind, make(shown), where, shown.repeats or 0)
        self._note()

    def _moment(self, of: Any) -> float:
        return of.time or self.event_time or time.time()

    def _is_done(self) -> bool:
        """Whether nothing of the event that is being delivered needs to be written."""
        if self._store is None and not self._disabled:
            self.open_alone()
        if self._disabled:
            return True
        return self.seq is not None and (self._opened().has(self.seq) or self.seq in self._events[-1:])

    def _note(self) -> None:
        """Record the event that the next write belongs to."""
        if self.seq is not None:
            self._events.append(self.seq)
        if len(self._values.waiting) > _MOST_ROWS or self.seq is None:
            self.flush()

    def _opened(self) -> Store:
        assert self._store is not None
        return self._store
