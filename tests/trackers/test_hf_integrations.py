"""Callbacks of transformers in a shipper: their real SDKs store a run that they did not observe."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fmstune.delivery.recorder import Recorder
from fmstune.delivery.report import DeliveryReport, report
from fmstune.delivery.sync import sync
from fmstune.errors import ConfigError
from fmstune.run.resolve import check_name
from fmstune.trackers.hf.integrations import INTEGRATIONS
from fmstune.trackers.hf_tracker import _NOT_GOT, IntegrationTracker
from fmstune.trackers.records import MetricPoint, RunStart, Table, TrackerError
from fmstune.trackers.registry import reference, tracker_class
from tests.support.end_to_end import swanlab_scalars
from tests.support.mlflow_servers import store_in
from tests.support.nurseries import SharedNursery
from tests.support.readers import event_accumulator


def journalled(recorder: Recorder, status: Any = "finished") -> None:
    recorder.set_params({"team": "nlp"}, "params")
    recorder.set_params({"training": {"learning_rate": 0.5, "max_steps": 2, "max_length": 7}}, "config")
    recorder.track(1.5, "memory", "system", step=0)
    model = {"path": "m", "parameters": 352, "config": {"hidden_size": 64, "model_type": "llama"}}
    recorder.set_params(model, "model")
    for step in (1, 2):
        recorder.track_point(MetricPoint({"loss": 1 / step}, "train", step, step / 2))
    recorder.track_point(MetricPoint({"loss": 3.0}, "eval", 2, 1.0))
    recorder.track_table(Table("samples", ({"a": 1},), "eval", 2))
    recorder.set_params({"late": 1}, "mine")
    recorder.set_params({"team": "nlp"}, "params")
    recorder.close(status)
    recorder.journal.close()


def delivered(directory: Path, name: str, **options: Any) -> DeliveryReport:
    """Deliver with a shipper, which imports transformers and the SDK."""
    (line,) = sync(directory, name, {name: options}, reference, check_within=300)
    assert line.state == "complete", line
    return line


def given(directory: Path, name: str, **options: Any) -> DeliveryReport:
    """Deliver in a process forked from one with transformers, which imports the SDK."""
    assert SharedNursery(None).deliver(directory, reference(name), options)
    (line,) = report(directory, ["t"])
    assert line.state == "complete", line
    return line


def test_each_callback_that_transformers_integrates_can_be_named() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert set(INTEGRATIONS) == set(INTEGRATION_TO_CALLBACK)
    for name in INTEGRATIONS:
        check_name(f"hf:{name}")
        assert tracker_class(f"hf:{name}").registered_name == f"hf:{name}"
    with pytest.raises(ConfigError, match="Did you mean hf:mlflow"):
        check_name("hf:mlfow")


def test_tensorboards_callback_writes_what_it_would_have_written_in_the_training(
    recorder: Recorder, run_directory: Path
) -> None:
    journalled(recorder)
    line = delivered(run_directory, "hf:tensorboard")
    (events,) = (run_directory / "runs").rglob("*tfevents*")
    found = event_accumulator(events.parent)
    scalars = {
        tag: [(each.step, each.value) for each in found.Scalars(tag)] for tag in found.Tags()["scalars"]
    }
    assert scalars == {
        "train/system/memory": [(0, 1.5)], "train/loss": [(1, 1.0), (2, 0.5)], "eval/loss": [(2, 3.0)],
        "train/epoch": [(1, 0.5), (2, 1.0), (2, 1.0)],
    }  # fmt: skip
    texts = {tag: found.Tensors(tag)[0].tensor_proto.string_val[0] for tag in found.Tags()["tensors"]}
    args = json.loads(texts["args/text_summary"])
    wanted = {"learning_rate": 0.5, "max_length": 7, "params.team": "nlp", "run_name": "run"}
    assert {key: args[key] for key in wanted} == wanted
    assert json.loads(texts["model_config/text_summary"])["hidden_size"] == 64
    assert line.changes == (
        _NOT_GOT,
        "params mine came after the first step, when its callback takes none",
        "1 table not given to it",
    )


def test_mlflows_callback_ends_its_run_in_the_store_of_its_environment_variable(
    recorder: Recorder, run_directory: Path
) -> None:
    store = store_in(run_directory.parent / "store")
    journalled(recorder, "failed")
    variables = {"MLFLOW_TRACKING_URI": f"sqlite:///{store}", "HF_MLFLOW_LOG_ARTIFACTS": "1"}
    line = given(run_directory, "hf:mlflow", environment=variables, arguments={"run_name": "mine"})
    with sqlite3.connect(store) as held:
        assert held.execute("SELECT name, status FROM runs").fetchall() == [("mine", "FINISHED")]
        points = held.execute("SELECT key, step, value FROM metrics WHERE key LIKE '%loss'").fetchall()
        params = dict(held.execute("SELECT key, value FROM params").fetchall())
    assert sorted(points) == [("eval_loss", 2, 3.0), ("loss", 1, 1.0), ("loss", 2, 0.5)]
    assert (params["learning_rate"], params["hidden_size"], params["params.team"]) == ("0.5", "64", "nlp")
    assert "HF_MLFLOW_LOG_ARTIFACTS is turned off, as there is no model here" in line.changes
    assert "its callback knows no status: the run, which failed, ends there as any" in line.changes


def test_a_variable_that_disables_a_callback_is_reported_before_the_run() -> None:
    """transformers' callback for Comet only logs a warning, and drops what it receives."""
    made = tracker_class("hf:comet_ml")
    off = made(None, {"environment": {"COMET_MODE": "offline"}})
    found = off.check(1.0)
    said = "COMET_MODE=offline turns its callback off, which takes get, get_or_create, create"
    assert (found.state, found.detail) == ("bad_option", said)
    with pytest.raises(TrackerError, match="turns its callback off"):
        off.open(RunStart("run", "."))
    for value in ("", "CREATE"):
        assert made(None, {"environment": {"COMET_MODE": value}}).check(1.0).ok


def test_an_experiment_that_its_callback_leaves_open_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Comet's callback does: without ending, its local archive was empty at exit."""
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    ended: list[str] = []

    class LeavesOpen(TrainerCallback):
        _experiment = SimpleNamespace(end=lambda: ended.append("experiment"))

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            ended.append("training")

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "comet_ml", LeavesOpen)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    tracker = tracker_class("hf:comet_ml")()
    tracker.open(RunStart("run", "."))
    tracker.track(1.0, "loss", "train", step=1)
    tracker.close("finished")
    assert ended == ["training", "experiment"]


def test_a_callback_sees_the_events_of_a_training_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    seen: list[Any] = []

    class Witness(TrainerCallback):
        live = SimpleNamespace(step=0)  # as in DVCLive's callback

    def witness(event: str) -> Any:
        def call(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            model = kwargs["model"]
            assert (model.num_parameters(), model.config.hidden_size) == (352, 64)
            assert (args.per_device_train_batch_size, args.train_batch_size, state.max_steps) == (3, 3, 4)
            assert args.to_dict()["run.group"] == "sweep"
            assert state.is_world_process_zero
            assert event != "on_log" or self.live.step == state.global_step
            self.live.step += 1
            seen.append(
                (event.removeprefix("on_"), state.global_step, kwargs.get("logs", kwargs.get("metrics")))
            )

        return call

    for event in dir(TrainerCallback):
        if event.startswith("on_"):
            setattr(Witness, event, witness(event))
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Witness)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    tracker = tracker_class("hf:wandb")()
    assert isinstance(tracker, IntegrationTracker)
    tracker.open(RunStart("run", ".", group="sweep"))
    tracker.set_params({"parameters": 352, "config": {"hidden_size": 64}}, "model")
    tracker.set_params({"training": {"max_steps": 4, "per_device_train_batch_size": 3}}, "config")
    tracker.track_point(MetricPoint({"loss": 2.0}, "train", 2, 0.5))
    tracker.track_point(MetricPoint({"loss": 1.0}, "eval", 2, 0.5))
    tracker.track_point(MetricPoint({"f1": 0.5}, "mine", 1))
    tracker.track_point(MetricPoint({"loss": 1.5}, "train", 4, 1.0))
    tracker.close("finished")
    assert seen == [
        ("init_end", 0, None), ("train_begin", 0, None), ("epoch_begin", 0, None),
        ("step_end", 2, None), ("log", 2, {"loss": 2.0, "epoch": 0.5}),
        ("log", 2, {"eval_loss": 1.0, "epoch": 0.5}), ("evaluate", 2, {"eval_loss": 1.0, "epoch": 0.5}),
        ("log", 1, {"mine/f1": 0.5}),
        ("step_end", 4, None), ("epoch_end", 4, None), ("epoch_begin", 4, None),
        ("log", 4, {"loss": 1.5, "epoch": 1.0}), ("epoch_end", 4, None), ("train_end", 4, None),
    ]  # fmt: skip


def test_swanlabs_callback_starts_a_run_with_nothing_of_the_shipper_in_it(
    recorder: Recorder, run_directory: Path
) -> None:
    """The callback in transformers 5.23 requests a run before there is one, for which swanlab 0.10 raises."""
    journalled(recorder)
    place = run_directory.parent / "swanlog"
    variables = {"SWANLAB_MODE": "offline", "SWANLAB_LOG_DIR": str(place), "SWANLAB_PROJECT": "p"}
    given(run_directory, "hf:swanlab", environment=variables)
    losses = [each for each in swanlab_scalars(place) if each[0] == "train/loss"]
    assert losses == [("train/loss", 1, 1.0), ("train/loss", 2, 0.5)]
    (run,) = place.glob("run-*")
    assert {path.name for path in (run / "files").iterdir()} == {"config.yaml", "swanlab-metadata.json"}
    about = json.loads((run / "files" / "swanlab-metadata.json").read_text())
    assert set(about.pop("_version") and about.values()) == {None}
    assert not any(key.startswith("__swanlab__") for key, _, _ in swanlab_scalars(place))


def test_a_callback_with_a_matching_tracker_suggests_it() -> None:
    for name, own in (("swanlab", "swanlab"), ("comet_ml", "comet"), ("clearml", "clearml")):
        assert f"the tracker {own} keeps more" in tracker_class(f"hf:{name}").description
    assert "keeps more" not in tracker_class("hf:codecarbon").description
    assert "the tracker swanlab asks" in tracker_class("hf:swanlab")().check(1.0).detail
