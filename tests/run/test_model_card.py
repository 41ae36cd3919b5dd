"""The model card says what the saved weights are, and what they achieved."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.short_runs import train

EVALUATES = (
    "data.eval_fraction=0.2",
    "training.eval_strategy=steps",
    "training.eval_steps=1",
    "training.save_strategy=steps",
    "training.save_steps=1",
)


def card(run: Path) -> dict[str, str]:
    rows = [line.strip("| ").split(" | ") for line in (run / "README.md").read_text().splitlines()]
    return {row[0]: row[1] for row in rows if len(row) == 2}


def test_the_results_are_those_of_the_evaluation_whose_weights_are_kept(tmp_path: Path) -> None:
    run = tmp_path / "run"
    keeps_best = ("training.load_best_model_at_end=true", "training.metric_for_best_model=loss")
    said = train(run, *EVALUATES, *keeps_best, "training.greater_is_better=true")  # the first is the best
    found = card(run)
    assert f"eval loss {found['eval/loss']} at step 1; kept" in said
    assert found["steps"] == "1 of 3, where the evaluation was the best"


def test_the_totals_of_a_resumed_run_are_said_to_be_those_since(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, *EVALUATES)
    assert "train/train_loss" in card(run)
    shutil.rmtree(run / "checkpoint-3")
    train(run, *EVALUATES, resume=str(run / "checkpoint-2"))
    found = card(run)
    assert found["steps"] == "3"
    assert found["train/train_loss since step 2"] == found["train/loss"]
    assert "train/train_loss" not in found
