"""A run's folder in the format that DVCLive writes and DVC reads: metric tables in tab-separated files,
`metrics.json`, `params.yaml` and `dvc.yaml`.

`dvclive.Live` itself is not used: it turns the surrounding Git repository into a DVC repository and stages
files there; it empties its folder or appends to it, and so cannot recognise a row that is delivered twice.
Its own formats are used. DVCLive's behaviour was observed with 3.49.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmstune.system.files import rename_folder, replace_text
from fmstune.trackers.stored_numbers import StoredNumbers

_STATE = ".fmstune.json"
_METRICS, _IMAGES, _TABLES = Path("plots/metrics"), Path("plots/images"), Path("tables")


@dataclass(frozen=True, slots=True)
class Row:
    """A metric's value at a step."""

    name: str
    step: int
    value: int | float


@dataclass
class State(StoredNumbers):
    """The state of a folder, in our own file: its owner, the last event of the run that it holds, the missing
    ones before that, the length of each metric file at that point, and the contents of the files that are
    rewritten each time."""

    mark: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)


def read_state(folder: Path) -> State | None:
    """The state of a folder; `None` when it is not ours. Raises `OSError`."""
    try:
        found = json.loads((folder / _STATE).read_text("utf-8"))
        return State(**found)
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None


def is_intact(folder: Path, state: State) -> bool:
    """Whether each metric file is at least as long as when the state was written."""
    try:
        return all((folder / _METRICS / name).stat().st_size >= size for name, size in state.sizes.items())
    except OSError:
        return False


class RunFolder:
    """A folder that is written to. A killed process's partial batch is removed."""

    def __init__(self, folder: Path, state: State | None, mark: dict[str, Any], after: int) -> None:
        """Start from `state`, or from scratch if it is `None` or files have been lost. Events of another run
        that this one continues have other numbers: this run's come `after` that. Raises `OSError`."""
        self.path = folder
        self._metrics = folder / _METRICS
        if state is None or not is_intact(folder, state):
            empty(folder)
            state = State()
        if state.mark.get("run_id") != mark.get("run_id"):
            state.begin_after(after)
        self.state = state
        self.state.mark = mark
        self._written: dict[str, str] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._truncate_partial()

    def holds(self, last: int) -> bool:
        """Whether the folder still holds what was written, and the event of this number or a later one."""
        found = read_state(self.path)
        return found is not None and found.last_event >= last and is_intact(self.path, found)

    def write(self, rows: Sequence[Row] = (), events: Sequence[int] = ()) -> None:
        """Add the rows of these events, and write all other files. After an `OSError`, the folder holds
        none of the rows."""
        state = self.state
        before = copy.deepcopy((state.sizes, state.summary, state.last_event, state.gaps))
        try:
            for seq in events:
                state.add(seq)
            self._write(rows)
        except BaseException:
            state.sizes, state.summary, state.last_event, state.gaps = before
            with contextlib.suppress(OSError):  # then the next process does it
                self._truncate_partial()
            raise

    def _write(self, rows: Sequence[Row]) -> None:
        from dvclive.plots import Metric

        for row in rows:
            metric = Metric(row.name, str(self.path / "plots"))
            metric.step = row.step
            metric.dump(row.value)
            self._summarise(row)
            size = metric.output_path.stat().st_size
            self.state.sizes[str(metric.output_path.relative_to(self._metrics))] = size
        replace_text(self.path / "metrics.json", json.dumps(self.state.summary, indent=4) + "\n")
        self._write_yaml("params.yaml", self.state.params)
        self._write_yaml("dvc.yaml", self._dvc_yaml())
        replace_text(self.path / _STATE, json.dumps(vars(self.state)) + "\n")

    def _write_yaml(self, name: str, content: Mapping[str, Any]) -> None:
        from dvclive.serialize import dump_yaml

        if self._written.get(name) == (text := json.dumps(content)):
            return  # a few hundred params take a tenth of a second
        temporary = self.path / f".{name}.{os.getpid()}.tmp"
        try:
            dump_yaml(content, str(temporary))
            temporary.replace(self.path / name)
        finally:
            temporary.unlink(missing_ok=True)
        self._written[name] = text

    def _truncate_partial(self) -> None:
        """Truncate metric files to their recorded length."""
        for path in self._tables_of_metrics():
            size = self.state.sizes.get(str(path.relative_to(self._metrics)), 0)
            os.truncate(path, size) if size else path.unlink()

    def forget_after(self, step: int) -> None:
        """Remove the values of later steps from each metric file."""
        for path in self._tables_of_metrics():
            head, *lines = path.read_text("utf-8").splitlines(keepends=True)
            kept = [line for line in lines if int(line.partition("\t")[0]) <= step]
            if len(kept) < len(lines):
                replace_text(path, head + "".join(kept))
                self.state.sizes[str(path.relative_to(self._metrics))] = path.stat().st_size

    def place_of_image(self, name: str) -> Path:
        """The path for an image; its name ends with its step, by which DVC orders images."""
        path = self.path / _IMAGES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def put_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a table. DVC does not show it."""
        path = self.path / _TABLES / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps([dict(row) for row in rows], indent=2, ensure_ascii=False) + "\n")

    def move(self, folder: Path) -> None:
        """Rename the folder to an unused name. Raises `OSError`."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        rename_folder(self.path, folder)
        self.path, self._metrics = folder, folder / _METRICS

    def _tables_of_metrics(self) -> list[Path]:
        return sorted(self._metrics.rglob("*.tsv"))

    def _summarise(self, row: Row) -> None:
        """Record the value as the last one, nested in its stage as DVCLive does unless a metric has the
        stage's name."""
        value = row.value
        shown = value if abs(value) < float("inf") else str(value)  # NaN is not below either
        *where, last = row.name.split("/")
        inner = self.state.summary
        for part in where:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                inner, last = self.state.summary, row.name
                break
        if isinstance(inner.get(last), dict):
            inner, last = self.state.summary, f"{row.name}/"
        inner[last] = shown
        self.state.summary["step"] = max(row.step, self.state.summary.get("step", row.step))

    def _dvc_yaml(self) -> dict[str, Any]:
        plots: list[Any] = [{str(_METRICS): {"x": "step"}}] if self.state.sizes else []
        if (self.path / _IMAGES).is_dir():
            plots.append(str(_IMAGES))
        found: dict[str, Any] = {"params": ["params.yaml"]} if self.state.params else {}
        found |= {"metrics": ["metrics.json"]} | ({"plots": plots} if plots else {})
        return found


def empty(folder: Path) -> None:
    """Remove what a run left in a folder, as `Live()` does when it starts, and nothing else."""
    for name in (_METRICS, _IMAGES, _TABLES):
        shutil.rmtree(folder / name, ignore_errors=True)
    for file in ("metrics.json", "params.yaml", "dvc.yaml", _STATE):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            (folder / file).unlink()
