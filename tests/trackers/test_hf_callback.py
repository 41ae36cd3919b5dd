"""Any tracker provides a callback for a user's own `transformers.Trainer`: one run, and no side effects."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import wandb
from transformers import TrainerCallback

from fmstune import get_tracker
from fmstune.trackers.records import TrackerError
from fmstune.trackers.registry import BUILT_IN
from fmstune.trackers.values.stages import split_stages
from tests.support.logs import Logs
from tests.support.user_trainer import TRACKERS, RaisingTracker, log, own_callback, seen_in_file, user_trainer


@pytest.mark.parametrize("name", TRACKERS)
def test_one_callback_is_one_run_whatever_is_tracked_before_and_after_training(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Logs
) -> None:
    monkeypatch.chdir(tmp_path)
    seen = TRACKERS[name].seen
    tracker = get_tracker(name, **TRACKERS[name].options(tmp_path))
    tracker.track(0.25, "before", "mine", step=0)
    callback = own_callback(tracker, strict=True)
    score = {"verdict": "good", "score": np.float64(0.5), "array": np.array([1.0, 2.0])}
    trainer = user_trainer(callback, tmp_path, lambda _: dict(score))
    evaluated = [trainer.evaluate()["eval_loss"]]
    trainer.train()
    evaluated.append(trainer.evaluate()["eval_loss"])
    trainer.log({"text": "hello", "numpy": np.float32(1.5)})
    if name == "aim":
        assert [run.status for run in seen(tmp_path)] == ["finished"]  # while the process still runs
    callback.close()
    wandb.teardown()

    (run,) = seen(tmp_path)
    assert (run.name, run.status) == ("by-hand", "finished")
    logged = trainer.state.log_history
    assert run.values["mine", "before"] == [0.25]
    assert run.values["train", "loss"] == [entry["loss"] for entry in logged if "loss" in entry]
    assert run.values["eval", "loss"] == evaluated
    assert run.values["eval", "score"] == [0.5, 0.5]
    assert run.values["train", "numpy"] == [1.5]
    assert run.params["training"]["max_steps"] == 2
    assert run.params["model"]["temperature"] == 0.5
    if get_tracker(name).limits.text_metrics:
        assert run.values["eval", "verdict"] == ["good", "good"]
        assert not [record for record in caplog.records if record.name == "fmstune"]
    else:
        told = [
            f"{name}: metric {each} is not a number and is left out" for each in ("verdict", "array", "text")
        ]
        assert [text for logger, _, text in caplog.record_tuples if logger == "fmstune"] == told


class Raising(TrainerCallback):
    """Raises after the first step."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        raise self.error


@pytest.mark.parametrize("handled", [True, False], ids=["finally", "later"])
@pytest.mark.parametrize(
    ("error", "status"), [(KeyError("no such key"), "failed"), (KeyboardInterrupt(), "interrupted")]
)
def test_a_run_closed_after_its_training_raised_is_not_finished(
    error: BaseException, status: str, handled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    callback = own_callback(get_tracker("file", path="m.jsonl"))
    trainer = user_trainer(callback, tmp_path)
    trainer.add_callback(Raising(error))
    closing = contextlib.closing(callback) if handled else contextlib.nullcontext()
    with pytest.raises(type(error)), closing:
        trainer.train()
    callback.close()
    (run,) = seen_in_file(tmp_path)
    assert run.status == (status if handled else "failed")
    (line,) = [line for line in Path("m.jsonl").read_text().splitlines() if '"status"' in line]
    assert ("no such key" in line) == (handled and status == "failed")


KNOWN, FORM, NAMED = "supersecretvalue123", "hf_" + "aBcDeF1234" * 4, "qqqqqqqq"


def test_no_secret_reaches_the_tracker_or_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Logs
) -> None:
    monkeypatch.setenv("MY_SECRET_KEY", KNOWN)
    secrets = f"401 for https://bob:hunter2secret@h/x?token={NAMED} {FORM} {KNOWN}"
    path = tmp_path / "m.jsonl"
    callback = own_callback(get_tracker("file", path=path))
    trainer = user_trainer(callback, tmp_path)
    trainer.args.run_name = f"run {FORM}"
    trainer.model.config.note, trainer.model.config.api_key = KNOWN, NAMED
    trainer.train()
    trainer.log({"said": secrets, KNOWN: 1.0, "api_key": NAMED, "x": 2.0})
    callback.close("failed", secrets)
    failing = own_callback(RaisingTracker("track", RuntimeError(secrets)))
    log(failing, {"x": 1.0})
    written = path.read_text() + caplog.text
    assert [each for each in (KNOWN, FORM, NAMED, "hunter2secret") if each in written] == []
    (run,) = seen_in_file(tmp_path)
    assert run.values["train", "x"] == [2.0]
    assert run.name == "run [redacted]"
    assert "401 for https://" in caplog.text


@pytest.mark.parametrize("name", TRACKERS)
def test_each_trial_of_a_search_is_a_run_and_so_is_the_training_after_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Prunes(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.trial_params == {"learning_rate": 0.2}:
                raise StopIteration("pruned")

    monkeypatch.chdir(tmp_path)
    callback = own_callback(get_tracker(name, **TRACKERS[name].options(tmp_path)), strict=True)
    trainer, losses = user_trainer(callback, tmp_path), []
    trainer.add_callback(Prunes())
    for rate in (0.1, 0.2, 0.3, None):
        with contextlib.suppress(StopIteration):
            trainer.train(trial=rate and {"learning_rate": rate})
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    trainer.evaluate()
    callback.close()
    wandb.teardown()

    runs = {run.name: run for run in TRACKERS[name].seen(tmp_path)}
    assert sorted(runs) == ["by-hand", "by-hand-trial-0", "by-hand-trial-1", "by-hand-trial-2"]
    pruned = runs.pop("by-hand-trial-1")
    assert (pruned.status, pruned.params["trial"]) == ("interrupted", {"learning_rate": 0.2})
    for number, rate in ((0, 0.1), (2, 0.3)):
        run = runs[f"by-hand-trial-{number}"]
        assert (run.status, run.params["trial"]) == ("finished", {"learning_rate": rate})
        assert run.values["train", "loss"] == pytest.approx(losses[number])
        assert ("eval", "loss") not in run.values
    last = runs["by-hand"]
    assert last.values["train", "loss"] == pytest.approx(losses[3])
    assert len(last.values["eval", "loss"]) == 1
    assert "trial" not in last.params


@pytest.mark.parametrize("name", TRACKERS)
def test_requesting_a_callback_twice_returns_the_same_one_and_a_closed_one_tracks_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Logs
) -> None:
    monkeypatch.chdir(tmp_path)
    tracker = get_tracker(name, **TRACKERS[name].options(tmp_path))
    first = own_callback(tracker)
    log(first, {"loss": 1.0})
    assert own_callback(tracker) is first
    assert "returned the same callback again" in caplog.text
    with pytest.raises(TrackerError, match="strict=False"):
        own_callback(tracker, strict=True)
    first.close()
    caplog.clear()
    log(first, {"loss": 2.0, "late": 3.0})
    log(first, {"loss": 4.0})
    first.close()
    assert [message for message in caplog.messages if "not tracked" in message] == caplog.messages[:1]
    assert first._guard.lost == 3
    second = own_callback(tracker)
    log(second, {"loss": 5.0}, name="another")
    second.close()
    wandb.teardown()
    found = {run.name: (run.status, run.values["train", "loss"]) for run in TRACKERS[name].seen(tmp_path)}
    assert found == {"by-hand": ("finished", [1.0]), "another": ("finished", [5.0])}


def test_a_trainer_that_has_the_callback_twice_tracks_once() -> None:
    tracker = RaisingTracker("nothing", RuntimeError())
    callback = own_callback(tracker)
    logs, args = {"x": 1.0}, SimpleNamespace(run_name="by-hand", output_dir="out")
    state: Any = SimpleNamespace(is_world_process_zero=True, global_step=1, epoch=0.5, log_history=[logs])
    for _ in range(2):
        callback.on_log(args, state, None, logs)
    state.log_history.append(logs)
    callback.on_log(args, state, None, logs)
    assert tracker.got == ["x", "x"]


def test_transformers_does_not_mistake_two_trackers_for_duplicates() -> None:
    one, two = (get_tracker(name).get_hf_callback() for name in ("none", "none"))
    assert type(one) is not type(two)


def test_every_built_in_tracker_provides_a_callback() -> None:
    for name in BUILT_IN:
        assert isinstance(get_tracker(name).get_hf_callback(), TrainerCallback)


def test_trainer_logs_are_split_by_stage_under_their_usual_names() -> None:
    logs = {
        "loss": 1.0, "eval_loss": 2.0, "test_loss": 3.0, "train_runtime": 4.0, "epoch": 0.5,
        "eval_exact_match": 5.0,
        "evaluations": 6, "eval_": 7, "step": 3,
    }  # fmt: skip
    assert split_stages(logs) == {
        "train": {"loss": 1.0, "train_runtime": 4.0, "evaluations": 6, "eval_": 7},
        "eval": {"loss": 2.0, "exact_match": 5.0},
        "test": {"loss": 3.0},
    }
