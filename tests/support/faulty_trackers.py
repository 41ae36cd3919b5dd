"""A tracker that keeps its guarantees, and trackers that each break one, which the kit has to detect."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from fmstune.testing.findings import Delivered, Stored
from fmstune.trackers.base import Tracker
from fmstune.trackers.records import (
    Artifact,
    Check,
    Media,
    MetricPoint,
    RunStart,
    Status,
    Table,
    TrackerRun,
    merged,
)


@dataclass(frozen=True)
class Options:
    path: str = field(default="lines.jsonl", metadata={"help": "The file."})


class Sound(Tracker):
    """Writes one JSON line per call, identified by its run and its number."""

    Config = Options
    idempotent = True

    def open(self, start: RunStart) -> TrackerRun:
        self.file = Path(self.config.path)
        self.file.touch()
        self.held = {json.loads(line)[0] for line in self.file.read_text().splitlines()}
        return TrackerRun(start.tracker_run_id or "lines")

    def track_point(self, point: MetricPoint) -> None:
        prefix = f"{point.stage}/" if point.stage else ""
        self._write("points", [[prefix + name, point.step, value] for name, value in point.values.items()])

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        super().set_params(params, name)
        if params is not None:
            self._write("params", {name: params})

    def close(self, status: Status, error: str | None = None) -> None:
        self._write("status", status)

    def _write(self, kind: str, what: Any) -> None:
        if self.seq not in self.held:
            with self.file.open("a") as file:
                file.write(json.dumps([self.seq, kind, what]) + "\n")


def read(delivered: Delivered) -> Stored:
    """The run that the lines hold."""
    points: list[Any] = []
    params: dict[str, Any] = {}
    status = None
    path = delivered.folder / "lines.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        _, kind, what = json.loads(line)
        if kind == "points":
            points += [tuple(point) for point in what]
        elif kind == "params":
            params = merged(params, what)
        elif kind == "status":
            status = what
    return Stored(points, params, status)


class StoresAll(Sound):
    """Also has tables, media and artifacts of its own."""

    takes_artifacts = True
    media = frozenset({"text", "image", "histogram"})

    def track_table(self, table: Table) -> None:
        self._write("table", [_key(table), table.step, table.filled()])

    def track_media(self, media: Media) -> None:
        self._write("media", [media.kind, _key(media), media.step])

    def track_artifact(self, artifact: Artifact) -> None:
        files = {name: (artifact.folder / name).read_bytes().hex() for name in artifact.files}
        self._write("artifact", [artifact.name, files])


def _key(item: Table | Media) -> str:
    return "/".join(part for part in (item.stage, item.name) if part)


def read_all(delivered: Delivered) -> Stored:
    """The run that the lines hold, with its tables, media and artifacts."""
    path = delivered.folder / "lines.jsonl"
    lines = [json.loads(line)[1:] for line in path.read_text().splitlines()] if path.exists() else []
    return dataclasses.replace(
        read(delivered),
        tables=[tuple(what) for kind, what in lines if kind == "table"],
        media=[tuple(what) for kind, what in lines if kind == "media"],
        artifacts=[
            (name, {file: bytes.fromhex(content) for file, content in files.items()})
            for name, files in (what for kind, what in lines if kind == "artifact")
        ],
    )


class DropsTables(StoresAll):
    def track_table(self, table: Table) -> None:
        pass


class CutsTables(StoresAll):
    def track_table(self, table: Table) -> None:
        super().track_table(dataclasses.replace(table, rows=table.rows[:1]))


class LosesCells(StoresAll):
    def track_table(self, table: Table) -> None:
        super().track_table(dataclasses.replace(table, rows=({"prompt": "Hi"}, *table.rows[1:])))


class DropsHistograms(StoresAll):
    def track_media(self, media: Media) -> None:
        if media.kind != "histogram":
            super().track_media(media)


class DropsArtifacts(StoresAll):
    def track_artifact(self, artifact: Artifact) -> None:
        pass


class FlattensArtifacts(StoresAll):
    def track_artifact(self, artifact: Artifact) -> None:
        files = tuple(name for name in artifact.files if "/" not in name)
        super().track_artifact(dataclasses.replace(artifact, files=files))


class DropsParamsOfTables(Sound):
    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        if "samples" not in str(name):
            super().set_params(params, name)


class Doubles(Sound):
    def _write(self, kind: str, what: Any) -> None:
        self.held.clear()
        super()._write(kind, what)


class LosesLate(Sound):
    last = 0

    def track_point(self, point: MetricPoint) -> None:
        if self.seq > self.last:
            self.last = self.seq
            super().track_point(point)


class Buffers(Sound):
    """Declares `durable_on` each call, but writes only at the end."""

    def open(self, start: RunStart) -> TrackerRun:
        self.lines: list[Any] = []
        return super().open(start)

    def _write(self, kind: str, what: Any) -> None:
        self.lines.append((self.seq, kind, what))

    def close(self, status: Status, error: str | None = None) -> None:
        for seq, kind, what in [*self.lines, (self.seq, "status", status)]:
            self.seq = seq
            super()._write(kind, what)


class OneForAll(Sound):
    """Keeps its file on the class."""

    files: ClassVar[dict[str, Path]] = {}

    def open(self, start: RunStart) -> TrackerRun:
        run = super().open(start)
        self.files.setdefault("file", self.file.resolve())
        return run

    def _write(self, kind: str, what: Any) -> None:
        self.file = self.files["file"]
        super()._write(kind, what)


class FailsAtNaN(Sound):
    def track_point(self, point: MetricPoint) -> None:
        if any(isinstance(value, float) and math.isnan(value) for value in point.values.values()):
            raise ValueError("what is nan?")
        super().track_point(point)


class DiesAtNul(Sound):
    def _write(self, kind: str, what: Any) -> None:
        if "\\u0000" in json.dumps(what):
            os._exit(7)
        super()._write(kind, what)


class ForgetsParams(Sound):
    takes_params = "given"

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        if name == "params" and params and "data" in params and "team" not in params:
            return
        super().set_params(params, name)


class NewRunEachTime(Sound):
    def open(self, start: RunStart) -> TrackerRun:
        super().open(start)
        return TrackerRun(str(time.time_ns()))


class SaysFinished(Sound):
    def close(self, status: Status, error: str | None = None) -> None:
        super().close("finished")


class KeepsEnvironment(Sound):
    def open(self, start: RunStart) -> TrackerRun:
        run = super().open(start)
        Path("environment.json").write_text(json.dumps(dict(os.environ)))
        return run


class Eager(Sound):
    def __init__(self, name: str | None = None, tracker_config: Any = None) -> None:
        super().__init__(None, {key: value for key, value in (tracker_config or {}).items() if key == "path"})
        Path("opened").touch()

    def track(self, metric: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None:
        pass

    def check(self, timeout: float) -> Check:
        Path("checked").touch()
        return Check("ok", "ready")


class HangsAtTheEnd(Sound):
    def close(self, status: Status, error: str | None = None) -> None:
        time.sleep(600)


class HangsInItsCheck(Sound):
    def check(self, timeout: float) -> Check:
        time.sleep(600)
        return Check("ok", "ready")


class LeavesWithSuccess(Sound):
    def track_point(self, point: MetricPoint) -> None:
        os._exit(0)


class Prompts(Sound):
    def open(self, start: RunStart) -> TrackerRun:
        assert not sys.stdin.readline()
        return super().open(start)


class Slow(Sound):
    def track_point(self, point: MetricPoint) -> None:
        time.sleep(0.003)
        super().track_point(point)


class Old:
    """A class with the old interface."""

    def __init__(self, name: Any = None, tracker_config: Any = None) -> None:
        self.path = Path("old.txt")

    def track(self, metric: Any, name: str, stage: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{stage} {name} {metric}\n")
