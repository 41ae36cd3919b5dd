"""The tracker `file`: every event in a file of the user's choice, as JSON lines or CSV."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmstune.trackers.base import Tracker
from fmstune.trackers.file.event_file import EventFile, append_obstacle, stored_in
from fmstune.trackers.file.formats import Record
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
from fmstune.trackers.unusable import file_obstacle


@dataclass(frozen=True)
class FileOptions:
    """Options of the tracker `file`."""

    path: str = field(
        default="metrics-{run}.jsonl",
        metadata={
            "help": "The file to append to; a name that ends in .csv is written as CSV. "
            "`{run}` stands for the run's name."
        },
    )


class FileTracker(Tracker):
    """Append one line per event (JSON) or per value (CSV). Several runs may share a file.

    When it is opened, the run's events in the file are looked up by the run's own id and each event's number
    and time, whatever the ledger says: an event is written once even if the ledger is lost.
    """

    registered_name = "file"
    description = "every event as JSON lines or CSV, in a file of yours"
    idempotent = True
    places = (("path",),)
    takes_params = "given"
    takes_artifacts = refers_to_files = True
    media = frozenset({"text", "image", "histogram"})
    limits = Limits(text_metrics=True)
    Config = FileOptions
    config: FileOptions

    def __init__(self, name: str | None = None, tracker_config: Any = None) -> None:
        super().__init__(name, tracker_config)
        self._run = "run"
        self._run_id = ""
        self._file: EventFile | None = None
        self._closed: EventFile | None = None
        self._seq_written: int | None = None

    def open(self, start: RunStart) -> TrackerRun:
        self._run = start.name
        if self._file is None:
            self._run_id = start.run_id or uuid.uuid4().hex
            path = self._path()
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = EventFile(path, self._run_id)
        path = self._file.path.resolve()
        return TrackerRun(str(path), path.as_uri())

    def holds(self, last: int) -> bool:
        file = self._file or self._closed
        return file is None or file.holds(last)

    def is_stored(self, start: RunStart, last: int) -> bool | None:
        # The file under its old path, or its current one: its folder may have been moved.
        self._run = start.name
        there = Path(start.tracker_run_id or self._path())
        found = [stored_in(path, start.run_id or "", last) for path in (there, self._path())]
        return next((each for each in found if each is not False), False)

    def track(self, metric: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None:
        super().track(metric, name, stage)
        step = self.step if step is None and self.seq is None else step
        self._write("metrics", {name: metric}, stage=stage, step=step)

    def track_point(self, point: MetricPoint) -> None:
        self._write(
            "metrics",
            point.values,
            point.time,
            stage=point.stage,
            step=point.step,
            epoch=point.epoch,
        )

    def track_points(self, points: Iterator[MetricPoint]) -> None:
        if self._file is None:
            self.open_alone()
        assert self._file is not None
        self._file.flush_if_full()
        taken = list(points)
        if not self._file.append_points(self._run, taken):
            super().track_points(iter(taken))
        elif taken:
            self.seq = self._seq_written = taken[-1].seq

    def track_table(self, table: Table) -> None:
        self._write(
            "table",
            {table.name: [dict(row) for row in table.rows]},
            table.time,
            stage=table.stage,
            step=table.step,
            epoch=table.epoch,
        )

    def track_media(self, media: Media) -> None:
        """Write a text or a histogram's bins into the line; of an image, its path and hash."""
        if media.kind == "text":
            said: Any = media.text
        elif media.kind == "histogram":
            said = {"counts": list(media.counts), "low": media.low, "high": media.high}
        else:
            assert media.file is not None
            digest = hashlib.sha256(media.file.read_bytes()).hexdigest()
            said = {"file": str(media.file), "sha256": digest, "caption": media.text}
        where = {"stage": media.stage, "step": media.step, "epoch": media.epoch}
        self._write(media.kind, {media.name: said}, media.time, **where)

    def track_artifact(self, artifact: Artifact) -> None:
        """Write the location of the files; they stay in the run's directory."""
        said = {"type": artifact.type, "folder": str(artifact.folder), "files": list(artifact.files)}
        values = {artifact.name: said | {"size": artifact.size}}
        self._write("artifact", values, artifact.time, stage=None, step=artifact.step, epoch=None)

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        super().set_params(params, name)
        if params is not None:
            self._write("params", params, stage=name)

    def close(self, status: Status, error: str | None = None) -> None:
        if self._file is None:
            return
        self._file.flush()  # after which its contents are known
        # A run without a status in its journal is closed under the number of the previous event, which does
        # not belong to this line. A run that is closed again needs no second line.
        seq = None if self.seq == self._seq_written else self.seq
        if seq is not None or self._file.held.last_kind != "status":
            values = {"status": status} | ({"error": error} if error else {})
            moment, timed = self.event_time or time.time(), self.event_time is not None
            record = Record(self._run, self._run_id, "status", moment, values, seq, timed=timed)
            self._file.append(record)
        self._file.close()
        self._file, self._closed = None, self._file

    def check(self, timeout: float) -> Check:
        path = self._path()
        remedy = f"choose another file: --set trackers.{self.name}.path=FILE"
        if (obstacle := file_obstacle(path)) is not None:
            return Check(*obstacle, remedy)
        if why := append_obstacle(path):
            return Check("bad_option", f"{path} is not a file of fmstune's events: {why}", remedy)
        return Check("ok", f"writes {self.config.path}", server=str(path.parent.resolve()))

    def _path(self) -> Path:
        return Path(self.config.path.replace("{run}", self._run)).expanduser()

    def _write(self, kind: str, values: Mapping[str, Any], moment: float | None = None, **where: Any) -> None:
        if self._file is None:
            self.open_alone()
        assert self._file is not None
        moment, timed = moment or self.event_time or time.time(), self.event_time is not None
        self._file.append(
            Record(self._run, self._run_id, kind, moment, values, self.seq, timed=timed, **where)
        )
        self._seq_written = self.seq
        if self.seq is None:
            self._file.flush()

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()
