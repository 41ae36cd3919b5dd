"""What a task of ClearML's is to the tracker, wherever it is kept: on a server, or in an offline session.

`clearml.Task` is not used. It keeps one task a process, hooks into argparse, matplotlib, signals and the end
of the process, sends from threads that log what they could not send, or try it for ever, turns NaN into 0,
and shifts the iterations of a task that is continued. What is used is the interface that it sends through.
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
"""The section of params that ClearML shows as a task's properties, which can be written in any status."""
MADE_AS = f"{MARK}_made_as"
Params = dict[str, dict[str, dict[str, Any]]]
"""Of each section and name, what ClearML has of a param."""


@dataclass(frozen=True, slots=True)
class Labels:
    """What a task is called and sorted by."""

    name: str
    project: str
    tags: tuple[str, ...] = ()
    comment: str | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """What is known of a task: its status in ClearML's words, our mark, and what a person should know."""

    id: str
    status: str = "created"
    mark: dict[str, Any] = field(default_factory=dict)
    page: str | None = None
    note: str | None = None


def is_published(task: Task) -> bool:
    """Whether a task was published: it takes nothing more."""
    return task.status in ("published", "publishing")


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A file of an artifact, by where it is kept now."""

    key: str
    uri: str
    size: int
    digest: str


class Store(Protocol):
    """Where tasks are kept. All methods raise when something was not kept."""

    def find(self, task_id: str) -> Task | None:
        """The task of this id; `None` when there is none."""

    def made_as(self, labels: Labels, new_run_id: str) -> Task | None:
        """The task that `create` made for this id."""

    def create(self, labels: Labels, new_run_id: str | None) -> Task:
        """A new task, which is known by `new_run_id` from then on."""

    def begin(self, task: Task, labels: Labels) -> Task:
        """Let a task that is there run, under these labels."""

    def write(self, events: Sequence[Event], mark: Mapping[str, Any]) -> None:
        """Keep events, and our mark after them."""

    def set_params(self, section: str, items: Sequence[Mapping[str, Any]]) -> None:
        """Replace a section of params."""

    def put_file(self, path: str, file: Path) -> tuple[str, str]:
        """Keep a file under a path of the task's; its key and its address there."""

    def put_artifact(self, artifact: Artifact, files: Sequence[Uploaded]) -> None:
        """Note the files of an artifact that were kept."""

    def end(self, status: Status, error: str | None) -> None:
        """End the task."""

    def resume(self) -> None:
        """Let the task run once more, after `end`."""

    def holds(self) -> bool:
        """Whether the storage is as this process has left it, as far as that is seen in no time."""


def safe(part: str) -> str:
    """A part of the path of a file, which is another one for each."""
    fitting = re.sub(r"[^\w.-]", "_", part, flags=re.ASCII)[:100].strip(".")
    if fitting == part:
        return part
    return f"{fitting}-{hashlib.sha1(part.encode()).hexdigest()[:8]}"


def uploaded(key: str, uri: str, file: Path) -> Uploaded:
    """What is known of a file that is kept at `uri`."""
    digest = hashlib.sha256()
    with file.open("rb") as data:
        while part := data.read(1 << 20):
            digest.update(part)
    return Uploaded(key, uri, file.stat().st_size, digest.hexdigest())


def param(section: str, name: str, value: str, kind: str = "str") -> dict[str, Any]:
    """A param as ClearML has it: a text, and the name of its type."""
    return {"section": section, "name": name, "value": value, "type": kind, "description": ""}


def properties(mark: Mapping[str, Any], new_run_id: str | None = None) -> dict[str, dict[str, Any]]:
    """The properties that hold our mark."""
    found = {MARK: param(PROPERTIES, MARK, json.dumps(dict(mark)))} if mark else {}
    return found if new_run_id is None else found | {MADE_AS: param(PROPERTIES, MADE_AS, new_run_id)}


def mark_of(params: Any) -> dict[str, Any]:
    """Our mark in the params of a task; empty where there is none."""
    try:
        found = json.loads(params[PROPERTIES][MARK]["value"])
    except (KeyError, TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def artifacts_of(artifact: Artifact, files: Sequence[Uploaded], moment: int) -> list[dict[str, Any]]:
    """The files of an artifact as ClearML has them: one artifact each."""
    return [
        {
            "key": f"{artifact.name}/{file.key}", "type": artifact.type or "custom", "mode": "output",
            "uri": file.uri, "content_size": file.size, "hash": file.digest, "timestamp": moment,
            "type_data": {"preview": "", "content_type": "application/octet-stream"},
        }
        for file in files
    ]  # fmt: skip
