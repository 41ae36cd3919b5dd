"""An MLflow server whose database is restored to an older state while a run is delivered to it: it gets what
it lost, each point once."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from fmstune.delivery.journal.reader import JournalReader
from fmstune.delivery.ledger import load_ledger
from fmstune.delivery.report import report
from fmstune.delivery.shipping.progress import DeliveryFailed
from fmstune.trackers.mlflow_tracker import MlflowTracker
from fmstune.trackers.records import MetricPoint, RunStart, Status
from tests.support.aim_servers import free_port
from tests.support.commands import end_session
from tests.support.journals import journal_path, open_journal
from tests.support.mlflow_servers import mlflow_server, store_in
from tests.support.shipping import delivered_by

STEPS = range(1, 13)
KEPT, LOST = 3, 6


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a shipper: no telemetry, and few retries. On a fast machine a restore takes no longer than the
    store is assumed to be the same."""
    monkeypatch.setattr("fmstune.trackers.mlflow_tracker._ASSUMED_SECONDS", 0.0)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def journal_of_steps(run_directory: Path) -> None:
    journal = open_journal(run_directory)
    for step in STEPS:
        journal.append("metrics", {"stage": "train", "step": step, "values": {"loss": step / 8}})
    journal.append("status", {"status": "finished"})
    journal.close()


def copied(source: Path, target: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(source)) as old,
        contextlib.closing(sqlite3.connect(target)) as new,
    ):
        old.backup(new)


class Flushing(MlflowTracker):
    """As while a training runs: what is tracked is sent at once."""

    def track_point(self, point: MetricPoint) -> None:
        super().track_point(point)
        self.flush()


def test_what_a_restored_server_lost_is_delivered_again(tmp_path: Path, run_directory: Path) -> None:
    journal_of_steps(run_directory)
    home, older, port = tmp_path / "server", tmp_path / "older.db", free_port()
    with contextlib.ExitStack() as servers:
        server = servers.enter_context(mlflow_server(home, port))

        class Restored(Flushing):
            def track_point(self, point: MetricPoint) -> None:
                super().track_point(point)
                if self.seq == KEPT:
                    copied(home / "mlflow.db", older)
                elif self.seq == LOST:
                    end_session(server)
                    copied(older, home / "mlflow.db")
                    servers.enter_context(mlflow_server(home, port))

        options = {"tracking_uri": f"http://127.0.0.1:{port}"}
        with pytest.raises(DeliveryFailed, match="restored to an older state") as failed:
            delivered_by(Restored("mlflow", options), run_directory)
        assert failed.value.again
        ledger = delivered_by(Flushing("mlflow", options), run_directory)
        client = MlflowClient(options["tracking_uri"])
        found = client.get_metric_history(str(ledger.run_id), "loss")
        assert sorted((each.step, each.value) for each in found) == [(step, step / 8) for step in STEPS]
        assert client.get_run(str(ledger.run_id)).info.status == "FINISHED"
    (line,) = report(run_directory, ["mlflow"])
    assert (line.delivered, line.total, line.state) == (13, 13, "complete")
    assert "delivered again" in str(line.note)


def test_a_store_restored_just_before_the_run_is_closed_is_noticed(
    tmp_path: Path, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    journal_of_steps(run_directory)
    store, older = store_in(tmp_path), tmp_path / "older.db"

    class Restored(Flushing):
        def track_point(self, point: MetricPoint) -> None:
            super().track_point(point)
            if self.seq == KEPT:
                copied(store, older)

        def close(self, status: Status, error: str | None = None) -> None:
            copied(older, store)  # in place: the file is the same one
            super().close(status, error)

    options = {"tracking_uri": "sqlite:///mlflow.db"}
    with pytest.raises(DeliveryFailed, match="restored to an older state"):
        delivered_by(Restored("mlflow", options), run_directory)
    ledger = delivered_by(Flushing("mlflow", options), run_directory)
    found = MlflowClient(options["tracking_uri"]).get_metric_history(str(ledger.run_id), "loss")
    assert sorted((each.step, each.value) for each in found) == [(step, step / 8) for step in STEPS]

    # After the run: `trackers sync` asks the store.
    known = load_ledger(run_directory, "mlflow")
    assert known is not None
    tracker = MlflowTracker("mlflow", options)
    header = JournalReader(journal_path(run_directory)).header
    start = RunStart("run", ".", tracker_run_id=known.run_id, run_id=header.id)
    assert tracker.is_stored(start, known.last_given) is True
    copied(older, store)
    assert tracker.is_stored(start, known.last_given) is False
