"""Runs of TensorBoard: a folder of event files each, as any of its writers leaves them.

What is said of the format was seen with tensorboard 2.21 and torch's `SummaryWriter`.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmstune.text import counted
from fmstune.trackers.imports.past import NotASource, PastRun, PastText
from fmstune.trackers.records import MetricPoint, Status
from fmstune.trackers.tensorboard_files import event_files, hparams_file, mark_of, stage_and_name
from fmstune.trackers.tensorboard_media import unfenced

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

_MOST_CHECKED = 4096
"""Bytes of a record whose checksum is looked at, which is slow in Python: points are shorter."""
_STATUSES: dict[str, Status] = {"finished": "finished", "failed": "failed", "interrupted": "interrupted"}
_ENDS: dict[int, Status] = {1: "finished", 2: "failed"}  # STATUS_SUCCESS and STATUS_FAILURE of its hparams


def find(source: Path) -> list[Path]:
    """The folders with event files at a path or below it, or the one event file that it is."""
    if source.is_file():
        return [source] if "tfevents" in source.name else []
    folders = {path.parent for path in source.rglob("*tfevents*") if path.is_file()}
    # `SummaryWriter.add_hparams` puts its own into a folder that is called after the time.
    return sorted(each for each in folders if not (_is_moment(each.name) and each.parent in folders))


def read(folders: list[Path], source: Path) -> Iterator[PastRun]:
    """The runs in these folders. Raises `NotASource` without TensorBoard."""
    try:
        import tensorboard.compat.proto.event_pb2  # noqa: F401
    except ImportError:
        raise NotASource("TensorBoard's files need it: pip install 'fmstune[tensorboard]'.") from None
    for folder in folders:
        files = [folder] if folder.is_file() else _files(folder)
        read = _Reading(folder)
        for path in files:
            read.file(path)
        yield read.run(source)


def _files(folder: Path) -> list[Path]:
    inner = [each for each in sorted(folder.iterdir()) if each.is_dir() and _is_moment(each.name)]
    return [path for each in (folder, *inner) for path in (*hparams_file(each), *event_files(each))]


def _is_moment(name: str) -> bool:
    with contextlib.suppress(ValueError):
        return float(name) > 1e9
    return False


@dataclass
class _Reading:
    """A run as its files are read, in the order in which TensorBoard reads them."""

    folder: Path
    id: str | None = None
    points: list[MetricPoint] = field(default_factory=list)
    texts: list[PastText] = field(default_factory=list)
    params: dict[str, dict[str, Any]] = field(default_factory=dict)
    hparams: dict[str, Any] = field(default_factory=dict)
    status: Status | None = None
    error: str | None = None
    began: float | None = None
    plugins: dict[str, str] = field(default_factory=dict)  # of a tag, which its first event says alone
    others: dict[str, set[str]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)

    def file(self, path: Path) -> None:
        for event in _events(path, self.lost):
            if event.file_version:
                self.id = mark_of(event).get("run_id") or self.id
                continue
            values: dict[str | None, dict[str, float]] = {}
            for value in event.summary.value:
                self._value(value, event, values)
            if event.summary.value and "_hparams_" not in event.summary.value[0].tag:
                self.began = min(self.began or event.wall_time, event.wall_time)
            for stage, found in values.items():
                self.points.append(MetricPoint(found, stage, event.step, None, event.wall_time))

    def _value(self, value: Summary.Value, event: Event, values: dict[str | None, dict[str, float]]) -> None:
        kind, plugin = value.WhichOneof("value"), value.metadata.plugin_data.plugin_name
        plugin = self.plugins.setdefault(value.tag, plugin) or plugin
        if plugin == "hparams":
            self._session(value)
        elif kind == "simple_value" or (kind == "tensor" and plugin == "scalars"):
            stage, name = stage_and_name(value.tag)
            values.setdefault(stage, {})[name] = _number(value)
        elif kind == "tensor" and plugin == "text" and len(value.tensor.tensor_shape.dim) < 2:
            for data in value.tensor.string_val or [value.tensor.tensor_content]:
                self._text(value.tag, data.decode("utf-8", "replace"), event)
        elif value.tag:
            what = {"image": "image", "histo": "histogram", "audio": "audio"}.get(str(kind), plugin)
            self.others.setdefault("table" if what == "text" else what or "value", set()).add(value.tag)

    def _text(self, tag: str, text: str, event: Event) -> None:
        tag, text = tag.removesuffix("/text_summary"), unfenced(text)  # which `SummaryWriter` adds
        if tag == "status" and (status := _STATUSES.get(text.partition(":")[0])):
            self.status, self.error = status, text.partition(": ")[2] or None
            return
        with contextlib.suppress(ValueError, RecursionError):
            # Params, as fmstune writes them, and the arguments, as the callback of transformers does.
            if event.step == 0 and isinstance(found := json.loads(text), dict):
                self.params[tag] = found
                return
        stage, name = stage_and_name(tag)
        self.texts.append(PastText(text, name, stage, event.step, event.wall_time))

    def _session(self, value: Summary.Value) -> None:
        from google.protobuf.message import DecodeError
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        try:
            said = HParamsPluginData.FromString(value.metadata.plugin_data.content)
        except DecodeError:
            self.lost.append(f"its hyperparameters ({value.tag}) cannot be read")
            return
        for key, held in said.session_start_info.hparams.items():
            kind = held.WhichOneof("kind")
            self.hparams[key] = getattr(held, kind) if kind else None
        if said.HasField("session_end_info"):
            self.status = self.status or _ENDS.get(said.session_end_info.status)

    def run(self, source: Path) -> PastRun:
        if self.status is None:
            self.lost.append("TensorBoard does not know how it ended: it is taken for finished")
        for kind, named in sorted(self.others.items()):
            self.lost.append(f"{counted(len(named), kind)} not kept, the first of them {min(named)}")
        labels = {key: self.hparams.pop(f"run.{key}", None) for key in ("group", "tags", "notes")}
        folder = self.folder.resolve()
        tags = str(labels["tags"]).split(", ") if labels["tags"] else []
        return PastRun(
            "tensorboard",
            self.id or str(folder),
            folder.name if folder == source.resolve() else str(folder.relative_to(source.resolve())),
            self.began or folder.stat().st_mtime,
            self.status or "finished",
            tuple(self.points),
            self.params if self.id else _with(self.params, self.hparams),
            error=self.error,
            group=labels["group"],
            tags=tuple(tags),
            notes=labels["notes"],
            texts=tuple(self.texts),
            lost=tuple(self.lost),
        )


def _with(params: Mapping[str, dict[str, Any]], hparams: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Params and hyperparameters of another writer. fmstune's own are params, of which they are a part."""
    known = {key for values in params.values() for key in values}
    left = {key: value for key, value in hparams.items() if key not in known}
    return {**params, "params": {**params.get("params", {}), **left}} if left else dict(params)


def _number(value: Summary.Value) -> float:
    if value.WhichOneof("value") == "simple_value":
        return float(value.simple_value)
    from tensorboard.util.tensor_util import make_ndarray

    return float(make_ndarray(value.tensor).ravel()[0])


def _events(path: Path, lost: list[str]) -> Iterator[Event]:
    """The records of a file; what is damaged is passed over, where its length is known, and said."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    damaged = 0
    try:
        with path.open("rb") as file:
            while head := file.read(12):
                at = file.tell() - len(head)
                length = struct.unpack_from("<Q", head)[0] if len(head) == 12 else 0
                if len(head) == 12 and masked_crc32c(head[:8]) != struct.unpack_from("<I", head, 8)[0]:
                    lost.append(f"{path} is damaged at byte {at}; what is behind it is lost")
                    break
                data, check = file.read(length), file.read(4)
                if len(head) < 12 or len(data) < length or len(check) < 4:
                    lost.append(f"{path} is cut off at byte {at}; what was behind it is lost")
                    break
                if length <= _MOST_CHECKED and masked_crc32c(data) != struct.unpack("<I", check)[0]:
                    damaged += 1
                    continue
                try:
                    yield Event.FromString(data)
                except DecodeError:
                    damaged += 1
    except OSError as error:
        lost.append(f"{path} cannot be read: {error.strerror}")
    if damaged:
        lost.append(f"{counted(damaged, 'record')} of {path} cannot be read: damaged")
