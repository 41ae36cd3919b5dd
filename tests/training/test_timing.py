"""Where the time of a run goes is recorded as it is spent, and how fast is learnt in it."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

import fmstune
from fmstune.resources.phases import PHASES, STEP
from tests.support.journals import events
from tests.support.tuned import tune

NAP = 0.05
STARTUP = [f"startup_{part}_seconds" for part in ("imports", "model", "data", "trainer")]


def system(directory: str | Path) -> list[dict[str, float]]:
    """What was recorded of times and speeds."""
    found = [event.values for event in events(Path(directory)) if event.stage == "system"]
    return [dict(values) for values in found if "memory_percent" not in values]


def sums(directory: str | Path) -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    for values in system(directory):
        for phase in PHASES:
            found[phase] += values.get(f"{phase}_seconds", 0.0)
    return found


def learnt(directory: str | Path, what: str) -> float:
    """How much of something was learnt in all, by its speed in each interval and the seconds of that."""
    return sum(
        values[f"{what}_per_second"] * sum(values[f"{phase}_seconds"] for phase in STEP)
        for values in system(directory)
        if f"{what}_per_second" in values
    )


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Sleeps(TrainerCallback):
    """Sleeps once a step in each phase that a callback reaches, and sees how long the training takes."""

    def __init__(self) -> None:
        self.naps: dict[str, int] = defaultdict(int)
        self.seconds = 0.0

    def nap(self, phase: str) -> None:
        self.naps[phase] += 1
        time.sleep(NAP)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.seconds = -time.perf_counter()
        model.register_forward_pre_hook(lambda module, _: self.nap("forward") if module.training else None)
        model.get_input_embeddings().register_full_backward_hook(lambda *_: self.nap("backward"))

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.nap("other")

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.nap("optimizer")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self.nap("logging")

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.nap("evaluation")

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds += time.perf_counter()


def test_each_phase_has_the_time_that_is_spent_in_it() -> None:
    callback = Sleeps()

    def handler(row: dict[str, Any]) -> dict[str, Any]:
        callback.nap("data")
        return row

    Path("rows.txt").write_text("".join(f"the dog number {number} barks\n" for number in range(6)))
    settings = {
        "model.path": "demo", "data.train": "rows.txt", "data.eval": "rows.txt", "data.streaming": True,
        "data.shuffle_buffer": 1, "training.output_dir": "out", "training.max_steps": 3,
        "training.logging_steps": 1, "training.eval_strategy": "steps", "training.eval_steps": 3,
        "training.save_steps": 3, "training.per_device_train_batch_size": 2,
    }  # fmt: skip
    before = callback.naps["data"]
    fmstune.train(settings=settings, callbacks=[callback], data_handler=handler, quiet=True)
    found = sums("out")
    # Of the handler's some are before the training: rows are looked at, and the evaluation's are prepared.
    assert before == 0
    assert found["data"] >= 6 * NAP
    assert found["checkpoint"] > 0
    for phase in ("forward", "backward", "optimizer", "logging", "evaluation", "other"):
        assert callback.naps[phase] >= 1
        assert found[phase] >= callback.naps[phase] * NAP, phase
    assert sum(found.values()) == pytest.approx(callback.seconds, rel=0.05)


def test_the_time_to_the_first_step_is_split() -> None:
    tune("out", "training.max_steps=1")
    (start,) = [values for values in system("out") if "startup_seconds" in values]
    assert list(start) == [*STARTUP, "startup_seconds"]
    assert sum(start[part] for part in STARTUP) == pytest.approx(start["startup_seconds"], abs=0.01)
    assert start["startup_model_seconds"] > 0
    assert start["startup_trainer_seconds"] > 0


@pytest.mark.parametrize("how", ["padding_free=true", "padding_free=false", "gradient_accumulation_steps=2"])
def test_rows_and_trained_tokens_are_those_of_the_data(how: str) -> None:
    # 60 rows of the demo make 7 batches of 8 and one of 4.
    epoch = ["training.max_steps=-1", "training.num_train_epochs=1", "data.max_rows=60"]
    epoch += ["training.per_device_train_batch_size=8"]
    tune("out", *epoch, f"training.{how}", "training.eval_strategy=no", "training.save_strategy=no")
    (data,) = [
        event.values for event in events(Path("out")) if event.kind == "params" and event.name == "data"
    ]
    assert learnt("out", "samples") == pytest.approx(data["rows"], rel=1e-3)
    assert learnt("out", "trained_tokens") == pytest.approx(data["trained_tokens"], rel=1e-3)


def test_pairs_have_samples_alone() -> None:
    tune("out", "run.method=dpo", "training.max_steps=2", "training.eval_strategy=no")
    assert learnt("out", "samples") == pytest.approx(2 * 2, rel=1e-3)
    assert learnt("out", "trained_tokens") == 0


def test_without_the_scanner_nothing_is_timed() -> None:
    tune("out", "training.max_steps=1", "resources.interval=0")
    assert not [event for event in events(Path("out")) if event.stage == "system"]
