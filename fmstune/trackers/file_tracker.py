"""The tracker `file`: every event in a file of the user's choice, as JSON lines or CSV."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from fmstune.trackers.base import Check, MetricPoint, RunStart, Status, Table, Tracker, TrackerRun

CSV_COLUMNS = ("run", "seq", "time", "kind", "stage", "step", "epoch", "name", "value")


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
    """Appends one line for each event (JSON) or for each value (CSV, columns `CSV_COLUMNS`).

    CSV keeps one value a row, so that a metric that appears late needs no new column: Lightning's
    CSVLogger rewrites its whole file for one. Several runs may share a file.
    """

    registered_name = "file"
    description = "every event as JSON lines or CSV, in a file of yours"
    idempotent = True
    takes_params = "given"
    Config = FileOptions
    config: FileOptions

    def __init__(self, name: str | None = None, tracker_config: Any = None) -> None:
        super().__init__(name, tracker_config)
        self._run = "run"
        self._file: IO[str] | None = None

    def open(self, start: RunStart) -> TrackerRun:
        self._run = start.name
        path = self._path()
        path.parent.mkdir(parents=True, exist_ok=True)
        _end_last_line(path)
        self._file = path.open("a", encoding="utf-8", newline="")
        if self._is_csv and path.stat().st_size == 0:
            csv.writer(self._file).writerow(CSV_COLUMNS)
            self._file.flush()
        held = None if start.tracker_run_id is None else _last_seq(path, start.name)
        return TrackerRun(str(path.resolve()), path.resolve().as_uri(), held)

    def track(self, metric: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None:
        super().track(metric, name, stage)
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

    def track_table(self, table: Table) -> None:
        self._write(
            "table",
            {table.name: [dict(row) for row in table.rows]},
            table.time,
            stage=table.stage,
            step=table.step,
            epoch=table.epoch,
        )

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        super().set_params(params, name)
        if params is not None:
            self._write("params", params, stage=name)

    def close(self, status: Status, error: str | None = None) -> None:
        self._write("status", {"status": status} | ({"error": error} if error else {}))
        if self._file is not None:
            self._file.close()
            self._file = None

    def check(self, timeout: float) -> Check:
        folder = self._path().parent.resolve()
        while not folder.exists():
            folder = folder.parent
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            return Check(
                "no_permission",
                f"{folder} cannot be written to",
                f"choose another file: --set trackers.{self.name}.path=FILE",
            )
        return Check("ok", f"writes {self.config.path}", server=str(folder))

    @property
    def _is_csv(self) -> bool:
        return self.config.path.endswith(".csv")

    def _path(self) -> Path:
        return Path(self.config.path.replace("{run}", self._run)).expanduser()

    def _write(self, kind: str, values: Mapping[str, Any], moment: float | None = None, **where: Any) -> None:
        if self._file is None:
            self.open(RunStart(name=self._run, directory="."))
        assert self._file is not None
        stem = {
            "run": self._run,
            "seq": self.seq,
            "time": moment or time.time(),
            "kind": kind,
        } | where
        if self._is_csv:
            writer = csv.DictWriter(self._file, CSV_COLUMNS)
            for name, value in values.items():
                writer.writerow(stem | {"name": name, "value": _cell(value)})
        else:
            kept = {key: value for key, value in stem.items() if value is not None}
            self._file.write(json.dumps(kept | {"values": values}, default=str) + "\n")
        self._file.flush()


def _cell(value: Any) -> Any:
    return json.dumps(value, default=str) if isinstance(value, (dict, list, tuple)) else value


def _end_last_line(path: Path) -> None:
    """A killed writer may have left half a line; what comes next must not be glued to it."""
    if path.exists() and path.stat().st_size:
        with path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def _last_seq(path: Path, run: str) -> int | None:
    """The highest event number of `run` in the file: what need not be written again."""
    seqs = []
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file) if path.suffix == ".csv" else map(_json_row, file)
        for row in rows:
            if row.get("run") == run and str(row.get("seq") or "").isdigit():
                seqs.append(int(row["seq"]))
    return max(seqs, default=None)


def _json_row(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
