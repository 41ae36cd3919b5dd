"""`fmstune runs import` converts the run in a tracker's storage to a run directory with a journal; a second
import changes nothing, and of a damaged source everything readable is imported. Through the real SDKs."""

from __future__ import annotations

import json
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
from fmstune.trackers.imports.past import NotASource
from tests.support.commands import fmstune as command
from tests.support.journals import events, journal_path
from tests.support.mlflow_servers import store_in
from tests.support.nurseries import lives, run_code
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


def test_runs_that_aim_itself_wrote_are_imported_before_its_ui_has_indexed_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = """
from aim import Repo, Run
Repo.from_path("there", init=True)
run = Run(repo="there", system_tracking_interval=None, log_system_params=False)
run["hparams"] = {"lr": 1}
for layer in (1, 2):
    run.track(layer / 2, name="norm", step=3, context={"subset": "train", "layer": layer})
run.track(1.5, name="loss", step=3, context={"subset": "val"})
run.close()
"""
    done = run_code(code, tracker="aim")
    assert done.returncode == 0, done.stderr
    files = {path: path.read_bytes() for path in Path("there").rglob("*") if path.is_file()}
    (past,) = runs_at("there")
    assert [(point.stage, point.step, dict(point.values)) for point in past.points] == [
        ("train", 3, {"norm[layer=1]": 0.5}),
        ("train", 3, {"norm[layer=2]": 1.0}),
        ("val", 3, {"loss": 1.5}),
    ]
    assert (past.params, past.status, past.lost) == ({"hparams": {"lr": 1}}, "finished", ())
    assert files == {path: path.read_bytes() for path in files}


def test_samples_and_the_summary_of_a_run_that_wandb_itself_wrote_are_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = """
import wandb
run = wandb.init(mode="offline", dir=".", settings=wandb.Settings(x_stats_sampling_interval=0.1))
run.log({"loss": 2.0})
run.summary["best"] = 0.5
run.summary["loss"] = 1.0  # of a metric, whose values are imported
run.summary["note"] = "a text"
run.finish()
"""
    done = run_code(code, tracker="wandb")
    assert done.returncode == 0, done.stderr
    (past,) = runs_at("wandb")
    own = [point for point in past.points if point.stage != "system"]
    assert [(point.stage, point.step, dict(point.values)) for point in own] == [
        (None, 0, {"loss": 2.0}),
        (None, None, {"best": 0.5}),
    ]
    assert any("memory_percent" in point.values for point in past.points if point.stage == "system")
    assert past.lost == ("not numbers, and left out: note",)
