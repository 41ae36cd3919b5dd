"""The folder of an offline run as SwanLab writes it, for `swanlab sync`: one file of records, `media/` and
`files/config.yaml`.

The SDK begins a folder each time, of which `swanlab sync` makes one experiment each; it loses what it has not
flushed when it is killed. Here a run has one folder, to which each process appends. What is said of SwanLab
was seen with 0.10."""

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

from fmstune.system.files import replace_text
from fmstune.trackers.numbers_held import NumbersHeld
from fmstune.trackers.swanlab.frames import HEAD, framed, read_frames
from fmstune.trackers.swanlab.records import params_of, yaml_of
from fmstune.trackers.swanlab.series import Batch, Series

if TYPE_CHECKING:
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record

_STATE = ".fmstune.json"
_BEGIN, _END, _CONFIG = -1, -2, -3
"""The numbers of the records of a run's start, its end and its config; those of others are counted from 1."""


@dataclass
class State(NumbersHeld):
    """What is known of a folder, in a file of ours: whose it is, which events it has, how long its file is by
    then, without the record of its end, and how many records that has. `size` is negative while the file is
    being replaced. `adapted` says what had to be changed: an event that comes again is not looked at."""

    mark: dict[str, Any] = field(default_factory=dict)
    size: int = -1
    records: int = 0
    configured: bool = False
    adapted: list[str] = field(default_factory=list)


def read_state(folder: Path) -> State | None:
    """What is known of a folder; `None` when it is not one of ours. Raises `OSError`."""
    try:
        return State(**json.loads((folder / _STATE).read_text("utf-8")))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None


def folders_of(log_dir: Path, swanlab_id: str) -> list[Path]:
    """The folders of the experiment of this id, the newest first, among them those of SwanLab's own."""
    return sorted(log_dir.glob(f"run-*-{glob.escape(swanlab_id)}"), reverse=True)


def new_folder(log_dir: Path, swanlab_id: str) -> Path:
    """A folder of the experiment, which is called as SwanLab would."""
    stamp = time.strftime("%Y%m%d_%H%M%S")
    return log_dir / f"run-{stamp}-{swanlab_id}"


def is_intact(folder: Path, state: State) -> bool:
    """Whether the file has at least what it had when the state was written."""
    try:
        return 0 < state.size <= _file(folder).stat().st_size
    except OSError:
        return False


class RunFolder:
    """A folder that is written to. What a killed process has written of a batch is taken back."""

    def __init__(self, folder: Path, mark: dict[str, Any], after: int, start: Record) -> None:
        """Begin where the folder stands, or again when its file has been lost, with `start` as the file's
        first record. Raises `OSError`."""
        self.path = folder
        self.series = Series()
        self.params: dict[str, Any] = {}
        state = read_state(folder)
        if state is None or not self._read(state):
            state = self._begun(start)
        if state.mark.get("run_id") != mark.get("run_id"):
            state.begin_after(after)
            state.adapted = []
        state.mark = mark
        self.state = state
        self.rename(start)
        os.truncate(_file(folder), state.size)  # a record of the run's end, and what a kill left
        self._write_state()

    def has(self, seq: int) -> bool:
        """Whether the folder has the event of this number."""
        return self.state.has(seq)

    def holds(self, last: int) -> bool:
        """Whether the folder still has what was written, and the event of this number or a later one."""
        found = read_state(self.path)
        return found is not None and found.last_event >= last and is_intact(self.path, found)

    def write(self, batch: Batch) -> None:
        """Add the records. Raises `OSError`, after which none is there."""
        records, params = list(batch.records), batch.params
        try:
            if params is not None:
                self._write_config(params)
                if not self.state.configured:
                    records.append(self._config_record())
            for record in records:
                self._put_media(record)
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
        """Take the values of later steps out of the file, but for those of series that are kept. Raises
        `OSError`."""

        def stays(record: Record) -> bool:
            value = record.scalar if record.HasField("scalar") else record.media
            return not value.key or value.step <= step or is_kept(value.key)

        self._replace(lambda records: [record for record in records if stays(record)])

    def rename(self, start: Record) -> None:
        """Make `start` the file's first record, which says what the run is called. Raises `OSError`."""
        first = next(read_frames(_file(self.path)))[0]
        old = type(start).FromString(first)
        start.start.started_at.CopyFrom(old.start.started_at)
        if start.start != old.start:
            self._replace(lambda records: [start, *records[1:]])

    def finish(self, end: Record) -> None:
        """Add the record of the run's end, which a resumed run takes back. Raises `OSError`."""
        end.num = _END
        end.timestamp.GetCurrentTime()
        os.truncate(_file(self.path), self.state.size)
        self._append([end])

    # -- the rest -----------------------------------------------------------------------------

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
        """Read what the file has; whether that is what the state says."""
        import yaml

        end = 0
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for data, end in read_frames(_file(self.path)):
                self._note(_record(data))
                if end >= state.size:
                    break
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            text = (self.path / "files" / "config.yaml").read_text("utf-8")
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
        """The size of the file with these records, and their number."""
        count = self.state.records
        for record in records:
            if record.num != _CONFIG:  # two records of one number are one to `swanlab sync`
                count += 1
                record.num = count
            record.timestamp.GetCurrentTime()
        return self._append(records), count

    def _append(self, records: Sequence[Record]) -> int:
        """The size of the file with the records behind its end as the state has it."""
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
        self.state.size = -1  # a process that is killed from here on leaves what counts as lost
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

    def _write_config(self, params: Mapping[str, Any]) -> None:
        place = self.path / "files" / "config.yaml"
        place.parent.mkdir(exist_ok=True)
        replace_text(place, yaml_of(params))

    def _config_record(self) -> Record:
        from swanlab.proto.swanlab.record.v1.record_pb2 import Record
        from swanlab.proto.swanlab.save.v1.save_pb2 import SaveRecord, SaveType

        place = (self.path / "files" / "config.yaml").as_posix()
        save = SaveRecord(name="config", source_path=place, type=SaveType.SAVE_TYPE_CONFIG)
        return Record(num=_CONFIG, save=save)

    def _write_state(self) -> None:
        replace_text(self.path / _STATE, json.dumps(asdict(self.state)) + "\n")


def make_log_dir(folder: Path) -> None:
    """Make the folder of all runs, as SwanLab does: Git ignores what is in it."""
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    if new:
        (folder / ".gitignore").write_text("*", encoding="utf-8")


def _file(folder: Path) -> Path:
    """The file of records: `swanlab sync` takes the one of such a name. It cuts the id of a long one."""
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
