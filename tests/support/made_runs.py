"""Made-up runs: journals written by the real writer, without any training."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmstune.delivery.journal.reader import Header
from fmstune.delivery.journal.writer import JournalWriter
from fmstune.delivery.recorder import Recorder
from fmstune.layout import TRACKING_DIR
from fmstune.secrets.redaction import Redactor
from fmstune.trackers.records import MetricPoint, Status
from tests.support.journals import journal_path

SETTINGS: Mapping[str, Any] = {
    "model": {"path": "org/tiny-chat", "dtype": "auto"},
    "data": {"train": "chats.jsonl", "eval_fraction": 0.1},
    "training": {"learning_rate": 1e-4, "max_steps": 10, "packing": False},
    "lora": {"enabled": True, "r": 16},
    "run": {"method": "sft"},
    "tracking": {"trackers": []},
}


def start_run(directory: Path, id_: str = "") -> Recorder:
    """The Recorder of a run that is in progress."""
    (directory / TRACKING_DIR).mkdir(parents=True, exist_ok=True)
    header = Header(id_ or directory.name, directory.name, time.time(), str(directory.parent))
    return Recorder(JournalWriter(journal_path(directory), header), Redactor({}))


def end_run(recorder: Recorder, status: Status | None = "finished", error: str | None = None) -> None:
    """End a run's process: with a status, or without one, as a kill does."""
    if status is not None:
        recorder.close(status, error)
    recorder.journal.close()


def make_run(
    directory: Path,
    losses: Mapping[int, Any] | None = None,
    *,
    params: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    status: Status | None = "finished",
    error: str | None = None,
    eval_loss: float | None = None,
) -> Path:
    """A run that has ended, with a loss at each of the given steps; returns its directory."""
    recorder = start_run(directory)
    if params:
        recorder.set_params(params, "params")
    recorder.set_params(with_settings(settings or {}), "config")
    for step, loss in ({1: 2.0, 2: 1.5} if losses is None else losses).items():
        values = {"loss": loss, "learning_rate": 1e-4 / step if step else 0.0}
        recorder.track_point(MetricPoint(values, "train", step, step / 10))
    if eval_loss is not None:
        recorder.track(eval_loss, "loss", "eval", step=max(losses or {2: 0}))
    end_run(recorder, status, error)
    return directory


def with_settings(changed: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a made-up run with some of them changed, by dotted key."""
    tables = {name: dict(values) for name, values in SETTINGS.items()}
    for key, value in changed.items():
        table, _, name = key.partition(".")
        tables.setdefault(table, {})[name] = value
    return tables


def aged(directory: Path, seconds: float = 3600.0) -> Path:
    """The run, with the modification times of its files set back by so many seconds."""
    then = time.time() - seconds
    for path in directory.rglob("*"):
        os.utime(path, (then, then))
    return directory
