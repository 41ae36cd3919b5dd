"""Any tracker gives a plain callback for anybody's own `transformers.Trainer`: one run, and no harm."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments

from fmstune import demo, get_tracker
from fmstune.trackers.base import Limits, RunStart, Status, Tracker, TrackerRun
from fmstune.trackers.hf_callback import OwnRunCallback, split_stages
from tests.readers import read_aim, read_wandb_offline, wandb_offline_dirs

REPOSITORY = Path(__file__).parents[2]


def trainer_of_ones_own(
    callback: TrainerCallback, folder: Path, score: Callable[[EvalPrediction], dict[str, Any]] | None = None
) -> Trainer:
    ids = torch.arange(16) % 400
    rows = [{"input_ids": ids, "labels": ids} for _ in range(4)]
    arguments = TrainingArguments(
        output_dir=str(folder / "out"), run_name="by-hand", max_steps=2, logging_steps=1,
        per_device_train_batch_size=2, report_to="none", save_strategy="no", disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    model = demo.build_model()
    model.config.temperature = np.float32(0.5)
    return Trainer(
        model, arguments, train_dataset=rows, eval_dataset=rows[:2], callbacks=[callback],
        compute_metrics=score,
    )  # fmt: skip


def own_callback(tracker: Tracker, *, strict: bool = False) -> OwnRunCallback:
    callback = tracker.get_hf_callback(strict=strict)
    assert isinstance(callback, OwnRunCallback)
    return callback


@dataclass
class Seen:
    """What a service holds of a run: values of each (stage, metric) in their order."""

    name: str
    status: str | None
    values: Mapping[tuple[str | None, str], list[Any]]
    params: Mapping[str, Any]


def seen_by_aim(folder: Path) -> list[Seen]:
    return [
        Seen(
            run.name,
            run.params.get("status"),
            {(stage, name): [value for _, value in points] for (name, stage), points in run.points.items()},
            run.params,
        )
        for run in read_aim(folder)
    ]


def seen_by_wandb(folder: Path) -> list[Seen]:
    runs = []
    for path in wandb_offline_dirs(folder):
        run = read_wandb_offline(path)
        values: dict[tuple[str | None, str], list[Any]] = {}
        for row in run.history:
            for key, value in row.items():
                stage, _, name = key.partition("/")
                if name and not key.startswith("train/global_step"):
                    values.setdefault((stage, name), []).append(value)
        runs.append(Seen(run.fields["display_name"], run.summary["fmstune/status"], values, run.config))
    return runs


def seen_in_file(folder: Path) -> list[Seen]:
    runs: dict[str, Seen] = {}
    for line in (folder / "m.jsonl").read_text().splitlines():
        row = json.loads(line)
        run = runs.setdefault(row["run_id"], Seen(row["run"], None, {}, {}))
        run.name = row["run"]
        if row["kind"] == "metrics":
            for name, value in row["values"].items():
                run.values.setdefault((row["stage"], name), []).append(value)  # type: ignore[attr-defined]
        elif row["kind"] == "params":
            run.params |= {row["stage"]: row["values"]}  # type: ignore[operator]
        else:
            run.status = row["values"]["status"]
    return list(runs.values())


TRACKERS: dict[str, tuple[dict[str, Any], Callable[[Path], list[Seen]]]] = {
    "aim": ({"repo": "."}, seen_by_aim),
    "wandb": ({"mode": "offline"}, seen_by_wandb),
    "file": ({"path": "m.jsonl"}, seen_in_file),
}


@pytest.mark.parametrize("name", TRACKERS)
def test_one_callback_is_one_run_whatever_is_tracked_before_and_after_the_training(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    options, seen = TRACKERS[name]
    tracker = get_tracker(name, **options)
    tracker.track(0.25, "before", "mine", step=0)
    callback = own_callback(tracker, strict=True)
    score = {"verdict": "good", "score": np.float64(0.5), "array": np.array([1.0, 2.0])}
    trainer = trainer_of_ones_own(callback, tmp_path, lambda _: dict(score))
    evaluated = [trainer.evaluate()["eval_loss"]]
    trainer.train()
    evaluated.append(trainer.evaluate()["eval_loss"])
    trainer.log({"text": "hello", "numpy": np.float32(1.5)})
    if name == "aim":
        assert [run.status for run in seen(tmp_path)] == ["finished"]  # while the process goes on
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


_SCRIPT = """
import sys
from fmstune import get_tracker
from fmstune.trackers.alone import note_training
name, options, how = sys.argv[1], eval(sys.argv[2]), sys.argv[3]
tracker = get_tracker(name, **options)
tracker.track(0.25, "before", "mine", step=0)
if how == "in a training":
    note_training(tracker, going=True)
if how == "closed":
    tracker.close("finished")
if how == "raises":
    raise ValueError("no")
if how == "waits":
    print("waiting", flush=True)
    while True:
        input()
"""


def run_script(folder: Path, name: str, how: str) -> int:
    command = [sys.executable, "-c", _SCRIPT, name, repr(TRACKERS[name][0]), how]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=folder, env=environment, **pipes) as process:  # type: ignore[call-overload]
        if how == "waits":
            process.stdout.readline()
            process.send_signal(signal.SIGINT)
        return int(process.wait())


@pytest.mark.parametrize(
    ("name", "how", "status"),
    [
        ("aim", "raises", "failed"),
        ("wandb", "raises", "failed"),
        ("file", "raises", "failed"),
        ("file", "ends", "finished"),
        ("file", "closed", "finished"),
        ("file", "in a training", "failed"),
        ("file", "waits", "interrupted"),
    ],
)
def test_the_end_of_the_process_closes_the_run_with_its_status(
    name: str, how: str, status: str, tmp_path: Path
) -> None:
    code = run_script(tmp_path, name, how)
    (run,) = TRACKERS[name][1](tmp_path)
    assert run.status == status
    assert run.values["mine", "before"] == [0.25]
    assert (code == 0) == (how in ("ends", "closed", "in a training"))


class Rude(Tracker):
    """Raises at one of its hooks, or for one metric."""

    registered_name = "rude"
    limits = Limits(text_metrics=True)

    def __init__(self, at: str, error: BaseException) -> None:
        super().__init__()
        self.at, self.error = at, error
        self.opened = 0
        self.got: list[str] = []

    def fail(self, hook: str) -> None:
        if self.at in (hook, "everything"):
            raise self.error

    def open(self, start: RunStart) -> TrackerRun:
        self.opened += 1
        self.fail("open")
        return TrackerRun()

    def track(self, metric: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None:
        self.fail("track")
        self.fail(name)
        self.got.append(name)

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        self.fail("set_params")

    def train_ended(self, status: Status) -> None:
        self.fail("train_ended")

    def close(self, status: Status, error: str | None = None) -> None:
        self.fail("close")


@pytest.mark.parametrize("error", [RuntimeError("on fire"), SystemExit(3)], ids=["raises", "exits"])
@pytest.mark.parametrize(
    "at", ["open", "track", "set_params", "train_ended", "close", "everything", "grad_norm"]
)
def test_no_error_of_a_tracker_reaches_the_training_and_one_is_told(
    at: str, error: BaseException, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Rude(at, error)
    callback = own_callback(tracker)
    trainer = trainer_of_ones_own(callback, tmp_path)
    trainer.train()
    callback.close()
    assert trainer.state.global_step == 2
    assert tracker.opened == 1
    assert caplog.record_tuples[0][:2] == ("fmstune", logging.WARNING)
    assert type(error).__name__ in caplog.messages[0]
    assert len(caplog.messages) <= 3  # the others: that it is given up, and how much did not reach it
    if at in ("track", "set_params", "grad_norm"):
        assert "did not reach it" in caplog.messages[-1]
    if at == "grad_norm":  # one that is refused takes none of the others with it
        assert tracker.got.count("loss") == 2
        assert tracker.got.count("learning_rate") == 2


def test_strict_raises_what_the_tracker_raises(tmp_path: Path) -> None:
    trainer = trainer_of_ones_own(own_callback(Rude("track", RuntimeError("on fire")), strict=True), tmp_path)
    with pytest.raises(RuntimeError, match="on fire"):
        trainer.train()


def test_every_tracker_of_fmstune_gives_a_callback() -> None:
    for name in ("none", "aim", "wandb", "file"):
        assert isinstance(get_tracker(name).get_hf_callback(), TrainerCallback)


def test_what_the_trainer_logs_is_sorted_by_stage_under_the_names_of_the_trade() -> None:
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
