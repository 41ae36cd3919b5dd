"""Import runs that another tool has tracked into run directories with journals, so that they can be shown,
compared and delivered like any other run."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmstune.access import denied, reason, unusable_path
from fmstune.delivery.journal.encoding import CHECKSUM, loads
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
from fmstune.trackers.imports.past import NotASource, PastRun


@dataclass(frozen=True, slots=True)
class Imported:
    """An imported run: its directory, whether it existed `before`, and if so, how many events of its source
    are `newer`."""

    directory: Path
    past: PastRun
    before: bool
    newer: int = 0


def runs_at(source: str) -> Iterator[PastRun]:
    """The runs at a path or address. Raises `ConfigError` if nothing is recognised there, or something there
    is closed to this user, and `NotASource`."""
    path = Path(source).expanduser()
    try:
        if path.exists() and not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
            raise ConfigError(f"{shown_path(path)} cannot be imported: {denied(path)}.")
        yield from _found_at(source, path)
    except (OSError, NotASource) as error:
        cause = error.__cause__ if isinstance(error, NotASource) else error
        if cause is None or (message := unusable_path(cause)) is None:
            raise
        raise ConfigError(f"{shown_path(path)} cannot be imported: {message}") from error


def _found_at(source: str, path: Path) -> Iterator[PastRun]:
    if databases := trackio_database.find(path):  # first, since any database may be an MLflow store
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
        f"{shown_path(path)}: found no Aim repository, MLflow store, W&B offline run, trackio database, "
        "trainer_state.json or TensorBoard event file."
    )


def import_run(past: PastRun, folder: Path) -> Imported:
    """Create a run directory from a run, unless it exists. Raises `RunError` if it cannot be written."""
    own = hashlib.sha256(f"{past.source} {past.id}".encode("utf-8", "surrogateescape")).hexdigest()[:32]
    name = re.sub(r"[^\w.-]+", "-", past.name).strip("-.")[:80] or past.source
    directory = folder / f"{name}-{own[:8]}"
    path = journal_of(directory)
    before = path.exists() and JournalReader(path).header.id == own
    # With a late delivery, the tracker's run was created after its events.
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
        # Atomically: a truncated journal would be taken for an imported run.
        made = path.with_name(f".{path.name}.importing")
        made.unlink(missing_ok=True)
        _write(past, made, header)
        made.replace(path)
        made.with_name(made.name + ".lock").unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{shown_path(directory)} cannot be written: {reason(error, path)}.") from error
    return Imported(directory, past, before=False)


def _events(path: Path) -> Counter[str]:
    """The contents of a journal without sequence numbers and times, which are meaningless if the source has
    none, and without checksums."""
    found: Counter[str] = Counter()
    with path.open("rb") as lines:
        next(lines, None)  # the header
        for line in lines:
            try:
                said = loads(line)
            except ValueError:  # a damaged line counts as missing
                continue
            if isinstance(said, dict):
                found[json.dumps({**said, "seq": 0, "time": 0, CHECKSUM: ""}, sort_keys=True)] += 1
    return found


class _Past(JournalWriter):
    """A journal for past events, at the time `now`."""

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
