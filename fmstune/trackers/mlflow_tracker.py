"""The tracker `mlflow`: an MLflow tracking server, Databricks, or a store on this machine.

MLflow's own variables still apply. The SDK's behaviour was observed with mlflow-skinny 3.17.2.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmstune.trackers.continued import MARK, is_of_another, mark, note
from fmstune.trackers.mlflow.checks import check_store, client_of, found_run, has_run, local_path, page_of
from fmstune.trackers.mlflow.creation import created
from fmstune.trackers.mlflow.labels import (
    MOST_TAG,
    changes_of,
    experiment_name,
    experiment_of,
    mark_text,
    note_of,
    own_tags,
    read_mark,
    reopen,
    tags_of,
)
from fmstune.trackers.mlflow.media import log_files, log_image, log_table, log_text
from fmstune.trackers.records import (
    Artifact,
    Check,
    Limits,
    Media,
    MetricPoint,
    RunStart,
    Status,
    Table,
    TrackerError,
    TrackerRun,
    utf8,
)
from fmstune.trackers.values.occurrences import Occurrences
from fmstune.trackers.whole_points import WholePointTracker

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run, RunTag
    from mlflow.tracking import MlflowClient

STATUSES: Mapping[Status, str] = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}

_MOST_METRICS, _MOST_PARAMS = 900, 100  # per batch: 1,000 in all, at most 100 of them params
_MADE_AS = "fmstune.made_as"
"""The tag that finds a run whose id was known only to a process that was killed."""
_ASSUMED_SECONDS = 0.5
"""How long after an answer the store is assumed to be the same: to restore a database takes longer."""


@dataclass(frozen=True)
class MlflowOptions:
    """Options of the tracker `mlflow`. MLflow decides those that are not set."""

    tracking_uri: str | None = field(
        default=None,
        metadata={
            "help": "A server (http://host:port), databricks, sqlite:///file or a folder; "
            "else MLFLOW_TRACKING_URI, else MLflow's own store here."
        },
    )
    experiment: str | None = field(
        default=None,
        metadata={
            "help": "The experiment's name, created when absent; "
            "else MLFLOW_EXPERIMENT_NAME or MLFLOW_EXPERIMENT_ID, else run.group, else MLflow's own."
        },
    )
    run_name: str | None = field(default=None, metadata={"help": "The run's name; else the run's own."})
    tags: Mapping[str, str] | None = field(
        default=None, metadata={"help": "Tags of the run, by name; else run.tags."}
    )


class MlflowTracker(WholePointTracker):
    """Name metrics as transformers' own integration does (`loss`, `eval_loss`). Params are flat and prefixed
    with their namespace (`config.training.learning_rate`).

    Metrics wait until their batch is full, as each request takes milliseconds. A tag holds the number of the
    run's last stored event and is sent in the same request, so that an event delivered twice is recognised.
    It is read before it is written: if it is older than the last one sent, the store was restored meanwhile.
    """

    registered_name = "mlflow"
    description = "MLflow: a server, Databricks, or a store on this machine"
    package = "mlflow"
    distributions = ("mlflow", "mlflow-skinny")
    install_hint = "pip install 'fmstune[mlflow]'"
    Config = MlflowOptions
    config: MlflowOptions
    idempotent = True
    takes_artifacts = True
    places = (
        ("tracking_uri", "MLFLOW_TRACKING_URI"),
        ("experiment", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"),
        ("DATABRICKS_HOST",),
        ("DATABRICKS_CONFIG_PROFILE",),
    )
    media = frozenset({"text", "image"})
    # A name is limited to 250 characters, stage or namespace included. Infinity comes back as 1.8e308.
    limits = Limits(
        name_chars=r"/\w.\- :",
        max_name=120,
        max_value=6000,
        nested=False,
        text_params=True,
        paths=True,
        infinite=False,
        integer_bits=64,
        nul=False,
        captions=False,
        params_change=False,
        joins=True,
        prefixes={"train": "", "eval": "eval_", "test": "test_"},
        table_chars="A-Za-z0-9_. -",
        max_table=64,
    )

    def __init__(self, name: str | None = None, tracker_config: Any = None) -> None:
        super().__init__(name, tracker_config)
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._params: dict[str, str] = {}
        self._mark: dict[str, Any] = {}
        self._held = self._stored = 0  # the last event it was given, and that of the tag that was sent last
        self._answered = 0.0
        self._lost = False
        self._waiting: list[Metric] = []
        self._alone = Occurrences()
        self._changed: dict[str, None] = {}
        self._file: tuple[Path, int] | None = None

    @property
    def adapted(self) -> tuple[str, ...]:
        return tuple(self._changed)

    def open(self, start: RunStart) -> TrackerRun:
        if self._client is not None:  # opened by `open_alone`
            self._client.update_run(self._run_id, name=utf8(self.config.run_name or start.name))
            return TrackerRun(self._run_id)
        client = client_of(self.config.tracking_uri)
        run, noted = self._continued(client, start), None
        found = read_mark(run)
        if run is not None and start.run_id is not None and is_of_another(found, start):
            run, noted, found = None, note(start), {}
        if run is None:
            run = self._new_run(client, start, first=noted is None)
        else:
            reopen(client, run, utf8(self.config.run_name or start.name), self._tags(start))
        own = found.get("run_id") == start.run_id
        self._run_id, self._held = run.info.run_id, found.get("last_event", 0) if own else 0
        self._stored = self._held
        self._changed |= changes_of(found) if own else {}
        self._params = dict(run.data.params)
        self._mark = mark(start) if start.run_id is not None else {}
        uri = client.tracking_uri
        path = local_path(uri)
        self._file = (path, path.stat().st_ino) if path is not None and path.is_file() else None
        self._client = client
        page, where = page_of(uri, run.info.experiment_id, self._run_id)
        notes = " · ".join(part for part in (noted, where) if part) or None
        return TrackerRun(self._run_id, page, delivered_through=self._held or None, note=notes)

    def holds(self, last: int) -> bool:
        if self._lost:
            return False
        if self._file is not None:  # SQLite keeps writing to it, even after it is renamed or removed
            path, identity = self._file
            if not path.is_file() or path.stat().st_ino != identity:
                return False
        return not self._mark or self._client is None or self._held >= last

    def track(self, metric: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None:
        super().track(metric, name, stage, step=step)
        if self.seq is None:
            self.flush()

    def track_point(self, point: MetricPoint) -> None:
        from mlflow.entities import Metric

        self._opened()
        values, stage = self._fitted(point)
        moment, step = int(1000 * (point.time or time.time())), point.step or 0
        for name, value in values.items():
            key, number = self.limits.prefix(stage) + name, float(value)
            if isinstance(value, int) and number != value:
                self._changed[f"metric {key} has integers beyond 53 bits, which are rounded"] = None
            repeat = (point.repeats or {}).get(name, 0)
            if point.repeats is None:
                repeat = self._alone.count(key, point.step)
            # MLflow stores only one of several values that are equal in everything including their time;
            # and a process that sends them again must give them the same times.
            self._waiting.append(Metric(key, number, moment + repeat, step))
        self._held = max(self._held, self.seq or 0)
        if len(self._waiting) > _MOST_METRICS:
            self.flush()

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        super().set_params(params, name)
        if params is None:
            return
        from mlflow.entities import Param

        self._opened()
        namespace, items = self._fitted_params(params, name)
        given = {f"{namespace}.{key}": value for key, value in items.items()}
        for key in given.keys() & self._params.keys():
            if self._params[key] != given[key]:  # in a run that continues another; MLflow would raise
                self._changed[f"param {key} was given another value; the first one is kept"] = None
            del given[key]
        self._held = max(self._held, self.seq or 0)
        left = [Param(key, value) for key, value in given.items()]
        self._send(left)
        self._params |= given

    def track_table(self, table: Table) -> None:
        log_table(self._opened(), self._run_id, table)
        self._note_held()

    def track_media(self, media: Media) -> None:
        if media.kind not in self.media:
            self._refuse(f"{media.kind}s")
        log = log_text if media.kind == "text" else log_image
        log(self._opened(), self._run_id, media)
        self._note_held()

    def track_artifact(self, artifact: Artifact) -> None:
        log_files(self._opened(), self._run_id, artifact)
        self._note_held()

    def _note_held(self) -> None:
        """Record the last event that the run holds, with the metrics before it if some wait."""
        self._held = max(self._held, self.seq or 0)
        self._send([], tag=bool(self._mark))

    def is_stored(self, start: RunStart, last: int) -> bool | None:
        return None if start.tracker_run_id is None else has_run(self.config.tracking_uri, start, last)

    def flush(self) -> None:
        if self._client is not None:
            self._send([])

    def train_ended(self, status: Status) -> None:
        self.flush()
        self._opened().update_run(self._run_id, status=STATUSES[status])

    def close(self, status: Status, error: str | None = None) -> None:
        if self._client is None:
            return
        self._send([], tag=self._held > self._stored and bool(self._mark))
        client, self._answered = self._client, 0.0
        if not self._still_holds():  # everything is delivered again
            self._client = None
            return
        if error is not None:
            client.set_tag(self._run_id, "error", utf8(error)[:MOST_TAG])
        client.set_terminated(self._run_id, STATUSES[status])
        self._client = None

    def check(self, timeout: float) -> Check:
        return check_store(self.config.tracking_uri, experiment_name(self.config), timeout, self.name)

    # -- the rest -----------------------------------------------------------------------------

    def _send(self, params: list[Any], *, tag: bool = False) -> None:
        """Send what waits, and these params, in as few requests as MLflow allows. The last one carries the
        number of the last event that the run then holds; with `tag`, that is sent even if nothing waits."""
        client = self._opened()
        metrics = self._waiting
        while (metrics or params or tag) and self._still_holds():
            some, few = metrics[:_MOST_METRICS], params[: _MOST_PARAMS - 1]
            last = len(some) == len(metrics) and len(few) == len(params)
            client.log_batch(self._run_id, some, few, self._held_tag() if last else [])
            self._answered, tag = time.monotonic(), tag and not last
            self._stored = self._held if last else self._stored
            metrics, params = metrics[len(some) :], params[len(few) :]
            self._waiting = metrics  # those that were sent are not repeated if the next ones fail

    def _still_holds(self) -> bool:
        """Whether the run in the store has not lost events that it held. If it has, nothing more is sent:
        a later number would hide the loss."""
        if self._mark and not self._lost and time.monotonic() - self._answered > _ASSUMED_SECONDS:
            assert self._client is not None
            run = found_run(self._client, self._run_id)
            self._lost = read_mark(run).get("last_event", 0) < self._stored
            self._answered = time.monotonic()
        return not self._lost

    def _held_tag(self) -> list[RunTag]:
        from mlflow.entities import RunTag

        held = {**self._mark, "last_event": self._held}
        return [RunTag(MARK, mark_text(held, list(self._changed)))] if self._mark else []

    def _opened(self) -> MlflowClient:
        if self._client is None:
            self.open_alone()
        assert self._client is not None
        return self._client

    def _continued(self, client: MlflowClient, start: RunStart) -> Run | None:
        """The run to continue; `None` for a new one, also when it was deleted."""
        given = os.environ.get("MLFLOW_RUN_ID")
        if not (wanted := start.tracker_run_id or given):
            return None
        run = found_run(client, wanted)
        if run is None and wanted == given:
            raise TrackerError(f"MLFLOW_RUN_ID: there is no run {given}; unset it.")
        return run if run is not None and run.info.lifecycle_stage == "active" else None

    def _tags(self, start: RunStart) -> dict[str, str]:
        if self.config.tags:
            given, changes = {str(key): str(value) for key, value in self.config.tags.items()}, list[str]()
        else:
            given, changes = tags_of(start.tags)
        self._changed |= dict.fromkeys(changes)
        return note_of(start.notes) | given

    def _new_run(self, client: MlflowClient, start: RunStart, *, first: bool) -> Run:
        """A new run, or the one created by a process that was killed before its id was recorded."""
        experiment = experiment_of(client, experiment_name(self.config), start.group)
        tags = own_tags() | self._tags(start)
        if first and start.new_run_id is not None:
            found = client.search_runs(
                [experiment], f"tags.`{_MADE_AS}` = '{start.new_run_id}'", max_results=1
            )
            if found and not is_of_another(read_mark(found[0]), start):
                return found[0]
            tags[_MADE_AS] = start.new_run_id
        return created(client, experiment, utf8(self.config.run_name or start.name), tags)
