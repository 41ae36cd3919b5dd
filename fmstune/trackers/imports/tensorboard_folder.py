"""Runs of TensorBoard: one folder of event files each, from any of its writers.

The format was observed with tensorboard 2.21 and torch's `SummaryWriter`.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmstune.config.paths.folders import files_below
from fmstune.text import counted
from fmstune.trackers.imports.past import NotASource, PastRun, PastText
from fmstune.trackers.records import MetricPoint, Status
from fmstune.trackers.tensorboard.files import event_files, hparams_file, mark_of, stage_and_name
from fmstune.trackers.tensorboard.media import unfenced

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

_MOST_CHECKED = 4096
"""The longest record, in bytes, whose checksum is verified, as that is slow in Python: points are shorter."""
_PARAMS = ("args", "model_config")
"""Texts written by transformers' callback."""
_STATUSES: dict[str, Status] = {"finished": "finished", "failed": "failed", "interrupted": "interrupted"}
_ENDS: dict[int, Status] = {1: "finished", 2: "failed"}  # STATUS_SUCCESS and STATUS_FAILURE of its hparams


def find(source: Path) -> list[Path]:
    """The folders with event files at a path or below it, also behind links, as TensorBoard shows them, or
    the path itself if it is an event file. Raises `OSError` for a folder that cannot be read."""
    if source.is_file():
        return [source] if "tfevents" in source.name else []
    if not source.is_dir():
        return []
    files = (path for path in files_below(source) if "tfevents" in path.name and path.is_file())
    return sorted({path.parent for path in files})


def read(folders: list[Path], source: Path) -> Iterator[PastRun]:
    """Yield the runs in these folders, one per folder. Raises `NotASource` without TensorBoard.

    `SummaryWriter.add_hparams` writes to a folder of its own, named after the time. That folder belongs to
    the enclosing run if it is the only one, or equals the others: a resumed training writes it again.
    Otherwise each is a run, as TensorBoard shows them, such as those of a sweep.
    """
    try:
        import tensorboard.compat.proto.event_pb2  # noqa: F401
    except ImportError:
        raise NotASource("TensorBoard's files need it: pip install 'fmstune[tensorboard]'.") from None
    sessions: dict[Path, list[_Reading]] = {}
    known = set(folders)
    for folder in folders:
        if folder.parent in known and _is_moment(folder.name) and (session := _read(folder)).is_session:
            sessions.setdefault(folder.parent, []).append(session)
    taken = set[Path]()
    for folder in folders:
        if folder in taken:
            continue
        run, inside = _read(folder), sessions.get(folder, [])
        if run.owns(inside):
            taken |= {session.folder for session in inside}
            run.take(inside)
        elif inside and run.is_empty:
            continue  # the file that `SummaryWriter` starts before anything is logged
        yield run.run(source)


def _read(folder: Path) -> _Reading:
    """Read the files of a folder, or a single file."""
    read = _Reading(folder)
    for path in [folder] if folder.is_file() else (*hparams_file(folder), *event_files(folder)):
        read.file(path)
    return read


def _is_moment(name: str) -> bool:
    with contextlib.suppress(ValueError):
        return float(name) > 1e9
    return False


@dataclass
class _Reading:
    """A run while its files are read, in the order in which TensorBoard reads them."""

    folder: Path
    id: str | None = None
    points: list[MetricPoint] = field(default_factory=list)
    texts: list[PastText] = field(default_factory=list)
    params: dict[str, dict[str, Any]] = field(default_factory=dict)
    hparams: dict[str, Any] = field(default_factory=dict)
    status: Status | None = None
    error: str | None = None
    began: float | None = None
    plugins: dict[str, str] = field(default_factory=dict)  # by tag; only a tag's first event has it
    others: dict[str, set[str]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether it contains no data of a run."""
        held = (self.points, self.texts, self.params, self.hparams, self.others, self.lost)
        return not any(held) and self.id is None and self.status is None

    @property
    def is_session(self) -> bool:
        """Whether this comes from one call of `add_hparams`: hyperparameters, and metrics once."""
        tags = [(point.stage, *point.values) for point in self.points]
        others = (self.texts, self.params, self.others, self.lost)
        return bool(self.hparams) and self.id is None and not any(others) and len(set(tags)) == len(tags)

    def owns(self, sessions: list[_Reading]) -> bool:
        """Whether the sessions in its subfolders belong to this run, which has no hyperparameters itself."""
        if not sessions or self.hparams or self.id is not None:
            return False
        same = all(session.hparams == sessions[0].hparams for session in sessions)
        return len(sessions) == 1 or (same and not self.is_empty)

    def take(self, sessions: list[_Reading]) -> None:
        """Merge sessions into this run."""
        for session in sessions:
            self.hparams |= session.hparams
            self.points += session.points
            self.status = self.status or session.status
            if session.began is not None:
                self.began = min(self.began or session.began, session.began)
        if len(sessions) > 1:
            same = f"{len(sessions)} sessions of the same hyperparameters"
            self.lost.append(f"{same} are taken for those of this run, which was resumed")

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

    def _text(self, tag: str, given: str, event: Event) -> None:
        tag, text = tag.removesuffix("/text_summary"), unfenced(given)  # `SummaryWriter` adds this suffix
        if tag == "status" and (status := _STATUSES.get(text.partition(":")[0])):
            self.status, self.error = status, text.partition(": ")[2] or None
            return
        # Params as marked by fmstune's tracker, and those of transformers' callback. Any other JSON is a
        # text.
        if event.step == 0 and (tag in _PARAMS or (self.id is not None and given.startswith("```json\n"))):
            with contextlib.suppress(ValueError, RecursionError):
                if isinstance(found := json.loads(text), dict):
                    known = self.params.setdefault(tag, {})
                    if tag in _PARAMS and known and known != found:
                        self.lost.append(
                            f"{tag} was written again with other values: the last of each is kept"
                        )
                    known |= found
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
            value = getattr(held, kind) if kind else None
            if self.hparams.setdefault(key, value) != value:  # TensorBoard shows the first, too
                self.lost.append(f"the hyperparameter {key} was written again: {value!r} is not kept")
        if said.HasField("session_end_info"):
            self.status = self.status or _ENDS.get(said.session_end_info.status)

    def run(self, source: Path) -> PastRun:
        if self.status is None:
            self.lost.append("TensorBoard does not record how it ended: it is assumed finished")
        for kind, named in sorted(self.others.items()):
            self.lost.append(f"{counted(len(named), kind)} not kept, the first of them {min(named)}")
        labels = {key: self.hparams.pop(f"run.{key}", None) for key in ("group", "tags", "notes")}
        folder = self.folder.resolve()
        tags = str(labels["tags"]).split(", ") if labels["tags"] else []
        return PastRun(
            "tensorboard",
            self.id or str(folder),
            folder.name if self.folder == source else str(self.folder.relative_to(source)),
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
    """Params and another writer's hyperparameters. fmstune's own hyperparameters are already part of its
    params."""
    known = {key for values in params.values() for key in values}
    left = {key: value for key, value in hparams.items() if key not in known}
    return {**params, "params": {**params.get("params", {}), **left}} if left else dict(params)


def _number(value: Summary.Value) -> float:
    if value.WhichOneof("value") == "simple_value":
        return float(value.simple_value)
    from tensorboard.util.tensor_util import make_ndarray

    return float(make_ndarray(value.tensor).ravel()[0])


def _events(path: Path, lost: list[str]) -> Iterator[Event]:
    """The records of a file. Damaged ones are reported, and skipped if their length is known."""
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
