"""Runs that something else has tracked, as run directories with journals: from then on they are looked at,
compared, and sent to other trackers as any run."""

from __future__ import annotations

import hashlib
import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmstune.delivery.journal.reader import Header, JournalReader, Kind
from fmstune.delivery.journal.writer import JournalWriter
from fmstune.delivery.media import record_text
from fmstune.delivery.recorder import Recorder
from fmstune.errors import ConfigError, RunError
from fmstune.report.summary import journal_of
from fmstune.secrets.redaction import hide
from fmstune.text import shown_path
from fmstune.trackers.imports import (
    aim_repository,
    mlflow_store,
    tensorboard_folder,
    trackio_database,
    trainer_state,
    wandb_folder,
)
from fmstune.trackers.imports.past import PastRun


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of a run: its directory, and whether it was there `before`; then, how many events of its
    source are not there."""

    directory: Path
    past: PastRun
    before: bool
    newer: int = 0


def runs_at(source: str) -> Iterator[PastRun]:
    """The runs at a place: a path, or an address. Raises `ConfigError` where nothing is known to be, and
    `NotASource`."""
    path = Path(source).expanduser()
    if databases := trackio_database.find(path):  # first: MLflow's store is any database
        return trackio_database.read(databases)
    if (where := mlflow_store.address(source)) is not None:
        return mlflow_store.read(where)
    if (folder := aim_repository.find(path)) is not None:
        return aim_repository.read(folder)
    if files := wandb_folder.find(path):
        return wandb_folder.read(files)
    if (state := trainer_state.find(path)) is not None:
        return trainer_state.read(state)
    if folders := tensorboard_folder.find(path):
        return tensorboard_folder.read(folders, path)
    raise ConfigError(
        f"{shown_path(path)}: there is no Aim repository, MLflow store, offline run of W&B, database of "
        "trackio, trainer_state.json or event file of TensorBoard."
    )


def bring_in(past: PastRun, folder: Path) -> Imported:
    """Make a run directory of a run, unless there is one. Raises `RunError` where it cannot be written."""
    own = hashlib.sha256(f"{past.source} {past.id}".encode("utf-8", "surrogateescape")).hexdigest()[:32]
    name = re.sub(r"[^\w.-]+", "-", past.name).strip("-.")[:80] or past.source
    directory = folder / f"{name}-{own[:8]}"
    path = journal_of(directory)
    before = path.exists() and JournalReader(path).header.id == own
    # A late delivery opens its tracker's run after the events.
    began = min([past.created, *(each.time for each in past.points if each.time is not None)])
    header = Header(
        own, hide(past.name), began, str(Path.cwd()), 0,
        None if past.group is None else hide(past.group), tuple(map(hide, past.tags)),
        None if past.notes is None else hide(past.notes),
    )  # fmt: skip
    try:
        if before:
            with tempfile.TemporaryDirectory() as scratch:
                _write(past, Path(scratch, "journal.jsonl"), header)
                newer = _events(Path(scratch, "journal.jsonl")) - _events(path)
            return Imported(directory, past, before=True, newer=newer.total())
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: what is cut off would be taken for a run that is there.
        made = path.with_name(f".{path.name}.importing")
        made.unlink(missing_ok=True)
        _write(past, made, header)
        made.replace(path)
        made.with_name(made.name + ".lock").unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{shown_path(directory)} cannot be written: {error.strerror or error}.") from error
    return Imported(directory, past, before=False)


def _events(path: Path) -> Counter[str]:
    """What a journal says, but for its numbers and times, which are of no meaning where a source has none."""
    found: Counter[str] = Counter()
    with path.open(encoding="utf-8", errors="replace") as lines:
        next(lines, None)  # the header
        for line in lines:
            try:
                said = json.loads(line)
            except ValueError:  # a damaged line: whatever it was is new
                continue
            if isinstance(said, dict):
                found[json.dumps({**said, "seq": 0, "time": 0}, sort_keys=True)] += 1
    return found


class _Past(JournalWriter):
    """A journal whose events have happened before, at the time `now`."""

    now = 0.0

    def append(self, kind: Kind, fields: Mapping[str, Any], *, finite: bool = False) -> int:
        return super().append(kind, {"time": self.now, **fields}, finite=finite and math.isfinite(self.now))


def _write(past: PastRun, path: Path, header: Header) -> None:
    journal = _Past(path, header)
    try:
        recorder, journal.now = Recorder(journal), header.time
        for namespace, values in past.params.items():
            recorder.set_params(values, namespace)
        recorder.set_params({"source": past.source, "id": past.id}, "imported")
        texts = sorted(past.texts, key=lambda text: text.time, reverse=True)
        for point in (*past.points, None):
            while texts and (point is None or texts[-1].time < (point.time or 0)):
                text = texts.pop()
                journal.now = text.time
                record_text(recorder, text.text, text.name, text.stage, text.step)
            if point is not None:
                journal.now = point.time or journal.now
                recorder.track_point(point)
        recorder.close(past.status, past.error)
    finally:
        journal.close()
