"""Packed rows hold the tokens and labels of the data, and truncated tokens are counted beforehand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fmstune.config.load.load import load
from fmstune.data.tokens.table import IGNORED
from fmstune.trackers.base import Tracker
from fmstune.training.build import BuiltTrainer, build_trainer

LONG = 60


def packed(tmp_path: Path, strategy: str, *more: str) -> BuiltTrainer:
    rows = [{"prompt": "word " * n, "completion": f" answer{' yes' * (n % 7)}"} for n in [*range(1, 9), LONG]]
    rows.append({"prompt": "word", "completion": " yes" * LONG})
    (tmp_path / "x.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    sets = ["training.packing=true", "training.max_length=48", "training.max_steps=1"]
    sets += [f"training.packing_strategy={strategy}", "training.eval_strategy=no", *more]
    flags = [("data.train", str(tmp_path / "x.jsonl"), "--data"), ("model.path", "demo", "--model")]
    return build_trainer(load(None, flags, sets, cwd=tmp_path), Tracker(), tmp_path / "out")


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_packed_rows_hold_what_was_counted(tmp_path: Path, strategy: str) -> None:
    run = packed(tmp_path, strategy)
    rows = list(run.trainer.train_dataset)
    assert sum(len(row["input_ids"]) for row in rows) == run.data.tokens
    assert sum(label != IGNORED for row in rows for label in row["labels"]) == run.data.trained_tokens
    cut = strategy == "bfd"
    assert (run.data.truncated, run.data.dropped) == ((2, 1) if cut else (0, 0))
    said = "\n".join(run.data.unused_lines())
    assert ("answers are cut off" in said) == cut
    assert ("split at training.max_length" in said and "(2 rows; the first is" in said) != cut
    assert ("rows are concatenated" in said) == (strategy == "wrapped")


@pytest.mark.parametrize("eval_data", ["data.eval=x.jsonl", "data.eval_fraction=0.9"])
def test_rows_that_only_training_splits_are_truncated_and_counted_in_evals(
    tmp_path: Path, eval_data: str
) -> None:
    more = ["training.eval_packing=false", "data.streaming=false", eval_data.replace("x.", f"{tmp_path}/x.")]
    run = packed(tmp_path, "bfd_split", *more)
    rows = list(run.trainer.eval_dataset)
    assert max(len(row["input_ids"]) for row in rows) == 48
    assert len(rows) == run.data.eval_rows
    held_back = 0 if "data.eval=" in eval_data else 1
    assert run.data.eval_rows + run.data.eval_dropped == 10 - held_back
    cut = sum(len(row["input_ids"]) == 48 for row in rows)
    assert run.data.eval_truncated == cut + run.data.eval_dropped > 0
    assert "cut" in run.data.line()
