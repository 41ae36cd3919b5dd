"""The tracker `dvclive`: a folder in DVCLive's format, for `dvc plots`, `dvc metrics` and DVC's extension for
VS Code, with or without Git.

It never commits, stages, sends, or adds to a DVC cache. DVCLive's behaviour was observed with 3.49."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmstune.trackers.continued import is_of_another, mark, note
from fmstune.trackers.dvclive.files import Row, RunFolder, State, is_intact, read_state
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
from fmstune.trackers.unusable import check_folder, name_of_folder
from fmstune.trackers.whole_points import WholePointTracker

_SHOWN = (".png", ".jpg", ".jpeg", ".gif")
_MOST_ROWS = 2000


@dataclass(frozen=True)
class DvcLiveOptions:
    """Options of the tracker `dvclive`."""

    dir: str = field(
        default="dvclive/{run}", metadata={"help": "The run's folder; `{run}` stands for the run's name."}
    )
    replace: bool = field(
        default=False,
        metadata={
            "help": "Start the folder again when it holds another run, as Live() does; else a new run gets a "
            "number after its name."
        },
    )


class DvcLiveTracker(WholePointTracker):
    """Metrics are files of values by step, named as in transformers' own integration (`loss`, `eval/loss`,
    `epoch`); the last values are in `metrics.json`, with the run's status.

    DVCLive's step is the optimizer step, where that integration counts logs. A resumed run removes the values
    that it logs again. Rows wait until their batch is full.
    """

    registered_name = "dvclive"
    description = "DVCLive: a folder for `dvc plots` and `dvc metrics`, with Git or without"
    package = "dvclive"
    install_hint = "pip install 'fmstune[dvclive]'"
    Config = DvcLiveOptions
    config: DvcLiveOptions
    idempotent = True
    repeated_steps = "replaced"
    places = (("dir",),)
    media = frozenset({"image"})
    # Names become files, on file systems that may ignore case and allow 255 bytes.
    limits = Limits(
        name_chars=r"\w/.()%+=,@# \-",
        max_name=60,
        ignores_case=True,
        captions=False,
        joins=True,
        prefixes={"train": ""},
        paths=True,
        nul=False,
        reserved_metrics=frozenset({"epoch", "step", "status", "error"}),
        reserved_params=frozenset({"tags", "notes", "group"}),
        table_chars=r"\w.()%+=,@# \-",
        max_table=60,
    )

    def __init__(self, name: str | None = None, tracker_config: Any = None) -> None:
        super().__init__(name, tracker_config)
        self._folder: RunFolder | None = None
        self._closed: RunFolder | None = None
        self._asked_for = Path()
        self._waiting: list[Row] = []
        self._changed = self._lost = False
        self._events: list[int] = []
        self._renamed: dict[str, None] = {}

    @property
    def adapted(self) -> tuple[str, ...]:
        return tuple(self._renamed)

    def open(self, start: RunStart) -> TrackerRun:
        noted = None
        if self._folder is not None:  # opened by `open_alone`, under a placeholder name
            if (named := self._named(start)) != self._asked_for:
                self._folder.move(self._unused(named))
        else:
            run_id = start.run_id or uuid.uuid4().hex
            place, state, noted = self._found(start, run_id)
            marked = mark(start) if start.run_id is not None else {"run_id": run_id}
            self._folder, self._asked_for = RunFolder(place, state, marked, start.after), self._named(start)
            self._label(self._folder.state, start)
            self._folder.write()
            self._lost = False
        place = self._folder.path
        notes = " · ".join(part for part in (noted, f"`dvc plots show` in {place} shows it") if part)
        return TrackerRun(str(place), note=notes)

    def holds(self, last: int) -> bool:
        folder = self._folder or self._closed
        return not self._lost and (folder is None or folder.holds(last))

    def is_stored(self, start: RunStart, last: int) -> bool | None:
        for folder in self._folders(start):
            if (state := read_state(folder)) is not None:
                if state.mark.get("run_id") != start.run_id:
                    return None  # another run uses it now
                if state.last_event >= last and is_intact(folder, state):
                    return True
        return False

    def track_point(self, point: MetricPoint) -> None:
        values, stage = self._fitted(point)
        if self._is_held():
            return
        prefix = self.limits.prefix(stage)
        for name, value in values.items():
            key = prefix + name
            if key.rpartition("/")[2] == "step":  # the name of the other column in each file
                key += "_"
                self._renamed[f"step is called {key}"] = None
            self._waiting.append(Row(key, point.step or 0, value))
        if stage == "train" and point.epoch not in (None, self._last_epoch()):  # a step may have several logs
            self._waiting.append(Row("epoch", point.step or 0, point.epoch or 0.0))
        self._note()

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        super().set_params(params, name)
        if params is None or self._is_held():
            return
        held = self._opened().state.params
        namespace, held[namespace] = self._fitted_params(params, name, held)
        self._note()

    def track_table(self, table: Table) -> None:
        step, more = table.step or 0, f"-{table.repeats}" if table.repeats else ""
        name = self.limits.prefix(table.stage) + f"{table.name}/{step}{more}"
        if not self._is_held():
            self._opened().put_table(name, table.rows)
            self._note()

    def track_media(self, media: Media) -> None:
        if media.kind not in self.media:
            self._refuse(f"{media.kind}s")
        assert media.file is not None
        step, more = media.step or 0, f"-{media.repeats}" if media.repeats else ""
        name = self.limits.prefix(media.stage) + f"{media.name}/{step}{more}"
        suffix = media.file.suffix.lower()
        folder = self._opened()
        if self._is_held():
            return
        if suffix in _SHOWN:
            shutil.copyfile(media.file, folder.place_of_image(name + suffix))
        else:  # DVC does not show these
            from PIL import Image

            with Image.open(media.file) as image:
                image.save(folder.place_of_image(f"{name}.png"))
        self._note()

    def resumed(self, step: int) -> None:
        folder = self._opened()
        if self._is_held():
            return
        self.flush()
        folder.forget_after(step)
        folder.state.summary.pop("epoch", None)
        folder.write(events=[] if self.seq is None else [self.seq])

    def flush(self) -> None:
        folder = self._folder
        if folder is None or not (self._waiting or self._changed):
            return
        if not folder.holds(folder.state.last_event):
            # The folder was removed or restored to an older state. Writing now would hide that.
            self._lost, self._waiting, self._events = True, [], []
            return
        rows, events, self._waiting, self._events = self._waiting, self._events, [], []
        folder.write(rows, events)
        self._changed = False

    def appear(self) -> None:
        self._opened()
        self.flush()

    def train_ended(self, status: Status) -> None:
        self._opened().state.summary["status"] = status
        self._changed = True
        self.flush()

    def close(self, status: Status, error: str | None = None) -> None:
        if self._folder is None:
            return
        said = {"status": status} | ({"error": utf8(error)} if error else {})
        self.flush()
        self._folder.state.summary |= said
        self._changed = True
        self.flush()
        self._folder, self._closed = None, self._folder

    def check(self, timeout: float) -> Check:
        remedy = f"choose another folder: --set trackers.{self.name}.dir=DIR"
        given = self.config.dir
        return check_folder(Path(given.partition("{run}")[0]), given, "DVCLive's files", remedy)

    # -- the rest -----------------------------------------------------------------------------

    def _named(self, start: RunStart) -> Path:
        """The folder of a new run of this name, if it is unused."""
        name = name_of_folder(start.name) or "run"
        return Path(self.config.dir.replace("{run}", name)).expanduser().absolute()

    def _folders(self, start: RunStart) -> list[Path]:
        """Where to search for the run: its earlier folder, or its current one, as it may have been moved."""
        named = self._named(start)
        if start.tracker_run_id is None:
            return [named]
        there = Path(start.tracker_run_id)
        return [there, named.with_name(there.name), named]

    @staticmethod
    def _label(state: State, start: RunStart) -> None:
        """Set the run's group, tags and notes, and mark it as not ended."""
        for ended in ("status", "error"):
            state.summary.pop(ended, None)
        tags = list(dict.fromkeys(utf8(tag) for tag in start.tags if tag))
        said = {"group": utf8(start.group or ""), "tags": tags, "notes": utf8(start.notes or "")}
        for key, value in said.items():
            state.params.pop(key, None)
            if value:
                state.params[key] = value

    def _found(self, start: RunStart, run_id: str) -> tuple[Path, State | None, str | None]:
        """The folder of the run with its state, or an unused one."""
        noted = None
        for folder in self._folders(start):
            state = read_state(folder)
            known = start.tracker_run_id is not None and folder.name == Path(start.tracker_run_id).name
            if state is not None and (state.mark.get("run_id") == run_id or known):
                if not is_of_another(state.mark, start):
                    return folder, state, None
                noted = note(start)
        return self._unused(self._named(start)), None, noted

    def _unused(self, folder: Path) -> Path:
        """This folder, or one with a number after its name, that is empty."""
        found, number = folder, 1
        while not self.config.replace and found.exists() and (not found.is_dir() or any(found.iterdir())):
            number += 1
            found = folder.with_name(f"{folder.name}-{number}")
        return found

    def _last_epoch(self) -> Any:
        waiting = (row.value for row in reversed(self._waiting) if row.name == "epoch")
        return next(waiting, self._opened().state.summary.get("epoch"))

    def _is_held(self) -> bool:
        """Whether the folder holds the event that is being delivered."""
        state = self._opened().state
        return self.seq is not None and (state.has(self.seq) or self.seq in self._events[-1:])

    def _note(self) -> None:
        """Record the event that the next write belongs to."""
        self._changed = True
        if self.seq is not None:
            self._events.append(self.seq)
        if len(self._waiting) > _MOST_ROWS or self.seq is None:
            self.flush()

    def _opened(self) -> RunFolder:
        if self._folder is None:
            self.open_alone()
        assert self._folder is not None
        return self._folder
