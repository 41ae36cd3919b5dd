"""Settings of TRL and transformers work through `[training]` as they do there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fmstune.config.load.load import load
from fmstune.errors import ConfigError
from fmstune.trackers.base import Tracker
from fmstune.training.build import build_trainer
from tests.support.end_to_end import journal_points
from tests.support.tracked import tune

pytestmark = pytest.mark.usefixtures("small_demo")

LOSS = ("train", "loss", 2)


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def losses(output: str, *sets: str) -> dict[tuple[str, str, int], float]:
    tune(output, "training.max_steps=4", "training.eval_strategy=no", "training.save_strategy=no", *sets)
    return journal_points(Path(output))


@pytest.mark.parametrize(
    "setting",
    [
        "training.packing=true",
        "training.train_sampling_strategy=group_by_length",
        "training.neftune_noise_alpha=5",
        "training.optim=adafactor",
        "training.label_smoothing_factor=0.1",
    ],
)
def test_a_setting_changes_the_training_and_the_model_still_learns(setting: str) -> None:
    plain, changed = losses("plain"), losses("changed", setting)
    assert changed["train", "loss", 4] != plain["train", "loss", 4]
    assert changed["train", "loss", 4] < changed[LOSS]


def test_accumulated_batches_equal_one_large_batch() -> None:
    whole = losses("whole", "training.per_device_train_batch_size=8")
    parts = losses(
        "parts", "training.per_device_train_batch_size=2", "training.gradient_accumulation_steps=4"
    )
    assert parts[LOSS] == pytest.approx(whole[LOSS], rel=1e-4)
    assert parts["train", "grad_norm", 2] == pytest.approx(whole["train", "grad_norm", 2], rel=1e-3)


def test_the_scheduler_is_the_configured_one() -> None:
    rates = losses(
        "out", "training.lr_scheduler_type=linear", "training.warmup_steps=0", "training.logging_steps=1"
    )
    rate = [rates["train", "learning_rate", step] for step in (1, 2, 3, 4)]
    assert rate == pytest.approx([5e-3 * part for part in (1, 0.75, 0.5, 0.25)])


@pytest.mark.parametrize("name", ["eos_token", "pad_token"])
def test_a_token_that_the_model_does_not_have_is_reported_with_its_source(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--set: training.{name} = '<nope>' is not in the model's vocab"):
        tune("out", f"training.{name}=<nope>")


@pytest.mark.parametrize("steps", ["training.max_steps=2", "training.max_steps=-1"])
def test_dropping_the_only_batch_is_refused(steps: str) -> None:
    """The Trainer would save the model untrained, or fail."""
    few = ["data.max_rows=4", "training.per_device_train_batch_size=8", steps]
    with pytest.raises(
        ConfigError, match="dataloader_drop_last leaves no batch: there are 4 rows, and a bat"
    ):
        tune("out", "training.dataloader_drop_last=true", *few)


def test_batches_that_are_balanced_follow_the_seed_and_learn_no_row_twice(tmp_path: Path) -> None:
    balanced = "training.train_sampling_strategy=batch_rebalance"
    orders = {seed: losses(f"seed-{seed}", balanced, f"training.data_seed={seed}")[LOSS] for seed in (1, 2)}
    assert orders[1] != orders[2]
    few = ["data.max_rows=5", "training.per_device_train_batch_size=2"]
    with pytest.raises(ConfigError, match="would learn 1 row twice in each epoch: 1 row of 5 would be left"):
        tune("out", balanced, *few, "training.gradient_accumulation_steps=2")


def test_compute_metrics_gets_rows_in_their_order_though_the_training_groups_them(tmp_path: Path) -> None:
    lengths: list[list[int]] = []

    def compute(prediction: Any) -> dict[str, float]:
        lengths.append([int((row != -100).sum()) for row in prediction.label_ids])
        return {}

    for strategy in ("random", "group_by_length"):
        config = load(None, [], [f"training.train_sampling_strategy={strategy}"])
        trainer: Any = build_trainer(config, Tracker(), tmp_path / "out").trainer
        trainer.compute_metrics = compute
        trainer.evaluate()
    assert lengths[0] == lengths[1]
    assert lengths[0] != sorted(lengths[0])
