"""Callbacks that read checkpoints in `on_save` find them: the training waits for the write."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerCallback

from fmstune.delivery.guarded_callback import guarded_callback
from fmstune.training.extensions import Extensions
from fmstune.training.trainers import checkpoints as beside
from tests.support.tuned import tune

SETS = ["training.eval_strategy=no", "training.save_steps=2", "training.logging_steps=1"]


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Reading(TrainerCallback):
    """A user's callback, which reads each checkpoint when the Trainer reports that it is saved."""

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(Path(args.output_dir, f"checkpoint-{state.global_step}", "optimizer.pt").exists())


class Given(TrainerCallback):
    """Its `on_save` is set on the instance, as notebooks do."""


class Asking(TrainerCallback):
    """It reads checkpoints in another hook, and declares it."""

    reads_checkpoints = True

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in (2, 4):
            Reading.on_save(self, args, state, control)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Reading, Given, Asking])
def test_the_training_waits_for_callbacks_that_read_checkpoints_on_save(kind: type) -> None:
    reading = callback = kind()
    if isinstance(callback, Given):
        reading = Reading()
        callback.on_save = reading.on_save  # type: ignore[method-assign]
    shown = tune("out", *SETS, extensions=Extensions((callback,)))
    assert reading.seen == [True] * len(reading.seen)
    assert len(reading.seen) >= 2
    assert shown.count(f"until each checkpoint is written: the callback {kind.__name__} may read it") == 1


class Vendors:
    """Duck-types a callback without being one."""

    def on_log(self, *args: Any, **kwargs: Any) -> None: ...


class VendorsWithSave(Vendors):
    def on_save(self, *args: Any, **kwargs: Any) -> None: ...


def test_the_training_waits_for_vendor_callbacks_with_their_own_on_save() -> None:
    alone = TrainerCallback()
    alone.on_save = lambda *args, **kwargs: None  # type: ignore[method-assign]
    callbacks = [
        guarded_callback(each, lambda name, call: call())
        for each in (Vendors(), VendorsWithSave(), TrainerCallback(), alone)
    ]
    trainer = SimpleNamespace(callback_handler=SimpleNamespace(callbacks=callbacks))
    assert beside.readers(trainer) == ["VendorsWithSave", "TrainerCallback"]
