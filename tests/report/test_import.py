"""`fmstune runs import` converts the run in a tracker's storage to a run directory with a journal; a second
import changes nothing, and of a damaged source everything readable is imported. Through the real SDKs."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fmstune.delivery.journal.labels import labels
from fmstune.delivery.journal.reader import Event, JournalReader
from fmstune.delivery.ledger import load_ledger
from fmstune.report.importing import Imported, import_run, runs_at
from fmstune.testing import runs
from fmstune.testing.compare import differences, params_of
from fmstune.testing.findings import Stored
from fmstune.trackers.continued import MARK
from fmstune.trackers.imports.past import NotASource
from tests.support.commands import fmstune as command
from tests.support.journals import events, journal_path
from tests.support.mlflow_servers import store_in
from tests.support.nurseries import lives
from tests.support.unprivileged import unprivileged


@dataclass(frozen=True)
class TrackerCase:
    reference: str
    options: dict[str, Any]


TRACKER_CASES = {
    "aim": TrackerCase("aimstack_tracker:AimStackTracker", {"repo": "."}),
    "wandb": TrackerCase("wandb_tracker:WandbTracker", {"mode": "offline", "dir": "."}),
    "mlflow": TrackerCase("mlflow_tracker:MlflowTracker", {"tracking_uri": "sqlite:///mlflow.db"}),
    "trackio": TrackerCase("trackio_tracker:TrackioTracker", {}),
}
STATE = {
    "global_step": 4, "max_steps": 4, "num_train_epochs": 1, "best_metric": 1.5,
    "log_history": [
        {"step": 2, "epoch": 0.5, "loss": 2.0, "learning_rate": 1e-4, "grad_norm": 0.5},
        {"step": 4, "epoch": 1.0, "loss": 1.0, "learning_rate": 0.0, "grad_norm": 0.25},
        {"step": 4, "epoch": 1.0, "eval_loss": 1.5, "eval_runtime": 0.1},
        "nonsense",
        {"step": 4, "epoch": 1.0, "train_runtime": 3.0},
    ],
}  # fmt: skip


def delivered(name: str, run: Path) -> list[Event]:
    """A run with one event of each kind, in the storage of a tracker next to it."""
    runs.write(run, runs.whole)
    case = TRACKER_CASES[name]
    if name == "mlflow":
        store_in(run.parent)
    assert lives(name).deliver(run, f"fmstune.trackers.{case.reference}", case.options)
    return events(run)


def imported(source: Path, into: Path) -> Imported:
    (past,) = runs_at(str(source))
    return import_run(past, into)


def stored_in(found: list[Event]) -> Stored:
    points = [
        (f"{event.stage}/{name}" if event.stage else name, event.step, value)
        for event in found
        if event.kind == "metrics"
        for name, value in event.values.items()
    ]
    params = params_of(found)
    status = next(event.status for event in found if event.kind == "status")
    return Stored(points, {key: value for key, value in params.items() if key != "imported"}, status)


@pytest.mark.parametrize("name", TRACKER_CASES)
def test_what_a_tracker_received_is_imported_from_it(name: str, tmp_path: Path) -> None:
    run = tmp_path / "there" / "run"
    tracked = delivered(name, run)
    made = imported(run.parent, tmp_path / "here")
    assert not made.before
    back = events(made.directory)
    stored = stored_in(back)
    wanted = {key for key, _, _ in stored_in(tracked).points} | {"train/answer"}
    assert {key for key, _, _ in stored.points} <= wanted, "only metrics become metrics"
    ledger = load_ledger(run, "t")
    assert ledger is not None
    missing = differences(tracked, stored, ledger.changes, replaces=False)
    # MLflow gives metrics of the stage `train` and those without a stage the same name.
    assert missing == (["answer is missing: 7"] if name == "mlflow" else [])
    assert stored.status == "finished"
    times = [event.time for event in back]
    assert times == sorted(times)
    assert abs(times[-1] - tracked[-1].time) < 60
    assert labels(journal_path(made.directory)).name == "run"

    before = journal_path(made.directory).read_bytes()
    again = imported(run.parent, tmp_path / "here")
    assert (again.before, again.newer) == (True, 0)
    assert journal_path(made.directory).read_bytes() == before


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


def test_of_a_truncated_file_everything_readable_is_imported(tmp_path: Path) -> None:
    run = tmp_path / "there" / "run"
    delivered("wandb", run)
    (path,) = run.parent.glob("wandb/offline-run-*/*.wandb")
    path.write_bytes(path.read_bytes()[:-700])
    made = imported(run.parent, tmp_path / "here")
    assert any("has no end: the run was killed, or its file is cut off" in each for each in made.past.lost)
    assert made.past.status == "interrupted"
    assert any(event.kind == "metrics" for event in events(made.directory))


def test_a_trainer_state_becomes_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for step in (2, 4):
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        state = STATE | {"log_history": STATE["log_history"][: step + 1]}
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    done = command("runs", "import", "out", cwd=tmp_path, light=True)
    assert done.returncode == 0, done.stderr
    line, _, said = done.stdout.strip().partition("  ")
    assert said == "4 points"
    assert "1 entries of its history have no step" in done.stderr
    found = events(tmp_path / line)
    assert sorted(stored_in(found).points)[:3] == [
        ("eval/loss", 4, 1.5), ("eval/runtime", 4, 0.1), ("train/grad_norm", 2, 0.5),
    ]  # fmt: skip
    again = command("runs", "import", "out", "--json", cwd=tmp_path, light=True)
    assert [each["before"] for each in json.loads(again.stdout)] == [True]
    shown = command("runs", "list", "--json", cwd=tmp_path, light=True)
    assert [(each["name"], each["eval"]) for each in json.loads(shown.stdout)] == [("out", 1.5)]


def test_a_source_without_runs_creates_nothing(tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text("[]")
    for source, said in (
        ("nowhere", "found no Aim repository, MLflow store"),
        (".", "is not a Trainer state"),
    ):
        done = command("runs", "import", source, cwd=tmp_path, light=True)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["trainer_state.json"]
    with pytest.raises(NotASource):
        list(runs_at(str(tmp_path)))


def test_an_imported_journal_is_complete_or_absent(tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text(json.dumps(STATE))
    made = imported(tmp_path, tmp_path / "here")
    folder = journal_path(made.directory).parent
    assert [path.name for path in folder.iterdir()] == ["journal.jsonl"]
    assert JournalReader(folder / "journal.jsonl").header.run == tmp_path.name


@pytest.mark.parametrize(
    ("closed", "inner"),
    [
        ("source", ""),
        ("source/.aim", "source/.aim/locks cannot be used: "),
        ("source/checkpoint-3/trainer_state.json", "source/checkpoint-3/trainer_state.json cannot be used: "),
        ("source/wandb", "source/wandb cannot be used: "),
        ("source/mlflow.db", "{}/source/mlflow.db cannot be used: "),
    ],
)
def test_a_closed_source_is_refused_by_the_name_that_was_given(
    closed: str, inner: str, tmp_path: Path
) -> None:
    path = tmp_path / closed
    path.mkdir(parents=True)
    if path.suffix:
        path.rmdir()
        path.touch()
    path.chmod(0)
    done = unprivileged("from fmstune.cli.main import main; main(['runs', 'import', 'source'])", tmp_path)
    assert done.returncode == 2
    rights = "u+rw" if path.suffix else "u+rwx"
    shown = inner.format(tmp_path).partition(" ")[0].removesuffix("/locks") or "source"
    assert done.stderr.splitlines()[-1].replace(f"{tmp_path}/source/.aim", "source/.aim") == (
        f"error: source cannot be imported: {inner.format(tmp_path)}"
        f"Permission denied. `chmod {rights} {shown}` gives you access."
    )


def test_a_database_that_does_not_exist_is_not_created_by_reading_it(tmp_path: Path) -> None:
    with pytest.raises(NotASource, match="there is no such file"):
        list(runs_at(f"sqlite:///{tmp_path}/made/mlflow.db"))
    assert not list(tmp_path.iterdir())
