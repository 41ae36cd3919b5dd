"""MLflow's tracker against a real `mlflow server`, read back through MLflow's own client."""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from fmstune.delivery.ledger import Ledger
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.sync import sync
from fmstune.trackers.mlflow_tracker import MlflowTracker
from fmstune.trackers.records import MetricPoint, RunStart, Status, Table
from fmstune.trackers.registry import get_tracker, reference
from tests.support.mlflow_servers import shared_server, store_in
from tests.support.nurseries import run_code
from tests.support.shipping import delivered_by


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a shipper: no telemetry, and few retries."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def client() -> MlflowClient:
    return MlflowClient(shared_server()[0])


def delivered(directory: Path, **options: Any) -> Ledger:
    """The ledger after a delivery to the server, in this process."""
    return delivered_by(MlflowTracker("mlflow", {"tracking_uri": shared_server()[0], **options}), directory)


def history(client: MlflowClient, run: Run) -> dict[str, list[tuple[int, float]]]:
    """The step and value of each point; the server returns them in no order."""
    return {
        name: sorted((each.step, each.value) for each in client.get_metric_history(run.info.run_id, name))
        for name in run.data.metrics
    }


@pytest.mark.parametrize(
    ("status", "there"), [("finished", "FINISHED"), ("failed", "FAILED"), ("interrupted", "KILLED")]
)
def test_a_run_is_stored_in_the_form_that_mlflow_users_expect(
    status: Status, there: str, client: MlflowClient, recorder: Recorder, run_directory: Path
) -> None:
    recorder.set_params({"team": "nlp", "a": {"b": 1e-4, "c": [1, "x"], "on": True}}, "params")
    for step in (1, 2):
        recorder.track_point(MetricPoint({"loss": 1 / step, "nan": float("nan")}, "train", step, step / 2))
    recorder.track_point(MetricPoint({"loss": 3.0}, "eval", 2))
    recorder.track(0.5, "f1(macro)", "mine", step=2)
    for value in (1.0, 1.0, 2.0):
        recorder.track(value, "reward", "train", step=2)
    recorder.track_table(Table("samples", ({"prompt": "hi", "answer": "ho"}, {"prompt": "x"}), "eval", 2))
    recorder.close(status, "ValueError: no" if status == "failed" else None)
    ledger = delivered(run_directory, experiment=f"names {status}", tags={"team": "nlp"})

    assert ledger.run_id is not None
    run = client.get_run(ledger.run_id)
    assert (run.info.run_name, run.info.status) == ("run", there)
    assert ledger.url == f"{shared_server()[0]}/#/experiments/{run.info.experiment_id}/runs/{ledger.run_id}"
    assert client.get_experiment(run.info.experiment_id).name == f"names {status}"
    assert run.data.tags["team"] == "nlp"
    assert run.data.tags.get("error") == ("ValueError: no" if status == "failed" else None)
    found = history(client, run)
    assert [step for step, _ in found.pop("nan")] == [1, 2]
    assert found == {
        "loss": [(1, 1.0), (2, 0.5)], "eval_loss": [(2, 3.0)], "mine/f1_macro_": [(2, 0.5)],
        "reward": [(2, 1.0), (2, 1.0), (2, 2.0)],
    }  # fmt: skip
    assert run.data.params == {
        "params.team": "nlp", "params.a.b": "0.0001", "params.a.c": '[1, "x"]', "params.a.on": "True",
    }  # fmt: skip
    (listed,) = json.loads(run.data.tags["mlflow.loggedArtifacts"])
    saved = json.loads(Path(client.download_artifacts(ledger.run_id, listed["path"])).read_text())
    assert saved == {"columns": ["prompt", "answer"], "data": [["hi", "ho"], ["x", None]]}
    assert "f1(macro) is called f1_macro_" in ledger.changes


def test_a_resumed_run_continues_and_a_changed_param_is_reported_not_raised(
    client: MlflowClient, recorder: Recorder, run_directory: Path
) -> None:
    recorder.set_params({"lr": 1}, "params")
    recorder.track_point(MetricPoint({"loss": 1.0}, "train", 1))
    recorder.close("interrupted")
    first = delivered(run_directory)
    assert first.run_id is not None
    assert client.get_run(first.run_id).info.status == "KILLED"
    recorder.resumed(1)
    recorder.set_params({"lr": 2, "new": 3}, "params")
    recorder.track_point(MetricPoint({"loss": 0.5}, "train", 2))
    recorder.close("finished")
    second = delivered(run_directory)
    assert second.run_id == first.run_id
    run = client.get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert history(client, run) == {"loss": [(1, 1.0), (2, 0.5)]}
    assert run.data.params == {"params.lr": "1", "params.new": "3"}
    assert "param lr was given another value; the first one is kept" in second.changes


def test_a_run_resumed_elsewhere_keeps_its_first_params_and_reports_it(
    client: MlflowClient, recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    recorder.set_params({"dir": "a"}, "params")
    recorder.close("finished")
    first = delivered(run_directory)
    tracker = get_tracker("mlflow", tracking_uri=shared_server()[0])
    tracker.open(RunStart("other", ".", first.run_id, run_id="id-2", after=first.delivered))
    tracker.seq = first.delivered + 1
    tracker.set_params({"dir": "b", "more": "c"}, "params")
    tracker.close("finished")
    assert tracker.adapted == ("param params.dir was given another value; the first one is kept",)
    assert client.get_run(first.run_id).data.params == {"params.dir": "a", "params.more": "c"}


def test_points_delivered_twice_are_stored_once(
    client: MlflowClient, recorder: Recorder, run_directory: Path
) -> None:
    recorder.set_params({"lr": 1}, "params")
    for step in range(1, 6):
        recorder.track_point(MetricPoint({"loss": 1.0}, "train", step))
    recorder.close("finished")
    ledger = delivered(run_directory)
    Ledger("mlflow", run_id=ledger.run_id).save(run_directory)  # like one that was restored from a backup
    again = delivered(run_directory)
    assert again.run_id == ledger.run_id
    run = client.get_run(again.run_id)
    assert history(client, run) == {"loss": [(step, 1.0) for step in range(1, 6)]}


def test_equal_values_of_a_step_are_all_kept_even_when_redelivered(
    client: MlflowClient, recorder: Recorder, run_directory: Path
) -> None:
    """MLflow keeps one of several with the same time: a burst has many in a millisecond."""
    moment = time.time()
    for number in range(3000):
        recorder.track_point(MetricPoint({"match": float(number % 2)}, "eval", 1, None, moment))
    recorder.close("finished")
    ledger = delivered(run_directory)
    assert ledger.run_id is not None
    (name,) = client.get_run(ledger.run_id).data.metrics
    assert len(client.get_metric_history(ledger.run_id, name)) == 3000
    nothing = {
        "delivered": 0,
        "offset": 0,
        "safe_delivered": 0,
        "safe_offset": 0,
        "last_row": 0,
        "last_given": 0,
    }
    dataclasses.replace(ledger, **nothing, closed=False).save(run_directory)
    client.set_tag(
        ledger.run_id, "fmstune", "{}"
    )  # as if the process had been killed before it recorded more
    delivered(run_directory)
    assert len(client.get_metric_history(ledger.run_id, name)) == 3000


def test_an_integer_that_mlflow_rounds_is_reported(
    client: MlflowClient, recorder: Recorder, run_directory: Path
) -> None:
    recorder.track_point(MetricPoint({"exact": 2**53, "rounded": 2**53 + 1}, "train", 1))
    recorder.close("finished")
    assert [change for change in delivered(run_directory).changes if "rounded" in change] == [
        "metric rounded has integers beyond 53 bits, which are rounded"
    ]


def test_a_table_of_any_stage_is_read_by_mlflow(
    client: MlflowClient, recorder: Recorder, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder.track_table(Table("t", ({"a": 1},), "évél:1/x y", 1))
    recorder.close("finished")
    ledger = delivered(run_directory)
    assert ledger.run_id is not None
    (entry,) = json.loads(client.get_run(ledger.run_id).data.tags["mlflow.loggedArtifacts"])
    assert not set(':*?"<>|') & set(entry["path"])
    folder, _, name = entry["path"].rpartition("/")
    assert [each.path.rpartition("/")[2] for each in client.list_artifacts(ledger.run_id, folder)] == [name]


def test_a_run_that_was_deleted_on_the_server_is_delivered_again(
    client: MlflowClient, recorder: Recorder, run_directory: Path
) -> None:
    recorder.track_point(MetricPoint({"loss": 1.0}, "train", 1))
    recorder.close("finished")
    recorder.journal.close()
    options = {"mlflow": {"tracking_uri": shared_server()[0]}}
    (first,) = sync(run_directory, "mlflow", options, reference, check_within=300)
    assert first.run_id is not None
    client.delete_run(first.run_id)
    (again,) = sync(run_directory, None, options, reference, check_within=300)
    assert again.state == "complete"
    assert again.run_id not in (None, first.run_id)
    assert history(client, client.get_run(str(again.run_id))) == {"loss": [(1, 1.0)]}


def test_more_points_than_a_batch_allows_are_sent_in_several(
    client: MlflowClient, recorder: Recorder, run_directory: Path
) -> None:
    recorder.set_params({f"p{n}": n for n in range(250)}, "params")
    recorder.track_point(MetricPoint({f"m{n}": float(n) for n in range(2100)}, "train", 1))
    recorder.track_point(MetricPoint({"x" * 300: 1.0}, "train", 2))
    recorder.set_params({"long": "y" * 9000}, "texts")
    recorder.close("finished")
    ledger = delivered(run_directory)
    assert ledger.run_id is not None
    run = client.get_run(ledger.run_id)
    assert len(run.data.params) == 251
    assert len(run.data.metrics) == 2101
    assert len(run.data.params["texts.long"]) == 6000
    assert "param long was cut from 9000 to 6000 characters" in ledger.changes


def test_standalone_it_needs_no_journal(client: MlflowClient) -> None:
    tracker = get_tracker("mlflow", tracking_uri=shared_server()[0], experiment="alone")
    tracker.track(0.5, "f1(macro)", "eval", step=1)
    tracker.set_params({"a": {"b": None}})
    tracker.close("finished")
    experiment = client.get_experiment_by_name("alone")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (history(client, run), run.data.params) == ({"eval_f1_macro_": [(1, 0.5)]}, {"params.a.b": "None"})


def test_a_shipper_delivers_to_it_with_mlflows_own_variable(
    client: MlflowClient, recorder: Recorder, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared_server()[0])
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "by variable")
    recorder.track_point(MetricPoint({"loss": 1.0}, "train", 1))
    recorder.close("finished")
    recorder.journal.close()
    (line,) = sync(run_directory, "mlflow", {}, reference, check_within=300)
    assert line.state == "complete", line
    run = client.get_run(str(line.run_id))
    assert client.get_experiment(run.info.experiment_id).name == "by variable"
    assert history(client, run) == {"loss": [(1, 1.0)]}


# -- the check --------------------------------------------------------------------------------


def test_reported_adaptations_survive_a_kill_before_the_ledger_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store_in(tmp_path)
    uri, said = "sqlite:///mlflow.db", "metric big has integers beyond 53 bits, which are rounded"
    killed = MlflowTracker("mlflow", {"tracking_uri": uri})
    start = RunStart("run", ".", run_id="id-1", new_run_id="0" * 24)
    there = killed.open(start)
    killed.seq = 1
    killed.track_point(MetricPoint({"big": 2**60 + 1}, "train", 1, seq=1))
    killed.seq = 2
    for number in range(200):
        killed.track_point(MetricPoint({f"bigger_{number}": 2**60 + 1}, "train", 1, seq=2))
    killed.flush()

    after = MlflowTracker("mlflow", {"tracking_uri": uri})
    opened = after.open(dataclasses.replace(start, tracker_run_id=there.id))
    assert opened.delivered_through == 2  # so that these events are not redelivered
    assert after.adapted[0] == said
    assert len(after.adapted) < 201  # MLflow limits a tag to 5,000 characters
    assert after.adapted[-1].endswith("more were adapted, as the process that was killed knew")
    of_another = dataclasses.replace(start, run_id="id-2", after=3, tracker_run_id=there.id)
    another = MlflowTracker("mlflow", {"tracking_uri": uri})
    another.open(of_another)
    assert another.adapted == ()


def test_a_process_that_is_killed_while_it_creates_the_database_leaves_none(tmp_path: Path) -> None:
    """MLflow could not complete its tables."""
    uri = f"sqlite:///{tmp_path}/a b%25.db"
    script = f"""
import os, signal
from mlflow.store.db import utils
from fmstune.trackers.mlflow.checks import client_of
utils._upgrade_db = lambda engine: os.kill(os.getpid(), signal.SIGKILL)
client_of({uri!r}).search_experiments()
"""
    assert run_code(script, tracker="mlflow").returncode == -signal.SIGKILL
    assert not list(tmp_path.glob("*.db"))
    tracker = MlflowTracker(tracker_config={"tracking_uri": uri})
    tracker.open(RunStart("run-1", "."))
    tracker.close("finished")
    assert [path.name for path in tmp_path.iterdir()] == ["a b%.db"]
    (run,) = MlflowClient(uri).search_runs(["0"])
    assert run.info.run_name == "run-1"
