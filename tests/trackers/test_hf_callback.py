"""Any tracker gives a plain callback for anybody's own `transformers.Trainer`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from fmstune import demo, get_tracker
from fmstune.trackers.base import Tracker
from fmstune.trackers.hf_callback import split_stages
from tests.readers import read_aim


def train_by_hand(tracker: Tracker, folder: Path) -> Trainer:
    ids = torch.arange(16) % 400
    rows = [{"input_ids": ids, "labels": ids} for _ in range(8)]
    arguments = TrainingArguments(
        output_dir=str(folder / "out"), run_name="by-hand", max_steps=4, logging_steps=1,
        eval_strategy="steps",
        eval_steps=2, per_device_train_batch_size=2, report_to="none", save_strategy="no", disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(
        demo.build_model(), arguments, train_dataset=rows, eval_dataset=rows[:2],
        callbacks=[tracker.get_hf_callback()],
    )  # fmt: skip
    trainer.train()
    return trainer


def test_aim_alone_tracks_a_trainer_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = train_by_hand(get_tracker("aim", repo=str(tmp_path)), tmp_path)
    (run,) = read_aim(tmp_path)
    assert run.name == "by-hand"
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert run.points["loss", "train"] == [[entry["step"], entry["loss"]] for entry in logged]
    assert [step for step, _ in run.points["loss", "eval"]] == [2, 4]
    assert run.params["status"] == "finished"
    assert run.params["training"]["max_steps"] == 4
    assert run.params["model"]["model_type"] == "llama"


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
