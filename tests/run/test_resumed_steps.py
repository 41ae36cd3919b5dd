"""A resumed run logs and saves at the intervals of its settings, not at those of its checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.journals import events
from tests.support.short_runs import train


def test_a_resumed_run_logs_and_saves_at_the_intervals_of_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    longer = ("training.max_steps=9", "training.save_strategy=steps", "training.save_total_limit=9")
    train(Path("a"), *longer, "training.save_steps=3", "training.logging_steps=1")
    resumed = ("training.save_steps=2", "training.logging_steps=4")
    shown = train(Path("b"), *longer, *resumed, resume="a/checkpoint-3")
    assert "training.logging_steps (1 → 4)" in shown
    logged = [event.step for event in events(Path("b")) if event.stage == "train" and "loss" in event.values]
    assert logged == [4, 8, 9]  # the last step is always logged
    saved = {int(path.name.rpartition("-")[2]) for path in Path("b").glob("checkpoint-*")}
    assert saved == {4, 6, 8, 9}
