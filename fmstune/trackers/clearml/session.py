"""Tasks in offline sessions: folders in the format of ClearML's SDK, for `Task.import_offline_session` and
`clearml-task --import-offline-session`. The SDK's behaviour was observed with 2.1.12.

    <folder>/offline-<id>/task.json      the task, with our mark
                          metrics.jsonl  a line for each time that events were written, with a list of them
                          data/…         files
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fmstune.system.files import replace_text
from fmstune.trackers.clearml.events import Event
from fmstune.trackers.clearml.stores import (
    PROPERTIES,
    STATUSES,
    Labels,
    Task,
    Uploaded,
    artifacts_of,
    mark_of,
    properties,
    safe,
)
from fmstune.trackers.records import Artifact, Status

_PREFIX = "offline-"
_OWN = "fmstune"
"""Our own entry in task.json, which ClearML ignores: the number of complete bytes in metrics.jsonl."""


class SessionStore:
    """One task in a folder below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._root = folder
        self._id = ""
        self._about: dict[str, Any] = {}
        self._size = 0
        self._file: tuple[int, int] | None = None

    def find(self, task_id: str) -> Task | None:
        place = self._root / task_id
        if not task_id.startswith(_PREFIX) or (about := _read(place)) is None:
            return None
        found = mark_of(about.get("hyperparams"))
        if _length(place) < _whole(about):
            found["last_event"] = 0  # it was truncated
        note = f"offline, send it with `clearml-task --import-offline-session {shlex.quote(str(place))}`"
        return Task(task_id, str(about.get("status")), found, note=note)

    def made_as(self, labels: Labels, new_run_id: str) -> Task | None:
        return self.find(_PREFIX + new_run_id)

    def create(self, labels: Labels, new_run_id: str | None) -> Task:
        task_id = _PREFIX + (new_run_id or uuid.uuid4().hex)
        if (self._root / task_id).exists():  # from another future of the run
            task_id = _PREFIX + uuid.uuid4().hex
        place = self._root / task_id
        place.mkdir(parents=True)
        about = {
            "id": task_id, "type": "training", "status": "created", "created": _now(), "script": {},
            "hyperparams": {PROPERTIES: properties({}, new_run_id)}, "execution": {"artifacts": []},
            "offline_folder": str(place), "offline_output_models": [],
        }  # fmt: skip
        _write(place, about)
        found = self.find(task_id)
        assert found is not None
        return found

    def begin(self, task: Task, labels: Labels) -> Task:
        self._id = task.id
        place, about = self._place, _read(self._place) or {}
        tags = sorted({*(about.get("tags") or []), *labels.tags})
        about |= {"name": labels.name, "project_name": labels.project, "tags": tags, "status": "in_progress"}
        if labels.comment:
            about["comment"] = labels.comment
        for ended in ("status_reason", "status_message", "completed"):
            about.pop(ended, None)
        about.setdefault("started", _now())
        # ClearML's import finds an artifact by its path below this folder, which may have been moved.
        before, about["offline_folder"] = str(about.get("offline_folder")), str(place)
        for each in about["execution"]["artifacts"]:
            if before != str(place) and each["uri"].startswith(f"{before}{os.sep}"):
                each["uri"] = f"{place}{each['uri'][len(before) :]}"
        # A killed process may have left half a line, at which ClearML's import would stop.
        with (place / "metrics.jsonl").open("a+b") as file:
            self._size = min(_whole(about), file.seek(0, os.SEEK_END))
            file.seek(max(self._size - 1, 0))
            if self._size and file.read(1) != b"\n":  # it was truncated
                file.seek(0)
                self._size = file.read(self._size).rfind(b"\n") + 1
            file.truncate(self._size)
        self._file = _identity(place)
        self._about = about
        self._save()
        return task

    def write(self, events: Sequence[Event], mark: Mapping[str, Any]) -> None:
        if not self.holds():
            return  # writing now would hide that
        if events:
            lines = [{**event, "task": self._id} for event in events]
            data = (json.dumps(lines, ensure_ascii=True) + "\n").encode()
            with (self._place / "metrics.jsonl").open("ab") as file:
                file.write(data)
                file.flush()
            self._size += len(data)
        self._about["hyperparams"].setdefault(PROPERTIES, {}).update(properties(mark))
        self._save()

    def set_params(self, section: str, items: Sequence[Mapping[str, Any]]) -> None:
        self._about["hyperparams"][section] = {item["name"]: dict(item) for item in items}
        if self.holds():
            self._save()

    def put_file(self, path: str, file: Path) -> tuple[str, str]:
        # ClearML's import replaces this id by the task's new one.
        key = f"{safe(self._about['project_name'])}/{safe(self._about['name'])}.{self._id}/{path}"
        target = self._place / "data" / key
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        return key, str(target)

    def put_artifact(self, artifact: Artifact, files: Sequence[Uploaded]) -> None:
        made = artifacts_of(artifact, files, int(artifact.time or time.time()))
        held = {each["key"]: each for each in self._about["execution"]["artifacts"]}
        self._about["execution"]["artifacts"] = list((held | {each["key"]: each for each in made}).values())
        if self.holds():
            self._save()

    def end(self, status: Status, error: str | None) -> None:
        said = {"status_reason": error, "status_message": error} if error else {}
        self._about |= {"status": STATUSES[status], "completed": _now(), **said}
        if self.holds():
            self._save()

    def resume(self) -> None:
        self._about["status"] = "in_progress"

    def holds(self) -> bool:
        about = _read(self._place)
        if about is None or _identity(self._place) != self._file:
            return False
        return _whole(about) == _length(self._place) == self._size

    # -- the rest -----------------------------------------------------------------------------

    @property
    def _place(self) -> Path:
        return self._root / self._id

    def _save(self) -> None:
        self._about[_OWN] = {"bytes": self._size}
        self._about["last_update"] = _now()
        _write(self._place, self._about)


def _read(place: Path) -> dict[str, Any] | None:
    try:
        about = json.loads((place / "task.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return about if isinstance(about, dict) else None


def _write(place: Path, about: Mapping[str, Any]) -> None:
    replace_text(place / "task.json", json.dumps(about, sort_keys=True))


def _whole(about: Mapping[str, Any]) -> int:
    own = about.get(_OWN)
    return int(own.get("bytes", 0)) if isinstance(own, Mapping) else 0


def _length(place: Path) -> int:
    try:
        return (place / "metrics.jsonl").stat().st_size
    except OSError:
        return 0


def _identity(place: Path) -> tuple[int, int] | None:
    try:
        found = (place / "metrics.jsonl").stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _now() -> str:
    return datetime.now(UTC).isoformat()
