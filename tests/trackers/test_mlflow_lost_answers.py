"""An MLflow server whose answers are lost on the way: it gets one run, and each value once."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from fmstune.delivery.shipping.progress import DeliveryFailed
from fmstune.trackers.mlflow_tracker import MlflowTracker
from tests.support.aim_servers import free_port
from tests.support.journals import open_journal
from tests.support.losing_proxy import losing_answer
from tests.support.mlflow_servers import mlflow_server
from tests.support.shipping import delivered_by

STEPS = range(1, 4)


@pytest.mark.parametrize("asked", ["runs/create", "runs/log-batch", "runs/update"])
def test_it_gets_one_run_and_each_value_once(
    asked: str, tmp_path: Path, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # as in a shipper
    journal = open_journal(run_directory)
    for step in STEPS:
        journal.append("metrics", {"stage": "train", "step": step, "values": {"loss": step / 8}})
    journal.append("status", {"status": "finished"})
    journal.close()
    port = free_port()
    with mlflow_server(tmp_path / "server", port), losing_answer(asked.encode(), port) as other:
        options = {"tracking_uri": f"http://127.0.0.1:{other}"}
        try:
            ledger = delivered_by(MlflowTracker("mlflow", options), run_directory)
        except DeliveryFailed:
            ledger = delivered_by(MlflowTracker("mlflow", options), run_directory)
        assert ledger.state == "complete"
        client = MlflowClient(f"http://127.0.0.1:{port}")
        (run,) = client.search_runs(["0"])
        assert run.info.status == "FINISHED"
        found = client.get_metric_history(run.info.run_id, "loss")
        assert sorted((each.step, each.value) for each in found) == [(step, step / 8) for step in STEPS]
