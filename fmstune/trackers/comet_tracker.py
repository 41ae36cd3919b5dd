"""The tracker `comet`: an experiment on Comet's server, or an archive for `comet upload`.

Comet's own configuration still applies. Only what the run has tracked is sent: no source code, no
environment, no console, no machine samples. The SDK's behaviour was observed with comet_ml 3.58.8.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Any

from fmstune.trackers.comet.account import check_account
from fmstune.trackers.comet.archive import is_stored
from fmstune.trackers.comet.items import (
    Item,
    Other,
    Param,
    Point,
    artifact_assets,
    asset_id,
    is_beyond_bins,
    media_asset,
    table_asset,
)
from fmstune.trackers.comet.service import Service
from fmstune.trackers.comet.settings import CometOptions, Settings, found_settings
from fmstune.trackers.comet.stores import Store, open_store
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
from fmstune.trackers.values.occurrences import Occurrences
from fmstune.trackers.whole_points import WholePointTracker

EPOCH = "train/epoch"
_MOST_NAME, _MOST_VALUE = 100, 1000
_MOST_KEPT = 15_000
"""The most points of a metric that Comet keeps; of more, its server and `comet upload` keep a sample."""
_MOST_WAITING = 5000


class CometTracker(WholePointTracker):
    """Name metrics as transformers' own integration does (`train/loss`, `eval/loss`), with `train/epoch`.
    Params are flat and prefixed with their namespace (`config|training|learning_rate`).

    Values wait until their batch is full. An archive knows which events it holds, as does the server for an
    experiment that was ended. If the process was killed, the points and files on the server are read, so that
    none is sent twice except those that it has accepted but does not show yet.
    """

    registered_name = "comet"
    description = "Comet, online, or as archives for `comet upload`"
    package = "comet_ml"
    distributions = ("comet_ml", "comet-ml")
    install_hint = "pip install 'fmstune[comet]'"
    Config = CometOptions
    config: CometOptions
    idempotent = True
    takes_artifacts = True
    places = (
        ("COMET_URL_OVERRIDE",),
        ("workspace", "COMET_WORKSPACE"),
        ("project", "COMET_PROJECT_NAME"),
        ("mode", "COMET_START_ONLINE", "COMET_AUTO_LOG_DISABLE", "COMET_MODE"),
        ("dir", "COMET_OFFLINE_DIRECTORY"),
    )
    media = frozenset({"text", "image", "histogram"})
    # The SDK cuts names at 100 characters and values at 1000. `|` separates the parts of a param's name.
    limits = Limits(
        name_chars=r"\x00-\x7b\x7d-\ud7ff\ue000-\U0010ffff",
        max_name=80,
        max_value=_MOST_VALUE,
        nested=False,
        text_params=True,
        integer_bits=64,
        joins=True,
        reserved_metrics=frozenset({EPOCH}),
        table_chars="A-Za-z0-9_. -",
        max_table=64,
    )

    def __init__(self, name: str | None = None, tracker_config: Any = None) -> None:
        super().__init__(name, tracker_config)
        self._store: Store | None = None
        self._settings: Settings | None = None
        self._said: list[Item] = []
        self._waiting: list[Item] = []
        self._events: list[int] = []
        self._params: dict[str, str] = {}
        self._tags: tuple[str, ...] = ()
        self._counts: dict[str, int] = {}
        self._epoch: float | None = None
        self._alone = Occurrences()
        self._changed: dict[str, None] = {}
        self._run_id: str | None = None
        self._closed: Store | None = None

    @property
    def adapted(self) -> tuple[str, ...]:
        more = getattr(self._store or self._closed, "adapted", None)
        return (*self._changed, *([more] if more else []))

    # -- the run ------------------------------------------------------------------------------

    def open(self, start: RunStart) -> TrackerRun:
        if self._store is not None:  # opened by `open_alone`
            self._call(start)
            return TrackerRun(self._store.key, self._store.page, note=self._store.note)
        self._settings = found_settings(self.config)
        store, noted = open_store(self._settings, start)
        self._store, self._closed, self._run_id = store, None, start.run_id
        self._params, self._counts = store.params, store.counts
        self._call(start)
        notes = " · ".join(part for part in (noted, store.note) if part) or None
        return TrackerRun(store.key, store.page, note=notes)

    def _call(self, start: RunStart) -> None:
        """Set the experiment's name, tags and labels, which may have changed."""
        assert self._settings is not None
        name = utf8(self._settings.name or start.name)[:_MOST_VALUE]
        tags = self._settings.tags or start.tags
        cut = [utf8(tag)[:_MOST_NAME] for tag in tags if tag]
        if any(len(tag) > _MOST_NAME for tag in tags):
            self._changed[f"its tags there are cut to {_MOST_NAME} characters"] = None
        self._tags = tuple(dict.fromkeys(cut))
        said = {"Name": name, "Created from": "fmstune", "hasNestedParams": True}
        for key, text in (("group", start.group), ("notes", start.notes)):
            said |= {key: utf8(text)[:_MOST_VALUE]} if text else {}
            if text and len(text) > _MOST_VALUE:
                self._changed[f"its {key} there are cut to {_MOST_VALUE} characters"] = None
        self._said = [Other(key, value) for key, value in said.items()]
        if isinstance(self._store, Service):  # an archive writes them with the next items
            self._store.write(self._said, [])
            if self._tags:
                self._store.add_tags(self._tags)

    def holds(self, last: int) -> bool:
        store = self._store or self._closed
        return store is None or store.holds(last)

    def is_stored(self, start: RunStart, last: int) -> bool | None:
        settings = found_settings(self.config)
        if settings.mode != "offline" or start.tracker_run_id is None:
            return None
        return is_stored(settings.folder, start.tracker_run_id, start.run_id, last)

    # -- what is tracked ----------------------------------------------------------------------

    def track_point(self, point: MetricPoint) -> None:
        values, stage = self._fitted(point)
        # Renamings are reported again for a repeated event: a kill may have lost the first report.
        keys = {name: self._short(self.limits.prefix(stage) + name) for name in values}
        if self._is_held():
            return
        moment = int(1000 * (point.time or time.time()))
        for name, value in values.items():
            repeat, key = (point.repeats or {}).get(name, 0), keys[name]
            if point.repeats is None:
                repeat = self._alone.count(key, point.step)
            self._add_point(key, value, point, moment + repeat)
        if stage == "train" and point.epoch not in (None, self._epoch):
            self._epoch = point.epoch
            self._add_point(EPOCH, point.epoch or 0.0, point, moment)
        self._note()

    def _add_point(self, key: str, value: Any, point: MetricPoint, moment: int) -> None:
        self._waiting.append(Point(key, value, point.step, point.epoch, moment))
        self._counts[key] = count = self._counts.get(key, 0) + 1
        if count > _MOST_KEPT:
            self._changed[
                f"metric {key} has more than {_MOST_KEPT} points, of which Comet keeps a sample"
            ] = None

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        super().set_params(params, name)
        if params is None:
            return
        namespace, items = self._fitted_params(params, name)
        given = {self._short(f"{namespace}.{key}".replace(".", "|")): each for key, each in items.items()}
        if self._is_held():
            return
        moment = int(1000 * (self.event_time or time.time()))
        for fitted, value in given.items():
            if self._params.get(fitted) != value:
                self._params[fitted] = value
                self._waiting.append(Param(fitted, value, moment))
        self._note()

    def track_table(self, table: Table) -> None:
        key = self._key_of(table)
        if not self._is_held():
            self._waiting.append(table_asset(table, key, self._asset_id()))
            self._note()

    def track_media(self, media: Media) -> None:
        if media.kind == "histogram":
            self._changed["histograms are counted in Comet's own bins, each a tenth wider than the last"] = (
                None
            )
        key = self._key_of(media)
        if media.kind == "histogram" and is_beyond_bins(media):
            self._changed[f"histogram {key} has values beyond 1e20, which are in Comet's outermost bins"] = (
                None
            )
        if not self._is_held():
            self._waiting.append(media_asset(media, key, self._asset_id()))
            self._note()

    def track_artifact(self, artifact: Artifact) -> None:
        if not self._is_held():
            self._waiting += artifact_assets(artifact, [self._run_id, self.seq])
            self._note()

    def flush(self) -> None:
        if self._store is None or not (self._waiting or self._events):
            return
        self._waiting[:0], self._said = self._said, []
        try:
            self._store.write(self._waiting, self._events)
        except BaseException as error:
            self._said = [item for item in self._waiting if isinstance(item, Other)]
            if self.seq is not None or not isinstance(error, OSError):
                self._forget()
            raise
        self._events = []

    def _forget(self) -> None:
        """Drop what is buffered: its events are delivered again, and a refused one does not block others."""
        for item in self._waiting:
            if isinstance(item, Param):
                self._params.pop(item.name, None)
        self._waiting, self._events = [], []

    def appear(self) -> None:
        self._opened()
        self.flush()

    def train_ended(self, status: Status) -> None:
        self._opened()
        self._waiting.append(Other("status", status))
        self.flush()

    def close(self, status: Status, error: str | None = None) -> None:
        if self._store is None:
            return
        self.flush()
        said = [*self._said, Other("status", status)]
        said += [Other("error", utf8(error)[:_MOST_VALUE])] if error else []
        self._store.end(status, error, said, self._tags)
        self._store, self._closed = None, self._store

    def check(self, timeout: float) -> Check:
        return check_account(self.config, timeout)

    # -- the rest -----------------------------------------------------------------------------

    def _key_of(self, what: Table | Media) -> str:
        return self._short(self.limits.prefix(what.stage) + what.name)

    def _asset_id(self) -> str:
        return asset_id(self._run_id, self.seq)

    def _short(self, name: str) -> str:
        if len(name) <= _MOST_NAME:
            return name
        fitted = (
            f"{name[: _MOST_NAME - 9]}-{hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()[:8]}"
        )
        self._changed[f"{name} is called {fitted}"] = None
        return fitted

    def _is_held(self) -> bool:
        """Whether the experiment holds the event that is being delivered."""
        held = self._opened().events
        return self.seq is not None and (self.seq in held or self.seq in self._events[-1:])

    def _note(self) -> None:
        """Record the event that the next write belongs to."""
        if self.seq is not None:
            self._events.append(self.seq)
        if len(self._waiting) > _MOST_WAITING or self.seq is None:
            self.flush()

    def _opened(self) -> Store:
        if self._store is None:
            self.open_alone()
        assert self._store is not None
        return self._store
