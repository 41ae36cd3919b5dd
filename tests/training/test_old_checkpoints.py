"""Which checkpoints `save_total_limit` removes, whatever the clock says."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerCallback

from fmstune.models.checkpoints import newest_checkpoint
from fmstune.training.extensions import Extensions
from fmstune.training.trainers import checkpoints
from fmstune.training.trl_compat.saving import remove_old_checkpoints
from tests.support.tuned import tune


class ClockSetBack(TrainerCallback):
    """Gives each checkpoint a time in the future, as if the clock had since been set back."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for each in Path(args.output_dir).glob("checkpoint-*"):
            os.utime(each, (time.time() + 9000,) * 2)


@pytest.mark.parametrize("by_the_trainer", [False, True])
def test_the_newest_checkpoint_stays_though_the_clock_was_set_back(
    by_the_trainer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if by_the_trainer:  # as with several processes
        monkeypatch.setattr(checkpoints, "written_by_one_process", lambda trainer: False)
    sets = ["eval_strategy=no", "save_steps=2", "max_steps=6", "save_total_limit=1"]
    tune("out", *(f"training.{each}" for each in sets), extensions=Extensions((ClockSetBack(),)))
    assert newest_checkpoint(Path("out")) == Path("out/checkpoint-6")


@pytest.mark.parametrize(
    ("there", "newest", "best", "limit", "left"),
    [
        ([2, 4, 6], 6, None, 1, {6}),
        ([2, 4, 6], 6, 2, 1, {2, 6}),
        ([2, 4, 6], 6, 2, 2, {2, 6}),
        ([2, 4, 6], 6, 6, 2, {4, 6}),
        ([10, 100, 90], 100, None, 2, {90, 100}),
        ([8, 9, 10, 12], 9, None, 2, {8, 9}),  # resumed from step 8
        ([2, 4], 4, None, 0, {2, 4}),
        ([2, 4], 4, None, None, {2, 4}),
        ([2, 4], 4, 3, 2, {2, 4}),  # the user removed the best one
    ],
)
def test_checkpoints_beyond_the_current_step_are_removed_first_and_then_the_oldest(
    there: list[int], newest: int, best: int | None, limit: int | None, left: set[int], tmp_path: Path
) -> None:
    for moment, step in enumerate(there):
        (tmp_path / f"checkpoint-{step}").mkdir()
        os.utime(tmp_path / f"checkpoint-{step}", (9000 - 100 * moment,) * 2)
    (tmp_path / "checkpoint-mine").mkdir()
    trainer: Any = SimpleNamespace(args=SimpleNamespace(save_total_limit=limit))
    named = None if best is None else str(tmp_path / f"checkpoint-{best}")
    remove_old_checkpoints(trainer, tmp_path / f"checkpoint-{newest}", named)
    kept = {f"checkpoint-{step}" for step in left} | {"checkpoint-mine"}
    assert {each.name for each in tmp_path.iterdir()} == kept
