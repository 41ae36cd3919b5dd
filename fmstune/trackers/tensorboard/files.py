"""The event files of a run's folder, as TensorBoard reads them: records are appended, each once.

An event of the journal is one record, which carries its number. Each process starts its own file, as
TensorBoard's own writers do; all readers skip the partial last record of a killed one. The SDK's behaviour
was observed with tensorboard 2.21."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmstune.system.files import rename_folder
from fmstune.trackers.records import Status
from fmstune.trackers.tensorboard.records import framed, scalars_event
from fmstune.trackers.values.progressions import Progressions

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

_NAME = "events.out.tfevents."
_HPARAMS = f"{_NAME}0000000001.hparams"
"""Sorts before all others. TensorBoard keeps the first session information that it reads, so this file is
replaced, whereas the others grow."""
_VERSION = "brain.Event:2"
_WRITER = "fmstune "
_NEVER = -(1 << 64)
_DIGITS = 19  # enough for any 64-bit number
_LONGEST_RECORD = 1 << 31  # the limit of protocol buffers
SCALARS, TEXT, SAID, TABLE = "a metric", "a text", "a tracked text", "a table"
IMAGE, HISTOGRAM = "an image", "a histogram"


class EventFiles:
    """The contents of a run's folder, and the file that is appended to.

    `mark` identifies the owner of the newest file, `held` the events of the run `run_id` in the folder,
    `kinds` the kind of each tag, and `steps` the last step of each. `session` has the hyperparameters known
    so far.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        """Read the folder. Changes nothing. Raises `OSError`."""
        from tensorboard.plugins.hparams.metadata import SESSION_END_INFO_TAG, SESSION_START_INFO_TAG
        from tensorboard.plugins.hparams.plugin_data_pb2 import SessionStartInfo

        self.folder = folder
        self.mark: dict[str, Any] = {}
        self.held = Progressions()
        self.kinds = dict.fromkeys((SESSION_START_INFO_TAG, SESSION_END_INFO_TAG), "the session")
        self.kinds["status"] = TEXT
        self.session = SessionStartInfo(start_time_secs=time.time())
        self.steps: dict[str, int] = {}
        self._run_id = run_id
        self._sizes: dict[Path, tuple[int, int]] = {}  # inode and size of each file
        self._file: int | None = None
        self._waiting: dict[int | None, list[bytes]] = {}
        self._path = folder
        for path in event_files(folder):
            self._read(path)
        self._read_session()

    def begin(self, mark: dict[str, Any]) -> None:
        """Start this process's file. Raises `OSError`."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self.folder.mkdir(parents=True, exist_ok=True)
        stamps = [int(part) for path in self._sizes if (part := path.name[len(_NAME) :][:10]).isdecimal()]
        stamp = max([int(time.time()), *(last + 1 for last in stamps)])  # files are read in order of names
        self._path = self.folder / f"{_NAME}{stamp:010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
        self._sizes[self._path] = (os.fstat(self._file).st_ino, 0)
        head = Event(wall_time=time.time(), file_version=_VERSION)
        head.source_metadata.writer = f"{_WRITER}{json.dumps(mark)}"
        # The first start in a folder does not make TensorBoard forget anything.
        start = Event(wall_time=time.time(), session_log=SessionLog(status=SessionLog.START))
        first = self.held.last is None and not self.steps
        try:
            self._write([each.SerializeToString() for each in ([head, start] if first else [head])])
        except OSError:
            self._path.unlink(missing_ok=True)  # else each process would leave one while the disk is full
            raise

    def move(self, folder: Path) -> None:
        """Rename the folder to an unused name. Raises `OSError`."""
        rename_folder(self.folder, folder)
        self._sizes = {folder / path.name: size for path, size in self._sizes.items()}
        self.folder, self._path = folder, folder / self._path.name

    def append(self, event: Event, seq: int | None) -> set[str]:
        """Buffer an event of this number, which `flush` writes. Return the metrics and tables for which its
        step is not beyond their last one."""
        if seq is not None:
            event.source_metadata.writer = f"{_WRITER}{seq}"
        self._waiting.setdefault(seq, []).append(event.SerializeToString())
        step, steps = event.step, self.steps
        before = {value.tag for value in event.summary.value if step <= steps.get(value.tag, _NEVER)}
        self._note(event)
        return {tag for tag in before if self.kinds[tag] != TEXT}

    def append_scalars(
        self, values: Sequence[tuple[str, float]], step: int, moment: float, seq: int | None
    ) -> set[str]:
        """Like `append`, for metrics by their tags, which `kinds` already contains."""
        writer = "" if seq is None else f"{_WRITER}{seq}"
        self._waiting.setdefault(seq, []).append(scalars_event(values, step, moment, writer))
        again, steps = set[str](), self.steps
        for tag, _ in values:
            if step <= steps.get(tag, _NEVER):
                again.add(tag)
            steps[tag] = step
        return again

    def has(self, seq: int) -> bool:
        """Whether an event of this number is stored or buffered."""
        return seq in self._waiting or seq in self.held

    def flush(self) -> None:
        """Write the buffered events. After an `OSError`, the file holds nothing of them."""
        waiting, self._waiting = self._waiting, {}
        if waiting:
            self._write([data for each in waiting.values() for data in each])
            for seq in waiting:
                if seq is not None:
                    self.held.add(seq)

    def write_session(self, status: int | None = None) -> None:
        """Write the session's hyperparameters, and its final status in TensorBoard's terms, to their file,
        replacing its contents. Raises `OSError`."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import metadata
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

        def event(tag: str, said: HParamsPluginData) -> Event:
            about = metadata.create_summary_metadata(said)
            value = Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)
            return Event(wall_time=time.time(), summary=Summary(value=[value]))

        events = [Event(wall_time=time.time(), file_version=_VERSION)]
        start = HParamsPluginData(session_start_info=self.session)
        events.append(event(metadata.SESSION_START_INFO_TAG, start))
        if status is not None:
            end = HParamsPluginData(session_end_info=SessionEndInfo(status=status, end_time_secs=time.time()))
            events.append(event(metadata.SESSION_END_INFO_TAG, end))
        temporary = (
            self.folder / f".hparams.{os.getpid()}.tmp"
        )  # TensorBoard does not take this for an event file
        try:
            temporary.write_bytes(framed([each.SerializeToString() for each in events]))
            temporary.replace(self.folder / _HPARAMS)
        except OSError:
            with contextlib.suppress(OSError):  # a full disk leaves an empty file
                temporary.unlink(missing_ok=True)
            raise

    def holds(self, last: int) -> bool:
        """Whether all files are still those that were read and written, and contain an event with the number
        `last` or a later one."""
        for path, (inode, size) in self._sizes.items():
            try:
                found = path.stat()
            except (FileNotFoundError, NotADirectoryError):
                return False
            if found.st_ino != inode or found.st_size < size:
                return False
        return last <= (self.held.last or 0)

    def close(self) -> None:
        """Write what is buffered, and close the file."""
        if self._file is not None:
            self.flush()
            os.close(self._file)
            self._file = None

    def _write(self, records: Sequence[bytes]) -> None:
        assert self._file is not None
        data = framed(records)
        size = self._sizes[self._path][1]
        written = os.write(self._file, data)
        if written != len(data):
            os.ftruncate(self._file, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        self._sizes[self._path] = (self._sizes[self._path][0], size + written)

    def _read(self, path: Path) -> None:
        found = path.stat()
        self._sizes[path] = (found.st_ino, found.st_size)
        own = False
        for event in read_events(path):
            writer = event.source_metadata.writer
            said = writer.removeprefix(_WRITER) if writer.startswith(_WRITER) else ""
            if event.file_version:
                self.mark = _mark(said) or self.mark
                own = self.mark.get("run_id") == self._run_id
            elif own and said.isdecimal() and len(said) < _DIGITS:
                self.held.add(int(said))
            self._note(event)

    def _read_session(self) -> None:
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        path = self.folder / _HPARAMS
        for event in read_events(path) if path.is_file() else ():
            for value in event.summary.value:
                said = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                if said.HasField("session_start_info"):
                    self.session = said.session_start_info

    def _note(self, event: Event) -> None:
        if event.HasField("session_log"):  # the run was resumed before this step
            self.steps = {tag: min(last, event.step - 1) for tag, last in self.steps.items()}
        for value in event.summary.value:
            self.kinds.setdefault(value.tag, _kind(value))
            self.steps[value.tag] = event.step


def stage_and_name(tag: str) -> tuple[str | None, str]:
    """The stage and the name of a metric or a text whose tag is `stage/name` (`Limits.joins`)."""
    stage, slash, name = tag.partition("/")
    return (stage, name) if slash and stage and name else (None, tag)


def hparams_file(folder: Path) -> list[Path]:
    """The file where fmstune stores the hyperparameters of a run's folder, if it exists."""
    return [path] if (path := folder / _HPARAMS).is_file() else []


def mark_of(event: Event) -> dict[str, Any]:
    """fmstune's mark at the start of a file; empty for other writers."""
    writer = event.source_metadata.writer
    return _mark(writer.removeprefix(_WRITER)) if writer.startswith(_WRITER) else {}


def event_files(folder: Path) -> list[Path]:
    """The event files that grow, in the order in which TensorBoard reads them."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if "tfevents" in path.name and path.name != _HPARAMS)


def read_events(path: Path) -> Iterator[Event]:
    """The records of a file, up to the first torn one.

    Checksums are not verified: in Python they would take a thousand times longer than the rest.
    """
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    with path.open("rb") as file:
        while len(head := file.read(12)) == 12:
            (length,) = struct.unpack("<Q4x", head)
            data = file.read(min(length, _LONGEST_RECORD))
            if len(data) != length or len(file.read(4)) != 4:
                return
            try:
                yield Event.FromString(data)
            except DecodeError:
                return


def session_status(status: Status) -> int:
    """TensorBoard's value for a run's status."""
    from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS

    return int(STATUS_SUCCESS if status == "finished" else STATUS_FAILURE)


def _kind(value: Summary.Value) -> str:
    plugin = value.metadata.plugin_data.plugin_name
    if not plugin:
        return IMAGE if value.HasField("image") else SCALARS
    if plugin != "text":
        return HISTOGRAM if plugin == "histograms" else TEXT
    if len(value.tensor.tensor_shape.dim) == 2:
        return TABLE
    # Params are texts too, as JSON; they are rewritten as they grow, and so is the status.
    own = value.tag == "status" or (
        value.tensor.string_val[:1] and value.tensor.string_val[0][:7] == b"```json"
    )
    return TEXT if own else SAID


def _mark(said: str) -> dict[str, Any]:
    try:
        found = json.loads(said)
    except ValueError:  # from another writer
        return {}
    return found if isinstance(found, dict) else {}
