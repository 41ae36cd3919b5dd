"""The tracker's view of a ClearML task, wherever it is stored: on a server, or in an offline session.

`clearml.Task` is not used. It keeps one task per process, hooks into argparse, matplotlib, signals and
process exit, sends from threads that log what they could not send, or retry forever, turns NaN into 0, and
shifts the iterations of a continued task. This module uses the interface that it sends through.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fmstune.trackers.clearml.events import Event
from fmstune.trackers.continued import MARK
from fmstune.trackers.records import Artifact, Status

STATUSES: Mapping[Status, str] = {"finished": "completed", "failed": "failed", "interrupted": "stopped"}
PROPERTIES = "properties"
"""The section of params that ClearML shows as a task's properties; it is writable in any status."""
MADE_AS = f"{MARK}_made_as"
Params = dict[str, dict[str, dict[str, Any]]]
"""ClearML's record of a param, by section and name."""


@dataclass(frozen=True, slots=True)
class Labels:
    """A task's name, project and tags."""

    name: str
    project: str
    tags: tuple[str, ...] = ()
    comment: str | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """The state of a task: its status in ClearML's terms, our mark, and a note for the user."""

    id: str
    status: str = "created"
    mark: dict[str, Any] = field(default_factory=dict)
    page: str | None = None
    note: str | None = None


def is_published(task: Task) -> bool:
    """Whether a task was published: it accepts no more data."""
    return task.status in ("published", "publishing")


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A file of an artifact, with its storage location."""

    key: str
    uri: str
    size: int
    digest: str


class Store(Protocol):
    """Where tasks are stored. All methods raise if something could not be stored."""

    def find(self, task_id: str) -> Task | None:
        """The task of this id; `None` when there is none."""

    def made_as(self, labels: Labels, new_run_id: str) -> Task | None:
        """The task that `create` created for this id."""

    def create(self, labels: Labels, new_run_id: str | None) -> Task:
        """Create a task that `made_as` finds by `new_run_id`."""

    def begin(self, task: Task, labels: Labels) -> Task:
        """Set an existing task to running, with these labels."""

    def write(self, events: Sequence[Event], mark: Mapping[str, Any]) -> None:
        """Store events, then our mark."""

    def set_params(self, section: str, items: Sequence[Mapping[str, Any]]) -> None:
        """Replace a section of params."""

    def put_file(self, path: str, file: Path) -> tuple[str, str]:
        """Store a file under a path of the task; return its key and address."""

    def put_artifact(self, artifact: Artifact, files: Sequence[Uploaded]) -> None:
        """Record the stored files of an artifact."""

    def end(self, status: Status, error: str | None) -> None:
        """End the task."""

    def resume(self) -> None:
        """Set the task to running again, after `end`."""

    def holds(self) -> bool:
        """Whether the storage is as this process left it, as far as a cheap check can tell."""


def safe(part: str) -> str:
    """A unique, safe component for a file's path."""
    fitting = re.sub(r"[^\w.-]", "_", part, flags=re.ASCII)[:100].strip(".")
    if fitting == part:
        return part
    return f"{fitting}-{hashlib.sha1(part.encode()).hexdigest()[:8]}"


def uploaded(key: str, uri: str, file: Path) -> Uploaded:
    """The record of a file stored at `uri`."""
    digest = hashlib.sha256()
    with file.open("rb") as data:
        while part := data.read(1 << 20):
            digest.update(part)
    return Uploaded(key, uri, file.stat().st_size, digest.hexdigest())


def param(section: str, name: str, value: str, kind: str = "str") -> dict[str, Any]:
    """A param in ClearML's format: a string, and the name of its type."""
    return {"section": section, "name": name, "value": value, "type": kind, "description": ""}


def properties(mark: Mapping[str, Any], new_run_id: str | None = None) -> dict[str, dict[str, Any]]:
    """The properties that hold our mark."""
    found = {MARK: param(PROPERTIES, MARK, json.dumps(dict(mark)))} if mark else {}
    return found if new_run_id is None else found | {MADE_AS: param(PROPERTIES, MADE_AS, new_run_id)}


def mark_of(params: Any) -> dict[str, Any]:
    """Our mark in the params of a task; empty if there is none."""
    try:
        found = json.loads(params[PROPERTIES][MARK]["value"])
    except (KeyError, TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def artifacts_of(artifact: Artifact, files: Sequence[Uploaded], moment: int) -> list[dict[str, Any]]:
    """The files of an artifact in ClearML's format: one artifact each."""
    return [
        {
            "key": f"{artifact.name}/{file.key}", "type": artifact.type or "custom", "mode": "output",
            "uri": file.uri, "content_size": file.size, "hash": file.digest, "timestamp": moment,
            "type_data": {"preview": "", "content_type": "application/octet-stream"},
        }
        for file in files
    ]  # fmt: skip
