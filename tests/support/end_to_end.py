"""Compares a run's journal with the trackers' own storage."""

from __future__ import annotations

import csv
import json
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fmstune.delivery.journal.reader import JournalReader
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.trackers.records import merged
from fmstune.trackers.swanlab.values import AXES
from tests.support.readers import event_accumulator, read_aim, read_wandb_offline, wandb_offline_dirs

Points = dict[tuple[str, str, int], float]
"""The value of each (stage, metric, step); the last one counts if a step was logged again."""


def journal_points(directory: Path) -> Points:
    """Every point of every metric in the journal."""
    found: Points = {}
    for event in JournalReader(directory / TRACKING_DIR / JOURNAL_NAME):
        if event.kind == "metrics":
            for name, value in event.values.items():
                found[event.stage or "", name, event.step or 0] = value
    return found


def journal_params(directory: Path) -> dict[str, Any]:
    """The params in the journal, by namespace; several events of a namespace are merged."""
    found: dict[str, Any] = {}
    for event in JournalReader(directory / TRACKING_DIR / JOURNAL_NAME):
        if event.kind == "params":
            found[event.name or ""] = merged(found.get(event.name or "", {}), event.values)
    return found


def aim_points(repository: Path, *, reindex: bool = False) -> Points:
    """Every point of the only run in an Aim repository."""
    (run,) = read_aim(repository, reindex=reindex)
    return {
        (subset or "", name, int(step)): value
        for (name, subset), points in run.points.items()
        for step, value in points
    }


def aim_params(repository: Path) -> dict[str, Any]:
    """The params of the only run in an Aim repository, without those that the tracker adds."""
    (run,) = read_aim(repository)
    return {name: value for name, value in run.params.items() if name not in ("status", "error", "fmstune")}


def wandb_points(folder: Path) -> Points:
    """Every point of the only offline W&B run under a folder."""
    (path,) = wandb_offline_dirs(folder)
    found: Points = {}
    for row in read_wandb_offline(path).history:
        for key, value in row.items():
            stage, name = key.split("/", 1) if "/" in key else ("", key)
            if not key.startswith("_") and key not in ("train/global_step", "train/epoch"):
                found[stage, name, int(row.get("train/global_step", 0))] = value
    return found


def wandb_params(folder: Path) -> dict[str, Any]:
    """The params of the only offline W&B run under a folder."""
    (path,) = wandb_offline_dirs(folder)
    return {key: value for key, value in read_wandb_offline(path).config.items() if key != "_wandb"}


def mlflow_points(store: Path) -> Points:
    """Every point of the only run in an MLflow store."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{store}")
    (run,) = client.search_runs(["0"])
    found: Points = {}
    for key in run.data.metrics:
        stage, name = ("eval", key.removeprefix("eval_")) if key.startswith("eval_") else ("train", key)
        stage, name = tuple(key.split("/", 1)) if "/" in key else (stage, name)
        points = [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, key)]
        assert len(points) == len({step for step, _ in points}), "a point arrived twice"
        found |= {(stage, name, step): value for step, value in points}
    return found


def tensorboard_points(logs: Path) -> Points:
    """Every point of the only run in a TensorBoard folder, in single precision."""
    (run,) = (path for path in logs.iterdir() if path.is_dir())
    reader, found = event_accumulator(run), Points()
    for tag in reader.Tags()["scalars"]:
        stage, name = tag.split("/", 1)
        steps = [each.step for each in reader.Scalars(tag)]
        assert len(steps) == len(set(steps)), "a point arrived twice"
        found |= {(stage, name, each.step): each.value for each in reader.Scalars(tag)}
    return found


def trackio_points(database: Path) -> Points:
    """Every point of the only run in the database of a trackio project."""
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT run_id, step, metrics FROM metrics ORDER BY id").fetchall()
    assert len({run for run, _, _ in rows}) == 1
    points = [
        (*key.split("/", 1), step, value)
        for _, step, metrics in rows
        for key, value in json.loads(metrics).items()
        if key not in ("train/global_step", "train/epoch") and not isinstance(value, dict)
    ]
    assert len(points) == len({point[:3] for point in points}), "a point arrived twice"
    return {(stage, name, step): value for stage, name, step, value in points}


def dvclive_points(folder: Path) -> Points:
    """Every point of the only run below a DVCLive folder."""
    (run,) = folder.iterdir()
    found: Points = {}
    for path in (run / "plots" / "metrics").rglob("*.tsv"):
        key = str(path.relative_to(run / "plots" / "metrics")).removesuffix(".tsv")
        stage, name = key.split("/", 1) if "/" in key else ("train", key)
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        assert len(rows) == len({row["step"] for row in rows}), "a point arrived twice"
        if key != "epoch":
            found |= {(stage, name, int(row["step"])): float(row[path.stem]) for row in rows}
    return found


def comet_points(points: Iterable[tuple[str, int | None, Any]]) -> Points:
    """Every point of a Comet experiment, given as name, step and value."""
    found = [(*name.split("/", 1), step or 0, value) for name, step, value in points if name != "train/epoch"]
    assert len(found) == len({point[:3] for point in found}), "a point arrived twice"
    return {(stage, name, step): value for stage, name, step, value in found}


def swanlab_points(scalars: Iterable[tuple[str, int, Any]]) -> Points:
    """Every point of a SwanLab run, given as series, step and value."""
    found: Points = {}
    for key, step, value in scalars:
        stage, name = key.split("/", 1)
        assert (stage, name, step) not in found, "a point arrived twice"
        found[stage, name, step] = value
    return {point: value for point, value in found.items() if f"{point[0]}/{point[1]}" not in AXES}


def swanlab_scalars(log_dir: Path) -> list[tuple[str, int, Any]]:
    """The values in the file of the only offline run in a SwanLab folder."""
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    (file,) = log_dir.glob("run-*/run-*.swanlab")
    reader = DataStoreReader()
    reader.open(file)
    scalars = [Record.FromString(data).scalar for data in reader]
    return [(each.key, each.step, each.value.number) for each in scalars if each.key]


def clearml_points(events: Iterable[Mapping[str, Any]]) -> Points:
    """Every point of a ClearML task, from its server's events; without single values, which are points as
    well."""
    from tests.support.clearml_read import NONE, stored

    scalars = [event for event in events if event["iter"] != NONE]
    points = stored({"hyperparams": {}, "status": ""}, scalars)["points"]
    return {(*key.split("/", 1), step): value for key, step, value in points}


def sqlite_points(database: Path) -> Points:
    """Every point in the database of the example's tracker."""
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT stage, name, step, value FROM metrics ORDER BY seq")
        return {(stage or "", name, step): value for stage, name, step, value in rows}
