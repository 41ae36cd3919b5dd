"""Where a trackio run is stored: a database on this machine, or a trackio server, including a Space.

`trackio.init` and `trackio.log` are not used: they buffer for half a second, number events randomly, accept
no time, ask the hub for the user, and turn each failure into a warning, so that nothing tells what arrived.
This module uses the functions that they, trackio's own importers and its server write through, which store
an event of one `log_id` once. trackio's behaviour was observed with 0.43.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fmstune.trackers.records import Artifact
from fmstune.trackers.values.plain import are_finite

_TIMEOUT = 20.0
"""Seconds per request; a shipper that is silent for a minute counts as hung."""


class Row(NamedTuple):
    """What is logged together: values, a step, the time in trackio's format, and a unique id."""

    values: Mapping[str, Any]
    step: int
    time: str
    log_id: str


_FEW = 8
_COLUMNS = {"id", "run_id", "timestamp", "run_name", "step", "metrics", "log_id", "space_id"}


@dataclass(frozen=True, slots=True)
class Held:
    """What trackio stores of a run: its name and its config."""

    name: str
    config: dict[str, Any]


class Store(Protocol):
    """Where runs of one project are stored. All methods raise what trackio raises."""

    def held(self, run_id: str) -> Held | None:
        """The run of this id; `None` when there is none."""

    def config(self, run_id: str) -> Mapping[str, Any] | None:
        """The config of the run of this id; a faster lookup than its name."""

    def write(self, run_id: str, name: str, rows: Sequence[Row], config: Mapping[str, Any]) -> None:
        """Add the missing rows, and once they are safe, replace the config."""

    def put_image(self, name: str, step: int, file: Path, called: str) -> str:
        """Store a file of a run under our name, and return its location."""

    def put_files(self, run_id: str, name: str, artifact: Artifact) -> None:
        """Store files; the same content is the same version."""

    def rename(self, run_id: str, before: str, name: str) -> None:
        """Rename a run."""


class LocalStore:
    """The database of a project below TRACKIO_DIR.

    On a network file system, where SQLite is not safe, trackio's writers leave files in an inbox, which its
    dashboard loads into the database; this class does the same.
    """

    def __init__(self, project: str) -> None:
        from trackio import fragments
        from trackio.utils import get_storage_mode

        self._project = project
        self._inbox = fragments.local_inbox_dir() if get_storage_mode() == "jsonl" else None
        self._writer: fragments.FragmentWriter | None = None

    def held(self, run_id: str) -> Held | None:
        from trackio.sqlite_storage import SQLiteStorage

        # First, as the dashboard may load it into the database now.
        if (found := self._in_the_inbox(run_id)) is not None:
            return found
        records = [each for each in SQLiteStorage.get_run_records(self._project) if each["id"] == run_id]
        if not records:
            return None
        config = SQLiteStorage.get_run_config(self._project, run_id=run_id)
        return Held(str(records[-1]["name"]), config or {})

    def config(self, run_id: str) -> Mapping[str, Any] | None:
        from trackio.sqlite_storage import SQLiteStorage

        if self._inbox is not None:
            return found.config if (found := self.held(run_id)) is not None else None
        config: Mapping[str, Any] | None = SQLiteStorage.get_run_config(self._project, run_id=run_id)
        return config

    def write(self, run_id: str, name: str, rows: Sequence[Row], config: Mapping[str, Any]) -> None:
        from trackio import fragments
        from trackio.sqlite_storage import SQLiteStorage

        if self._inbox is None:
            # `bulk_log` searches each value for a trace, and copies it three times: two thirds of the time.
            # A kill after the numbers leaves rows that their ids identify when they are delivered again.
            numbers = [row for row in rows[:-1] if are_finite([*row.values.values()])]
            if len(numbers) >= _FEW and self._insert(run_id, name, numbers):
                stored = {row.log_id for row in numbers}
                rows = [row for row in rows if row.log_id not in stored]
            SQLiteStorage.bulk_log(
                self._project, name, [dict(row.values) for row in rows], [row.step for row in rows],
                [row.time for row in rows], dict(config), [row.log_id for row in rows], run_id=run_id,
            )  # fmt: skip
            return
        where = {"project": self._project, "run": name, "run_id": run_id, "config": config}
        records = []
        for row in rows:
            # A row that only carries the config may be loaded before the row with the same id.
            log_id = row.log_id if row.values else uuid.uuid4().hex
            said = {"metrics": row.values, "step": row.step, "timestamp": row.time, "log_id": log_id}
            records.append(fragments.metric_record(where | said))
        # The dashboard reads folders and files in the order of their names, and keeps the last config.
        self._writer = self._writer or fragments.FragmentWriter(f"{run_id}-{time.time_ns()}")
        self._writer.write_local(records)

    def _insert(self, run_id: str, name: str, rows: Sequence[Row]) -> bool:
        """Add rows of finite numbers as `bulk_log` does, if the table has the columns that it has in 0.43;
        return whether it has."""
        import orjson
        from trackio.sqlite_storage import SQLiteStorage

        found = ((row.time, run_id, name, row.step, orjson.dumps(row.values), row.log_id) for row in rows)
        try:
            path, lock = SQLiteStorage.get_project_db_path(self._project), SQLiteStorage._get_process_lock
            if not path.exists():
                SQLiteStorage.init_db(self._project)
            with lock(self._project), SQLiteStorage._get_connection(path) as connection:
                if set(SQLiteStorage._table_columns(connection, "metrics")) != _COLUMNS:
                    return False
                connection.executemany(
                    "INSERT OR IGNORE INTO metrics (timestamp, run_id, run_name, step, metrics, log_id) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    found,
                )
                connection.commit()
        # Another version of trackio, or an integer beyond 64 bits; what else is wrong, `bulk_log` raises.
        except (AttributeError, TypeError, sqlite3.Error):
            return False
        return True

    def put_image(self, name: str, step: int, file: Path, called: str) -> str:
        from trackio.media import get_project_media_path
        from trackio.utils import MEDIA_DIR

        place = Path(get_project_media_path(self._project, name, step)) / called
        shutil.copyfile(file, place)
        return str(place.relative_to(MEDIA_DIR))

    def put_files(self, run_id: str, name: str, artifact: Artifact) -> None:
        from trackio.sqlite_storage import SQLiteStorage

        made = _artifact(run_id, artifact)
        manifest = made._build_manifest(self._project)
        SQLiteStorage.commit_artifact_version(
            self._project, made.name, made.type, None, manifest, None, [], name, run_id
        )

    def rename(self, run_id: str, before: str, name: str) -> None:
        from trackio.sqlite_storage import SQLiteStorage

        if self._inbox is None:
            SQLiteStorage.rename_run(self._project, before, name, run_id=run_id)

    def _in_the_inbox(self, run_id: str) -> Held | None:
        """The run according to the newest file of the inbox."""
        from trackio import fragments

        try:
            files = list(self._inbox.glob(f"{run_id}-*/*.jsonl")) if self._inbox is not None else []
            for file in sorted(files, key=lambda each: each.stat().st_mtime_ns, reverse=True):
                for record in fragments.parse_fragment_bytes(file.read_bytes()):
                    if record.get("config"):
                        return Held(str(record["run"]), record["config"])
        except FileNotFoundError:  # loaded meanwhile
            pass
        return None


class RemoteStore:
    """A server started by `trackio show`, or a Space. It timestamps points on arrival."""

    def __init__(self, project: str, source: str, *, write_token: str | None, hub_token: str | None) -> None:
        # The function that chooses between this client and that of older servers first queries with a client
        # that reports usage, and takes a server that does not answer for an old one.
        from trackio.remote_client import _TrackioHTTPClient

        self._project = project
        self._token = hub_token
        timeout = {"timeout": _TIMEOUT}
        self._client = _TrackioHTTPClient(source, hub_token, write_token, timeout)

    def held(self, run_id: str) -> Held | None:
        found = self._client.predict(api_name="/get_run_summary", project=self._project, run_id=run_id)
        return Held(str(found["run"]), found["config"] or {}) if found["num_logs"] else None

    def config(self, run_id: str) -> Mapping[str, Any] | None:
        return found.config if (found := self.held(run_id)) is not None else None

    def write(self, run_id: str, name: str, rows: Sequence[Row], config: Mapping[str, Any]) -> None:
        from trackio.utils import serialize_values

        where = {"project": self._project, "run": name, "run_id": run_id}
        logs = [
            where | {"metrics": serialize_values(row.values), "step": row.step, "log_id": row.log_id}
            for row in rows
        ]
        logs[0]["config"] = serialize_values(config)
        self._client.predict(api_name="/bulk_log", logs=logs, hf_token=self._token)

    def put_image(self, name: str, step: int, file: Path, called: str) -> str:
        from trackio.utils import canonical_project_name

        where = {"project": self._project, "run": name, "step": step, "relative_path": None}
        upload = where | {"uploaded_file": _file(file, called)}
        self._client.predict(api_name="/bulk_upload_media", uploads=[upload], hf_token=self._token)
        return f"{canonical_project_name(self._project)}/{name}/{step}/{called}"

    def put_files(self, run_id: str, name: str, artifact: Artifact) -> None:
        from trackio.cas import hash_file

        made = _artifact(run_id, artifact)
        where = {"project": self._project, "hf_token": self._token}
        manifest = []
        for file in artifact.files:
            digest, size = hash_file(artifact.folder / file)
            manifest.append({"path": file, "digest": digest, "size": size})
        digests = sorted({str(each["digest"]) for each in manifest})
        found = self._client.predict(api_name="/check_artifact_blobs", digests=digests, **where)
        for each in manifest:
            if (digest := each["digest"]) not in found["present"]:
                sent = _file(artifact.folder / str(each["path"]), str(digest))
                upload = {"digest": digest, "uploaded_file": sent}
                self._client.predict(api_name="/bulk_upload_artifact_blob", uploads=[upload], **where)
        self._client.predict(
            api_name="/artifact_log", name=made.name, type=made.type, description=None, metadata=None,
            manifest=manifest, aliases=[], run_name=name, run_id=run_id, **where,
        )  # fmt: skip

    def rename(self, run_id: str, before: str, name: str) -> None:
        self._client.predict(
            api_name="/rename_run", project=self._project, old_name=before, new_name=name, run_id=run_id
        )


def _file(path: Path, called: str) -> dict[str, Any]:
    """A file to send, in the format of the SDK's client."""
    return {"path": str(path.absolute()), "orig_name": called, "meta": {"_type": "gradio.FileData"}}


def _artifact(run_id: str, artifact: Artifact) -> Any:
    import re

    from trackio import Artifact as TrackioArtifact

    name = re.sub(r"[^A-Za-z0-9._-]", "_", artifact.name)[:64]
    made = TrackioArtifact(f"{name}-{run_id}", artifact.type or "file")
    for file in artifact.files:
        made.add_file(artifact.folder / file, file)
    return made
