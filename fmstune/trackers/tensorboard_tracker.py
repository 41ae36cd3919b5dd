"""The tracker `tensorboard`: event files in a folder, one folder for each run.

It writes the records itself, through the protocol buffers and the framing of the package `tensorboard`,
without torch or TensorFlow, and without a background thread: whatever was flushed is on disk.
TensorBoard's behaviour was observed with 2.21."""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmstune.text import counted
from fmstune.trackers.continued import is_of_another, mark, note
from fmstune.trackers.records import (
    Check,
    Limits,
    Media,
    MetricPoint,
    RunStart,
    Status,
    Table,
    TrackerRun,
    utf8,
)
from fmstune.trackers.tensorboard.files import (
    HISTOGRAM,
    IMAGE,
    SAID,
    SCALARS,
    TABLE,
    TEXT,
    EventFiles,
    event_files,
    session_status,
)
from fmstune.trackers.tensorboard.media import fenced, histogram_value, image_summary
from fmstune.trackers.unusable import check_folder, name_of_folder
from fmstune.trackers.values.normalise import as_text, flatten
from fmstune.trackers.whole_points import WholePointTracker

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

_VARIABLE, _DEFAULT = "TENSORBOARD_LOGGING_DIR", "tensorboard"
_NOT_HPARAMS = ("packages", "decided", "padding", "data")
"""fmstune's own namespaces that are no use for comparing runs; like all others, they are shown as text."""


@dataclass(frozen=True)
class TensorBoardOptions:
    """Options of the tracker `tensorboard`."""

    dir: str | None = field(
        default=None,
        metadata={
            "help": "The folder for `tensorboard --logdir`, in which each run has a folder; "
            f'else {_VARIABLE}, else "{_DEFAULT}".'
        },
    )
    run_name: str | None = field(
        default=None, metadata={"help": "Name of the run's folder. Default: the run's own name."}
    )


class TensorBoardTracker(WholePointTracker):
    """Metrics are scalars named `train/loss`. Params are text, and also hyperparameters with the run's
    status, so that the HParams tab compares runs. Tables are text. TensorBoard cannot show files.

    To TensorBoard, a resumed run is a restart: it forgets the steps that are logged again. Its default loader
    keeps the last value of each step, and when an earlier step of a tag comes, drops the tag's later steps;
    `--load_fast=false` shows all."""

    registered_name = "tensorboard"
    description = "TensorBoard: event files in a folder, for `tensorboard --logdir`"
    package = "tensorboard"
    install_hint = "pip install 'fmstune[tensorboard]'"
    Config = TensorBoardOptions
    config: TensorBoardOptions
    idempotent = True
    repeated_steps = "replaced"
    places = (("dir", _VARIABLE),)
    takes_late = False
    media = frozenset({"text", "image", "histogram"})
    limits = Limits(single_precision=True, joins=True, captions=False, reserved_params=frozenset({"status"}))

    def __init__(self, name: str | None = None, tracker_config: Any = None) -> None:
        super().__init__(name, tracker_config)
        self._files: EventFiles | None = None
        self._closed: EventFiles | None = None
        self._asked_for = Path()
        self._renamed: dict[str, None] = {}
        self._backwards: set[str] = set()

    @property
    def adapted(self) -> tuple[str, ...]:
        if not self._backwards:
            return tuple(self._renamed)
        first, more = min(self._backwards), len(self._backwards) - 1
        which = f"{first} and {counted(more, 'other')}" if more else first
        said = f"of several values of {which} at one step, or at an earlier one, TensorBoard draws the last"
        return (*self._renamed, f"{said}; --load_fast=false draws all")

    def open(self, start: RunStart) -> TrackerRun:
        noted = None
        if self._files is not None:  # opened by `open_alone`, under a placeholder name
            if (named := self._named(start)) != self._asked_for:
                self._files.move(self._unused(named))
        else:
            run_id = start.run_id or uuid.uuid4().hex
            files, noted = self._found(start, run_id)
            files.begin(mark(start) if start.run_id is not None else {"run_id": run_id})
            files.session.group_name = files.session.group_name or run_id  # sessions of a run are one
            self._files, self._asked_for = files, self._named(start)
            self._label(files, start)
        shown = f"`tensorboard --logdir {self._dir()}` shows it"
        notes = " · ".join(part for part in (noted, shown) if part)
        return TrackerRun(str(self._files.folder), note=notes)

    def holds(self, last: int) -> bool:
        files = self._files or self._closed
        return files is None or files.holds(last)

    def is_stored(self, start: RunStart, last: int) -> bool | None:
        found = [EventFiles(folder, start.run_id or "") for folder in self._folders(start)]
        return any(files.held.last is not None and last <= files.held.last for files in found)

    def track_point(self, point: MetricPoint) -> None:
        values, stage = self._fitted(point)
        files, prefix = self._files_opened(), self.limits.prefix(stage)
        found = list[tuple[str, float]]()
        for name, value in values.items():
            tag = prefix + name
            if files.kinds.get(tag) != SCALARS:
                tag = self._tag(tag, SCALARS)
                files.kinds.setdefault(tag, SCALARS)
            found.append((tag, value))
        if self.seq is None or not files.has(self.seq):
            moment = point.time or time.time()
            self._note_again(files.append_scalars(found, point.step or 0, moment, self.seq))

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        super().set_params(params, name)
        if params is None:
            return
        name, params = self._fitted_params(params, name)
        text = json.dumps(params, indent=2, ensure_ascii=False)
        # At step 0, so that a restart does not make TensorBoard forget it; as code, to be shown unchanged.
        self._write_text(name, [f"```json\n{text}\n```"], 0, TEXT)
        if name in _NOT_HPARAMS:
            return
        files = self._files_opened()
        for key, value in flatten(params):
            if (name, key.partition(".")[0]) == ("model", "config"):
                continue  # dozens of columns, equal for all runs of a model
            # `c` of `a.b` is not `b.c` of `a`.
            found = files.session.hparams[f"[{name}].{key}" if "." in name else f"{name}.{key}"]
            if isinstance(value, bool):
                found.bool_value = value
            elif isinstance(value, (int, float)) and not abs(value) > sys.float_info.max:
                found.number_value = value
            else:
                found.string_value = as_text(value)
        files.write_session()

    def track_table(self, table: Table) -> None:
        columns = list(table.columns)
        rows = [columns, *([_cell(row.get(column)) for column in columns] for row in table.rows)]
        texts = [text for row in rows for text in row]
        shape = (len(rows), len(columns)) if columns else (1, 1)  # TensorBoard detects tables by this
        name = f"{table.stage}/{table.name}" if table.stage else table.name
        self._write_text(name, texts or ["(no rows)"], table.step or 0, TABLE, shape, table.time)

    def track_media(self, media: Media) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        name = f"{media.stage}/{media.name}" if media.stage else media.name
        if media.kind == "text":
            self._write_text(name, [fenced(media.text)], media.step or 0, SAID, moment=media.time)
            return
        if media.kind == "image":
            tag = self._tag(name, IMAGE)
            found = Summary(value=[Summary.Value(tag=tag, image=image_summary(media))])
        else:
            found = Summary(value=[histogram_value(media, self._tag(name, HISTOGRAM))])
        self._write(Event(wall_time=media.time or self._moment(), step=media.step or 0, summary=found))

    def resumed(self, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        # TensorBoard forgets its values of this step and later ones.
        log = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=self._moment(), step=step + 1, session_log=log))

    def train_ended(self, status: Status) -> None:
        self._files_opened().write_session(session_status(status))

    def close(self, status: Status, error: str | None = None) -> None:
        if self._files is None:
            return
        self._files.write_session(session_status(status))
        self._write_text("status", [f"{status}: {utf8(error)}" if error else status], self.step or 0, TEXT)
        self._files.close()
        self._files, self._closed = None, self._files

    def check(self, timeout: float) -> Check:
        remedy = f"choose another folder: --set trackers.{self.name}.dir=DIR"
        given = self.config.dir or os.environ.get(_VARIABLE) or ""
        return check_folder(self._dir(), given, "event files", remedy)

    # -- the rest -----------------------------------------------------------------------------

    def _dir(self) -> Path:
        return Path(self.config.dir or os.environ.get(_VARIABLE) or _DEFAULT).expanduser()

    @staticmethod
    def _label(files: EventFiles, start: RunStart) -> None:
        """Set the run's group, tags and notes, by which the HParams tab filters runs."""
        said = {"run.group": start.group, "run.tags": ", ".join(start.tags), "run.notes": start.notes}
        for key, text in said.items():
            if text:
                files.session.hparams[key].string_value = utf8(text)
        if any(said.values()):
            files.write_session()

    def _named(self, start: RunStart) -> Path:
        """The folder of a new run of this name, if it is unused."""
        return self._dir().absolute() / (name_of_folder(self.config.run_name or start.name) or "run")

    def _folders(self, start: RunStart) -> list[Path]:
        """Where to search for the run: its earlier folder, or its current one, as it may have been moved."""
        if start.tracker_run_id is None:
            return [self._named(start)]
        there = Path(start.tracker_run_id)
        return [there, self._dir().absolute() / there.name]

    def _found(self, start: RunStart, run_id: str) -> tuple[EventFiles, str | None]:
        """The folder of the run with its contents, or an unused one."""
        folders, noted = self._folders(start), None
        for folder in folders:
            files = EventFiles(folder, run_id)
            if files.mark.get("run_id") == run_id or (start.tracker_run_id is not None and files.mark):
                if not is_of_another(files.mark, start):
                    return files, None
                noted = note(start)
        return EventFiles(self._unused(folders[-1]), run_id), noted

    @staticmethod
    def _unused(folder: Path) -> Path:
        """This folder, or one with a number after its name, that contains no event files."""
        found, number = folder, 1
        while event_files(found):
            number += 1
            found = folder.with_name(f"{folder.name}-{number}")
        return found

    def _files_opened(self) -> EventFiles:
        if self._files is None:
            self.open_alone()
        assert self._files is not None
        return self._files

    def _write(self, event: Event) -> None:
        files = self._files_opened()
        if self.seq is None or not files.has(self.seq):
            self._note_again(files.append(event, self.seq))

    def _note_again(self, tags: set[str]) -> None:
        if self.seq is None:
            self.flush()
        # Machine samples are taken several times during a step; README documents it for all runs.
        self._backwards |= {tag for tag in tags if not tag.startswith("system/")}

    def flush(self) -> None:
        if self._files is not None:
            self._files.flush()

    def _write_text(
        self,
        name: str,
        texts: list[str],
        step: int,
        kind: str,
        shape: tuple[int, ...] = (),
        moment: float | None = None,
    ) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING
        from tensorboard.plugins.text.metadata import create_summary_metadata

        sizes = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in shape])
        tensor = TensorProto(
            dtype=DT_STRING, tensor_shape=sizes, string_val=[text.encode() for text in texts]
        )
        about = create_summary_metadata(display_name=None, description=None)
        tag = self._tag(name, kind)
        summary = Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=tensor)])
        self._write(Event(wall_time=moment or self._moment(), step=step, summary=summary))

    def _moment(self) -> float:
        return self.event_time or time.time()

    def _tag(self, tag: str, kind: str) -> str:
        """The tag, or another one if it is used for something else: TensorBoard shows only one kind per
        tag."""
        found, kinds = tag, self._files_opened().kinds
        while kinds.get(found, kind) != kind:
            found += "_"
        if found != tag:
            self._renamed[f"{tag} is called {found}, as there is {kinds[tag]} of that name"] = None
        return found


def _cell(value: Any) -> str:
    return "" if value is None else utf8(as_text(value))
