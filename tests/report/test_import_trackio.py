"""`fmstune runs import` of trackio's databases: what trackio itself and other programs wrote is read, or
reported."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fmstune.report.importing import Imported, import_run, runs_at
from fmstune.trackers.continued import MARK
from tests.support.commands import fmstune as command
from tests.support.journals import journal_path


def imported(source: Path, into: Path) -> Imported:
    (past,) = runs_at(str(source))
    return import_run(past, into)


def test_a_run_that_trackio_itself_logged_is_imported(tmp_path: Path) -> None:
    run = tmp_path / "there" / "run"
    code = (
        "import trackio; trackio.init('p', name='own', config={'lr': 1}, group='g', auto_log_cpu=False)\n"
        "trackio.log({'train/loss': 2.0, 'eval/loss': float('nan'), 'train/global_step': 7, 'score': 3})\n"
        "trackio.log({'note': trackio.Markdown('text'), 'hist': trackio.Histogram([1, 2])})\n"
        "trackio.log_system({'gpu/0/power': 50.0})\n"
        "trackio.alert('high', text='loss', level=trackio.AlertLevel.WARN)\n"
        "trackio.finish()"
    )
    run.mkdir(parents=True)
    subprocess.run([sys.executable, "-c", code], cwd=run, check=True, capture_output=True)
    there = {path: path.read_bytes() for path in (run / "trackio").rglob("*") if path.is_file()}
    (past,) = runs_at(str(run))
    assert (past.name, past.group, past.params) == ("own", "g", {"params": {"lr": 1}})
    # trackio's writer stamps each kind with its own time.
    of_system = [point for point in past.points if point.stage == "system"]
    assert [(point.step, dict(point.values)) for point in of_system] == [(None, {"gpu/0/power": 50})]
    assert [(each.stage, each.step, list(each.values)) for each in past.points if each not in of_system] == [
        ("train", 7, ["loss"]), ("eval", 7, ["loss"]), (None, 7, ["score"]),
    ]  # fmt: skip
    assert [(each.text, each.name) for each in past.texts] == [
        ("text", "note"),
        ("warn: high\nloss", "alert"),
    ]
    assert past.lost == (
        "hist is not read: trackio.histogram",
        "trackio does not record how it ended: it is assumed finished",
    )
    assert there == {path: path.read_bytes() for path in (run / "trackio").rglob("*") if path.is_file()}


TRACKIO = """
CREATE TABLE metrics (id INTEGER PRIMARY KEY, run_id TEXT, timestamp TEXT, run_name TEXT, step, metrics TEXT);
CREATE TABLE configs (id INTEGER PRIMARY KEY, run_id TEXT, run_name TEXT, config TEXT, created_at TEXT);
CREATE TABLE system_metrics (
    id INTEGER PRIMARY KEY, run_id TEXT, timestamp TEXT, run_name TEXT, metrics TEXT
);
CREATE TABLE alerts (
    id INTEGER PRIMARY KEY, run_id TEXT, timestamp TEXT, run_name TEXT,
    title TEXT, text TEXT, level TEXT, step
);
CREATE TABLE traces (id TEXT, run_id TEXT, timestamp TEXT, run_name TEXT);
"""
NOON = "2026-01-01T12:00:0"


def trackio_database(folder: Path, **tables: list[dict[str, Any]]) -> Path:
    """A database with trackio's schema; JSON columns are stored as given."""
    path = folder / "trackio" / "p.db"
    path.parent.mkdir(exist_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(TRACKIO.replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS"))
        for table, rows in tables.items():
            for row in rows:
                values = [
                    json.dumps(each) if isinstance(each, (dict, list)) else each for each in row.values()
                ]
                marks = ", ".join("?" * len(row))
                database.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", values)
        database.commit()
    return path


def logged(second: int, metrics: Any, step: Any = 1, run: str = "a") -> dict[str, Any]:
    at = f"{NOON}{second}+00:00"
    return {"run_id": run, "timestamp": at, "run_name": run, "step": step, "metrics": metrics}


def test_everything_that_trackio_has_of_a_run_is_read_or_reported(tmp_path: Path) -> None:
    said = logged(0, {}) | {"metrics": {"gpu/0/utilization": 50, "what": "x"}}
    del said["step"]
    alert = {
        "run_id": "c",
        "timestamp": f"{NOON}5",
        "run_name": "c",
        "title": "high",
        "text": "loss",
        "level": "warn",
        "step": 3,
    }
    trackio_database(
        tmp_path,
        metrics=[logged(1, {"loss": 1.0})],
        system_metrics=[said],
        configs=[{"run_id": "b", "run_name": "b", "config": {"lr": 1}, "created_at": f"{NOON}3"}],
        alerts=[alert],
        traces=[{"id": "1", "run_id": "a", "timestamp": f"{NOON}1", "run_name": "a"}],
    )
    first, second, third = runs_at(str(tmp_path))
    assert [(point.stage, point.step, dict(point.values)) for point in first.points] == [
        ("system", None, {"gpu/0/utilization": 50}), (None, 1, {"loss": 1.0}),
    ]  # fmt: skip
    assert {"what of the system metrics is not read: not a number", "1 trace not read"} <= set(first.lost)
    assert (second.name, second.params) == ("b", {"params": {"lr": 1}})
    assert [(each.text, each.name, each.step) for each in third.texts] == [("warn: high\nloss", "alert", 3)]


@pytest.mark.parametrize(
    ("config", "status", "said"),
    [
        ({"status": "finished"}, "finished", None),
        ({"status": "running"}, "interrupted", "its status 'running' is unknown"),
        ({"status": ["x"], "tags": None, "notes": 1, "error": 2}, "interrupted", "is unknown"),
        ({}, "interrupted", "it has no end"),
        ([], "finished", "its config is not a JSON object"),
    ],
)
def test_an_unknown_status_is_reported(config: Any, status: str, said: str | None, tmp_path: Path) -> None:
    config = config if isinstance(config, list) else config | {MARK: {}}
    configs = [{"run_id": "a", "run_name": "a", "config": config, "created_at": f"{NOON}0"}]
    trackio_database(tmp_path, metrics=[logged(0, {"loss": 1})], configs=configs)
    (past,) = runs_at(str(tmp_path))
    assert past.status == status
    assert (said is None and past.lost == ()) or any(str(said) in each for each in past.lost)
    import_run(past, tmp_path / "here")


@pytest.mark.parametrize(
    ("logs", "own", "step", "said"),
    [
        ({"train/global_step": 7}, 1, 7, None),
        ({"train/global_step": 7.0}, 1, 7, None),
        ({"train/global_step": "x"}, 1, 1, "'x' is not a step: trackio's own (1) is used"),
        ({"train/global_step": 2.5}, 1, 1, "2.5 is not a step"),
        ({"train/global_step": True}, 1, 1, "True is not a step"),
        ({"train/global_step": 1e300}, 1, 1, "is not a step"),
        ({}, "y", None, "the step 'y' is not a step"),
        ({"train/epoch": "z"}, 1, 1, "train/epoch 'z' is not an epoch"),
    ],
)
def test_a_step_that_is_no_integer_is_reported(
    logs: dict[str, Any], own: Any, step: int | None, said: str | None, tmp_path: Path
) -> None:
    trackio_database(tmp_path, metrics=[logged(0, {"loss": 1.0, **logs}, own)])
    (past,) = runs_at(str(tmp_path))
    (point,) = past.points
    assert (point.step, dict(point.values)) == (step, {"loss": 1.0})
    assert (said is None) or any(said in each for each in past.lost)


def test_events_that_a_source_received_since_are_counted(tmp_path: Path) -> None:
    rows = [logged(0, {"loss": 2.0})]
    trackio_database(tmp_path, metrics=rows)
    into = tmp_path / "here"
    made = imported(tmp_path, into)
    assert (made.before, made.newer) == (False, 0)
    assert (imported(tmp_path, into).before, imported(tmp_path, into).newer) == (True, 0)
    before = journal_path(made.directory).read_bytes()
    trackio_database(tmp_path, metrics=[logged(1, {"loss": 1.0}, 2), logged(2, {"loss": 1.0}, 3)])
    done = command("runs", "import", ".", "--output-dir", "here", cwd=tmp_path, light=True)
    assert done.returncode == 0, done.stderr
    assert "its source has 2 events that are not here: delete it (fmstune runs rm here/" in done.stderr
    assert journal_path(made.directory).read_bytes() == before
    assert imported(tmp_path, tmp_path / "again").newer == 0
