"""Archives of Comet's offline experiments, parsed by file format as `comet upload` reads them."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Kept:
    """A file in an archive: its content and its metadata."""

    data: bytes
    said: dict[str, Any]
    metadata: dict[str, Any]


@dataclass(frozen=True)
class CometArchive:
    """One archive: the content of `experiment.json`, its messages in order, and its files."""

    about: dict[str, Any]
    messages: list[dict[str, Any]]
    files: dict[str, bytes]

    def points(self) -> Iterator[tuple[str, int | None, Any]]:
        """Name, step and value of each point."""
        for said in self._of("metric_msg"):
            metric = said["metric"]
            yield metric["metricName"], metric.get("step"), metric["metricValue"]

    def params(self) -> dict[str, str]:
        """The last value of each param."""
        return {said["param"]["paramName"]: said["param"]["paramValue"] for said in self._of("parameter_msg")}

    def others(self) -> dict[str, Any]:
        """The last value of each `other` of the experiment."""
        return {said["key"]: said["value"] for said in self._of("log_other")}

    def assets(self, kind: str) -> list[Kept]:
        """The files of a kind, in order."""
        return [
            Kept(self.files[said["file_path"]], said["additional_params"], said["metadata"])
            for said in self._of("file_upload")
            if said["upload_type"] == kind
        ]

    def _of(self, kind: str) -> list[dict[str, Any]]:
        return [message["payload"] for message in self.messages if message["type"] == kind]


def archives(folder: Path) -> list[CometArchive]:
    """The archives of the only experiment in a folder, or in Comet's own folder in it, in order, each
    validated with the SDK's own schemas."""
    from comet_ml import schemas

    validators = {
        "metric_msg": schemas.get_metric_msg_validator(),
        "parameter_msg": schemas.get_parameter_msg_validator(),
        "log_other": schemas.get_log_other_msg_validator(),
        "file_upload": schemas.get_upload_msg_validator(),
    }
    found = []
    own = folder / ".cometml-runs"
    where = own if own.is_dir() else folder
    paths = sorted(where.glob("*.zip"), key=lambda path: int(path.stem.rpartition("-")[2]))
    for path in paths:
        with zipfile.ZipFile(path) as opened:
            files = {name: opened.read(name) for name in opened.namelist()}
        about = json.loads(files["experiment.json"])
        schemas.get_experiment_file_validator().validate(about)
        messages = [json.loads(line) for line in files["messages.json"].decode().splitlines()]
        for message in messages:
            validators[message["type"]].validate(message["payload"])
        found.append(CometArchive(about, messages, files))
    assert len({each.about["offline_id"] for each in found}) <= 1
    return found


def csv_rows(text: str) -> list[dict[str, Any]]:
    """The rows of a CSV file in which only strings are quoted; an empty cell is `None`."""
    lines, cells, at = [], [], 0
    while at < len(text):
        found = re.compile(r'"((?:[^"]|"")*)"([,\n])|([^,\n]*)([,\n])').match(text, at)
        assert found, text[at:]
        quoted, after, bare, after_bare = found.groups()
        cells.append(quoted.replace('""', '"') if quoted is not None else bare or None)
        at = found.end()
        if (after or after_bare) == "\n":
            lines.append(cells)
            cells = []
    head, *rows = lines
    return [dict(zip(head, row, strict=True)) for row in rows]
