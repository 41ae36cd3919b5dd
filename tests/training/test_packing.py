"""Packed rows hold the tokens and labels of the data, and what of them is cut is counted before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fmstune.config.load.load import load
from fmstune.data.tokens.table import IGNORED
from fmstune.trackers.base import Tracker
from fmstune.training.build import BuiltTrainer, build_trainer

LONG = 60


def packed(tmp_path: Path, strategy: str) -> BuiltTrainer:
    rows = [{"prompt": "word " * n, "completion": f" answer{' yes' * (n % 7)}"} for n in [*range(1, 9), LONG]]
    rows.append({"prompt": "word", "completion": " yes" * LONG})
    (tmp_path / "x.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    sets = ["training.packing=true", "training.max_length=48", "training.max_steps=1"]
    sets += [f"training.packing_strategy={strategy}", "training.eval_strategy=no"]
    flags = [("data.train", str(tmp_path / "x.jsonl"), "--data"), ("model.path", "demo", "--model")]
    return build_trainer(load(None, flags, sets, cwd=tmp_path), Tracker(), tmp_path / "out")


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_what_is_packed_is_what_was_counted(tmp_path: Path, strategy: str) -> None:
    run = packed(tmp_path, strategy)
    rows = list(run.trainer.train_dataset)
    assert sum(len(row["input_ids"]) for row in rows) == run.data.tokens
    assert sum(label != IGNORED for row in rows for label in row["labels"]) == run.data.trained_tokens
    cut = strategy == "bfd"
    assert (run.data.truncated, run.data.dropped) == ((2, 1) if cut else (0, 0))
    assert ("answers are cut off" in "".join(run.data.unused_lines())) == cut
