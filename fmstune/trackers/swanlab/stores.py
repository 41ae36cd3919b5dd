"""Where the tracker `swanlab` stores a run: a folder, or an experiment of the service; and which one."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fmstune.trackers.continued import is_another_runs, mark, note
from fmstune.trackers.records import RunStart
from fmstune.trackers.swanlab.checks import find_api_key
from fmstune.trackers.swanlab.cloud import Client, Experiment, mark_there
from fmstune.trackers.swanlab.files import RunFolder, folders_of, new_folder, read_state
from fmstune.trackers.swanlab.series import Batch, Series
from fmstune.trackers.swanlab.settings import (
    SwanLabOptions,
    SwanLabUnusable,
    start_record,
)
from fmstune.trackers.unusable import require_writable

if TYPE_CHECKING:
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record


class Store(Protocol):
    """Where a run is stored: a folder, or the service."""

    series: Series
    params: dict[str, Any]

    def has(self, seq: int) -> bool: ...

    def holds(self, last: int) -> bool: ...

    def write(self, batch: Batch) -> None: ...

    def finish(self, end: Record) -> None: ...


def open_store(
    options: SwanLabOptions, settings: Any, start: RunStart, notes: list[str]
) -> tuple[RunFolder | Experiment, str]:
    """Open the store of a run; return it with the run's id there. Messages for the user are added to
    `notes`."""
    must = start.tracker_run_id is None and settings.run.resume == "must"
    if must and not settings.run.id:
        detail = "SWANLAB_RESUME is `must`, and there is no SWANLAB_RUN_ID"
        raise SwanLabUnusable("bad_option", detail, "set SWANLAB_RUN_ID, or unset SWANLAB_RESUME")
    wanted = start.tracker_run_id or settings.run.id or start.new_run_id or uuid.uuid4().hex
    return (_offline if settings.mode == "offline" else _online)(options, settings, start, wanted, notes)


def _offline(
    options: SwanLabOptions, settings: Any, start: RunStart, wanted: str, notes: list[str]
) -> tuple[RunFolder, str]:
    log_dir = Path(settings.log_dir).absolute()
    require_writable(log_dir, SwanLabUnusable)
    there = folders_of(log_dir, wanted)
    folder, state = next(
        ((each, state) for each in there if (state := read_state(each)) is not None), (None, None)
    )
    found = None if not there else {} if state is None else state.mark
    run_id = _chosen(settings, start, wanted, found, notes)
    if run_id != wanted or folder is None:
        folder = new_folder(log_dir, run_id)
    record = start_record(options, settings, start, run_id, notes)
    return RunFolder(folder, _mark(start), start.after, record), run_id


def _online(
    options: SwanLabOptions, settings: Any, start: RunStart, wanted: str, notes: list[str]
) -> tuple[Experiment, str]:
    client = Client(settings.api_host, find_api_key(settings))
    found = mark_there(client, settings, wanted)
    if found is None and start.tracker_run_id is None and settings.run.resume == "must":
        detail = f"SWANLAB_RESUME is `must`, and there is no run {wanted}"
        raise SwanLabUnusable("bad_option", detail, "correct SWANLAB_RUN_ID, or unset SWANLAB_RESUME")
    run_id = _chosen(settings, start, wanted, found, notes)
    store = Experiment(client, settings, start_record(options, settings, start, run_id, notes))
    store.begin(_mark(start), start.after)
    return store, run_id


def _mark(start: RunStart) -> dict[str, Any]:
    return mark(start) if start.run_id is not None else {}


def _chosen(
    settings: Any, start: RunStart, wanted: str, found: Mapping[str, Any] | None, notes: list[str]
) -> str:
    """The requested id, or a new one if that belongs to a run that this one does not continue. `found` is the
    mark of the run there."""
    if found is None:
        return wanted
    asked = start.tracker_run_id is None and settings.run.id == wanted
    own = start.run_id is not None and found.get("run_id") == start.run_id
    if not is_another_runs(found, start) and (own or not asked or settings.run.resume != "never"):
        return wanted
    if asked and settings.run.resume == "must":
        detail = f"SWANLAB_RESUME is `must`, and another fmstune run uses the run {wanted}"
        raise SwanLabUnusable("bad_option", detail, "unset SWANLAB_RUN_ID and SWANLAB_RESUME")
    if asked and found.get("run_id") is None:
        notes.append(f"a run of its own there, as SWANLAB_RESUME does not allow to continue {wanted}")
    else:
        notes.append(note(dataclasses.replace(start, tracker_run_id=wanted)))
    return uuid.uuid4().hex
