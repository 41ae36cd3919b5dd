"""`fmstune runs import`: what a tracker's storage holds of a run comes back as a run directory with a
journal; twice changes nothing, and of a damaged source comes what can be read. Through the real SDKs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fmstune.delivery.journal.labels import labels
from fmstune.delivery.journal.reader import Event, JournalReader
from fmstune.delivery.ledger import load_ledger
from fmstune.report.importing import Imported, bring_in, runs_at
from fmstune.testing import runs
from fmstune.testing.compare import differences, params_of
from fmstune.testing.findings import Stored
from fmstune.testing.lives import nursery
from fmstune.trackers.imports.past import NotASource
from tests.support.commands import fmstune as command
from tests.support.journals import events, journal_path
from tests.support.mlflow_servers import store_in


@dataclass(frozen=True)
class Place:
    reference: str
    options: dict[str, Any]
    modules: tuple[str, ...]


PLACES = {
    "aim": Place("aimstack_tracker:AimStackTracker", {"repo": "."}, ("aim",)),
    "wandb": Place("wandb_tracker:WandbTracker", {"mode": "offline", "dir": "."}, ("wandb",)),
    "mlflow": Place(
        "mlflow_tracker:MlflowTracker", {"tracking_uri": "sqlite:///mlflow.db"}, ("mlflow.tracking",)
    ),
    "trackio": Place("trackio_tracker:TrackioTracker", {}, ("trackio", "trackio.sqlite_storage")),
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
    """A run with something of each kind, in the storage of a tracker beside it."""
    runs.write(run, runs.whole)
    place = PLACES[name]
    if name == "mlflow":
        store_in(run.parent)
    with nursery(*place.modules) as lives:
        assert lives.deliver(run, f"fmstune.trackers.{place.reference}", place.options)
    return events(run)


def imported(source: Path, into: Path) -> Imported:
    (past,) = runs_at(str(source))
    return bring_in(past, into)


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


@pytest.mark.parametrize("name", PLACES)
def test_what_a_tracker_got_comes_back_from_it(name: str, tmp_path: Path) -> None:
    run = tmp_path / "there" / "run"
    tracked = delivered(name, run)
    made = imported(run.parent, tmp_path / "here")
    assert not made.before
    back = events(made.directory)
    stored = stored_in(back)
    wanted = {key for key, _, _ in stored_in(tracked).points} | {"train/answer"}
    assert {key for key, _, _ in stored.points} <= wanted, "what is no metric is none here"
    ledger = load_ledger(run, "t")
    assert ledger is not None
    missing = differences(tracked, stored, ledger.changes, replaces=False)
    # MLflow has one name for what is of the stage `train` and what is of none.
    assert missing == (["answer is not there: 7"] if name == "mlflow" else [])
    assert stored.status == "finished"
    times = [event.time for event in back]
    assert times == sorted(times)
    assert abs(times[-1] - tracked[-1].time) < 60
    assert labels(journal_path(made.directory)).name == "run"

    before = journal_path(made.directory).read_bytes()
    assert imported(run.parent, tmp_path / "here").before
    assert journal_path(made.directory).read_bytes() == before


def test_a_run_that_trackio_itself_has_logged_comes_back(tmp_path: Path) -> None:
    run = tmp_path / "there" / "run"
    code = (
        "import trackio; trackio.init('p', name='own', config={'lr': 1}, group='g', auto_log_cpu=False)\n"
        "trackio.log({'train/loss': 2.0, 'eval/loss': float('nan'), 'train/global_step': 7, 'score': 3})\n"
        "trackio.log({'note': trackio.Markdown('text'), 'hist': trackio.Histogram([1, 2])})\n"
        "trackio.finish()"
    )
    run.mkdir(parents=True)
    subprocess.run([sys.executable, "-c", code], cwd=run, check=True, capture_output=True)
    there = {path: path.read_bytes() for path in (run / "trackio").rglob("*") if path.is_file()}
    (past,) = runs_at(str(run))
    assert (past.name, past.group, past.params) == ("own", "g", {"params": {"lr": 1}})
    assert [(point.stage, point.step, list(point.values)) for point in past.points] == [
        ("train", 7, ["loss"]), ("eval", 7, ["loss"]), (None, 7, ["score"]),
    ]  # fmt: skip
    assert [(each.text, each.name) for each in past.texts] == [("text", "note")]
    assert past.lost == (
        "hist is not read: trackio.histogram",
        "trackio does not say how it ended, which is taken for finished",
    )
    assert there == {path: path.read_bytes() for path in (run / "trackio").rglob("*") if path.is_file()}


def test_of_a_file_that_is_cut_off_comes_what_can_be_read(tmp_path: Path) -> None:
    run = tmp_path / "there" / "run"
    delivered("wandb", run)
    (path,) = run.parent.glob("wandb/offline-run-*/*.wandb")
    path.write_bytes(path.read_bytes()[:-700])
    made = imported(run.parent, tmp_path / "here")
    assert any("has no end: the run was killed, or its file is cut off" in each for each in made.past.lost)
    assert made.past.status == "interrupted"
    assert any(event.kind == "metrics" for event in events(made.directory))


def test_a_state_of_the_trainer_becomes_a_run(tmp_path: Path) -> None:
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


def test_where_nothing_is_known_to_be_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text("[]")
    for source, said in (
        ("nowhere", "there is no Aim repository, MLflow store"),
        (".", "is no state of a Trainer"),
    ):
        done = command("runs", "import", source, cwd=tmp_path, light=True)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["trainer_state.json"]
    with pytest.raises(NotASource):
        list(runs_at(str(tmp_path)))


def test_a_journal_is_whole_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text(json.dumps(STATE))
    made = imported(tmp_path, tmp_path / "here")
    folder = journal_path(made.directory).parent
    assert [path.name for path in folder.iterdir()] == ["journal.jsonl"]
    assert JournalReader(folder / "journal.jsonl").header.run == tmp_path.name
