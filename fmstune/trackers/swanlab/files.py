"""The folder of an offline run in SwanLab's format, for `swanlab sync`: one file of records, `media/` and
`files/config.yaml`.

The SDK starts a new folder each time, and `swanlab sync` makes one experiment of each; it loses what it has
not flushed when it is killed. Here a run has one folder, to which each process appends. SwanLab's behaviour
was observed with 0.10."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmstune.system.files import link_or_copy, replace_text
from fmstune.trackers.stored_numbers import StoredNumbers
from fmstune.trackers.swanlab.frames import HEAD, framed, read_frames
from fmstune.trackers.swanlab.records import params_of, yaml_of
from fmstune.trackers.swanlab.series import Batch, Series

if TYPE_CHECKING:
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record

_STATE = ".fmstune.json"
_BEGIN, _END, _CONFIG = -1, -2, -3
"""The numbers of the records of a run's start, its end and its config; all others are counted from 1."""


@dataclass
class State(StoredNumbers):
    """The state of a folder, in our own file: its owner, the events that it holds, the length of its file at
    that point, without the end record, and the number of records in it. `size` is negative while the file is
    being replaced. `adapted` lists what had to be changed, as an event delivered again is not examined."""

    mark: dict[str, Any] = field(default_factory=dict)
    size: int = -1
    records: int = 0
    configured: bool = False
    adapted: list[str] = field(default_factory=list)


def read_state(folder: Path) -> State | None:
    """The state of a folder; `None` when it is not ours. Raises `OSError`."""
    try:
        return State(**json.loads((folder / _STATE).read_text("utf-8")))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None


def folders_of(log_dir: Path, swanlab_id: str) -> list[Path]:
    """The folders of the experiment of this id, newest first, including those created by SwanLab itself."""
    return sorted(log_dir.glob(f"run-*-{glob.escape(swanlab_id)}"), reverse=True)


def new_folder(log_dir: Path, swanlab_id: str) -> Path:
    """A new folder for the experiment, named as by SwanLab."""
    stamp = time.strftime("%Y%m%d_%H%M%S")
    return log_dir / f"run-{stamp}-{swanlab_id}"


def is_intact(folder: Path, state: State) -> bool:
    """Whether the file is at least as long as when the state was written."""
    try:
        return 0 < state.size <= _file(folder).stat().st_size
    except OSError:
        return False


class RunFolder:
    """A folder that is written to. A killed process's partial batch is removed."""

    def __init__(self, folder: Path, mark: dict[str, Any], after: int, start: Record) -> None:
        """Continue the folder from its state, or start again if its file was lost, with `start` as the file's
        first record. Raises `OSError`."""
        self.path = folder
        self.series = Series()
        self.params: dict[str, Any] = {}
        new = not folder.exists()
        try:
            self._open(mark, after, start)
        except OSError:
            if new:  # else each process would leave one while the disk is full
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def _open(self, mark: dict[str, Any], after: int, start: Record) -> None:
        folder = self.path
        state = read_state(folder)
        if state is None or not self._read(state):
            state = self._begun(start)
        if state.mark.get("run_id") != mark.get("run_id"):
            state.begin_after(after)
            state.adapted = []
        state.mark = mark
        self.state = state
        self.rename(start)
        os.truncate(_file(folder), state.size)  # drops the end record, and what a kill left
        self._write_state()

    def has(self, seq: int) -> bool:
        """Whether the folder holds the event of this number."""
        return self.state.has(seq)

    def holds(self, last: int) -> bool:
        """Whether the folder still holds what was written, and the event of this number or a later one."""
        found = read_state(self.path)
        return found is not None and found.last_event >= last and is_intact(self.path, found)

    def write(self, batch: Batch) -> None:
        """Add the records. After an `OSError`, the folder holds none of them."""
        records, params = list(batch.records), batch.params
        try:
            if params is not None:
                self._write_config(params)
                if not self.state.configured:
                    records.append(self._config_record())
            for record in records:
                self._put_media(record)
                self._put_file(record)
            size, count = self._append_numbered(records)
        except OSError:
            self.series.take_back(records)
            raise
        for seq in batch.events:
            self.state.add(seq)
        self.state.size, self.state.records = size, count
        self.state.configured = self.state.configured or params is not None
        self._write_state()

    def forget_after(self, step: int, is_kept: Callable[[str], bool]) -> None:
        """Remove the values of later steps from the file, except in series that are kept. Raises
        `OSError`."""

        def stays(record: Record) -> bool:
            value = record.scalar if record.HasField("scalar") else record.media
            return not value.key or value.step <= step or is_kept(value.key)

        self._replace(lambda records: [record for record in records if stays(record)])

    def rename(self, start: Record) -> None:
        """Replace the file's first record, which has the run's name and labels. Raises `OSError`."""
        first = next(read_frames(_file(self.path)))[0]
        old = type(start).FromString(first)
        start.start.started_at.CopyFrom(old.start.started_at)
        if start.start != old.start:
            self._replace(lambda records: [start, *records[1:]])

    def finish(self, end: Record) -> None:
        """Add the end record, which a resumed run removes. Raises `OSError`."""
        end.num = _END
        end.timestamp.GetCurrentTime()
        os.truncate(_file(self.path), self.state.size)
        self._append([end])

    # -- the rest -----------------------------------------------------------------------------

    @property
    def _config_file(self) -> Path:
        return self.path / "files" / "config.yaml"

    def _begun(self, start: Record) -> State:
        for name in ("media", "files"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        make_log_dir(self.path.parent)
        self.path.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            (self.path / _STATE).unlink()
        start.num = _BEGIN
        start.timestamp.GetCurrentTime()
        data = HEAD + framed([start.SerializeToString()], len(HEAD))
        _replace_bytes(_file(self.path), data)
        self.series, self.params = Series(), {}
        return State(size=len(data))

    def _read(self, state: State) -> bool:
        """Read the file; return whether it matches the state."""
        import yaml

        end = 0
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for data, end in read_frames(_file(self.path)):
                self._note(_record(data))
                if end >= state.size:
                    break
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            text = self._config_file.read_text("utf-8")
            self.params = params_of(yaml.safe_load(text))
        return end == state.size

    def _note(self, record: Record) -> None:
        if record.HasField("column"):
            self.series.define(record.column.column_key, record.column.column_type)
        elif record.HasField("scalar"):
            self.series.note(record.scalar.key, record.scalar.step)
        elif record.HasField("media"):
            self.series.note(record.media.key, record.media.step)

    def _append_numbered(self, records: Sequence[Record]) -> tuple[int, int]:
        """Append records with numbers; return the file's size and the number of the last record."""
        count = self.state.records
        for record in records:
            if record.num != _CONFIG:  # `swanlab sync` treats two records of one number as one
                count += 1
                record.num = count
            record.timestamp.GetCurrentTime()
        return self._append(records), count

    def _append(self, records: Sequence[Record]) -> int:
        """Append records at the file's recorded end; return the new size."""
        size = self.state.size
        data = framed([record.SerializeToString() for record in records], size)
        file = os.open(_file(self.path), os.O_WRONLY | os.O_APPEND)
        try:
            written = os.write(file, data) if data else 0
            if written != len(data):
                os.ftruncate(file, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(_file(self.path)))
        finally:
            os.close(file)
        return size + written

    def _replace(self, change: Callable[[list[Record]], list[Record]]) -> None:
        records = [_record(data) for data, end in read_frames(_file(self.path)) if end <= self.state.size]
        kept = change(records)
        data = HEAD + framed([record.SerializeToString() for record in kept], len(HEAD))
        self.state.size = -1  # if the process is killed from here on, the file counts as lost
        self._write_state()
        _replace_bytes(_file(self.path), data)
        self.state.size = len(data)
        self._write_state()
        self.series = Series()
        for record in kept:
            self._note(record)

    def _put_media(self, record: Record) -> None:
        from swanlab.sdk.internal.pkg import adapter

        for item in record.media.value.items if record.HasField("media") else ():
            place = self.path / "media" / adapter.medium[record.media.type] / item.filename
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists() or place.stat().st_size != item.size:
                _replace_bytes(place, item.payload)
            item.ClearField("payload")

    def _put_file(self, record: Record) -> None:
        """Link the file of a record into this folder, where `swanlab sync` finds it even if the folder was
        moved: the file may be gone from the run's folder by then. Raises `OSError`."""
        if not record.HasField("save") or record.num == _CONFIG:
            return
        place, source = self.path / "files" / record.save.name, Path(record.save.source_path)
        if place.is_relative_to(self._config_file):
            place = self.path / "artifacts" / record.save.name
        with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)  # an earlier version
            link_or_copy(source, place)
            record.save.source_path = place.as_posix()

    def _write_config(self, params: Mapping[str, Any]) -> None:
        self._config_file.parent.mkdir(exist_ok=True)
        replace_text(self._config_file, yaml_of(params))

    def _config_record(self) -> Record:
        from swanlab.proto.swanlab.record.v1.record_pb2 import Record
        from swanlab.proto.swanlab.save.v1.save_pb2 import SaveRecord, SaveType

        place = self._config_file.as_posix()
        save = SaveRecord(name="config", source_path=place, type=SaveType.SAVE_TYPE_CONFIG)
        return Record(num=_CONFIG, save=save)

    def _write_state(self) -> None:
        replace_text(self.path / _STATE, json.dumps(asdict(self.state)) + "\n")


def make_log_dir(folder: Path) -> None:
    """Create the folder of all runs, as SwanLab does: Git ignores its contents."""
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    if new:
        (folder / ".gitignore").write_text("*", encoding="utf-8")


def _file(folder: Path) -> Path:
    """The file of records, under the name that `swanlab sync` expects, with a long id cut."""
    return folder / f"run-{folder.name.split('-', 2)[2][:100]}.swanlab"


def _record(data: bytes) -> Record:
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record

    return Record.FromString(data)


def _replace_bytes(place: Path, data: bytes) -> None:
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)
