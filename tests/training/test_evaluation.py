"""Eval metrics are means over tokens: they equal those of the plain model for any batch size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fmstune.config.load.load import load
from fmstune.trackers.base import Tracker
from fmstune.training.build import BuiltTrainer, build_trainer
from fmstune.training.trainers.neftune import RowNoise

FEW = ["model.path=demo", "data.train=demo", "data.max_rows=24", 'data.eval=[{path="demo", max_rows=23}]']


def built(tmp_path: Path, *sets: str) -> BuiltTrainer:
    quick = ["training.max_steps=1", "training.logging_steps=1", "training.save_strategy=no", *FEW]
    return build_trainer(load(None, [], [*quick, *sets], cwd=tmp_path), Tracker(), tmp_path / "out")


def by_hand(run: BuiltTrainer) -> tuple[float, float]:
    """Loss and accuracy over all trained tokens, computed row by row from the model's own forward."""
    loss = tokens = right = 0.0
    model = run.trainer.model.eval()
    for row in run.trainer.eval_dataset:
        labels = torch.tensor(row["labels"])[1:]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        loss += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        tokens += int((labels != -100).sum())
        right += int((logits.argmax(-1) == labels).sum())
    return loss / tokens, right / tokens


@pytest.mark.parametrize("size", [1, 5, 16])
def test_loss_and_accuracy_equal_those_of_the_plain_model_for_any_batch_size(
    tmp_path: Path, size: int
) -> None:
    run = built(tmp_path, f"training.per_device_eval_batch_size={size}")
    loss, accuracy = by_hand(run)
    found = run.trainer.evaluate()
    assert found["eval_loss"] == pytest.approx(loss, rel=1e-5)
    logged = run.trainer.state.log_history[-1]
    assert logged["eval_mean_token_accuracy"] == pytest.approx(accuracy, rel=1e-5)
    assert logged["eval_loss"] == found["eval_loss"]
    assert logged["eval_loss_batch_mean"] == pytest.approx(loss, rel=0.2)
    assert logged["eval_loss_batch_mean"] != logged["eval_loss"]  # where rows differ in length


@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "reward"])
def test_an_incomplete_last_batch_is_evaluated_even_if_training_drops_it(tmp_path: Path, method: str) -> None:
    sets = (f"run.method={method}", "training.dataloader_drop_last=true")
    run = built(tmp_path, *sets, "training.per_device_eval_batch_size=1000")
    assert len(run.trainer.get_eval_dataloader()) == 1
    found = run.trainer.evaluate()
    assert found["eval_loss"] > 0
    assert run.trainer.args.dataloader_drop_last
    if method == "sft":
        assert found["eval_loss"] == pytest.approx(by_hand(run)[0], rel=1e-5)


def test_packing_does_not_change_the_eval(tmp_path: Path) -> None:
    run = built(tmp_path, "training.packing=true", "training.max_length=4096")
    loss, accuracy = by_hand(built(tmp_path))
    found = run.trainer.evaluate()
    assert found["eval_loss"] == pytest.approx(loss, rel=1e-4)
    assert run.trainer.state.log_history[-1]["eval_mean_token_accuracy"] == pytest.approx(accuracy, rel=1e-4)


def test_user_metrics_are_computed_in_addition(tmp_path: Path) -> None:
    run = built(tmp_path)
    run.trainer.compute_metrics = lambda found: {"rows": len(found.predictions)}
    found = run.trainer.evaluate()
    assert found["eval_rows"] == len(run.trainer.eval_dataset)
    assert found["eval_loss"] == pytest.approx(by_hand(run)[0], rel=1e-5)


@pytest.mark.parametrize("settings", ["training.loss_type=dft", "training.label_smoothing_factor=0.2"])
def test_other_losses_are_also_weighted_by_tokens(tmp_path: Path, settings: str) -> None:
    one, other = (
        built(tmp_path, settings, f"training.per_device_eval_batch_size={size}").trainer.evaluate()
        for size in (1, 7)
    )
    assert one["eval_loss"] == pytest.approx(other["eval_loss"], rel=1e-5)
    assert one["eval_loss_batch_mean"] != pytest.approx(other["eval_loss_batch_mean"], rel=1e-5)


def noise(
    inputs: dict[str, Any], tokens: tuple[int, int], width: int = 64, alpha: float = 5.0
) -> torch.Tensor:
    """The largest noise of each token, as a fraction of alpha / √width."""
    table = torch.nn.Embedding(4, width)
    torch.nn.init.zeros_(table.weight)

    class Model(torch.nn.Module):
        get_input_embeddings = staticmethod(lambda: table)

    made = RowNoise(alpha)
    made.next_batch(inputs)
    with made.on(Model()):
        found = table(torch.zeros(tokens, dtype=torch.long)).abs().amax(-1)
    assert not table(torch.zeros(tokens, dtype=torch.long)).any()  # the noise ends with the training
    return found * width**0.5 / alpha


def test_the_noise_of_a_row_depends_on_its_own_length_padded_or_not() -> None:
    flat = noise({"cu_seq_lens_q": torch.tensor([0, 4, 104])}, (1, 104))[0]
    mask = torch.zeros(2, 100, dtype=torch.long)
    mask[0, :4], mask[1] = 1, 1
    padded = noise({"attention_mask": mask}, (2, 100))
    for short, long in ((flat[:4], flat[4:]), (padded[0, :4], padded[1])):
        assert (short <= 4**-0.5).all()
        assert (short > 0.8 * 4**-0.5).all()
        assert (long <= 100**-0.5).all()
        assert (long > 0.8 * 100**-0.5).all()


def test_training_with_noise_has_the_same_expected_loss_with_and_without_padding(tmp_path: Path) -> None:
    losses = []
    for asked in ("true", "false"):
        run = built(tmp_path, f"training.padding_free={asked}", "training.neftune_noise_alpha=20")
        run.trainer.train()
        losses.append(run.trainer.state.log_history[0]["loss"])
        assert not run.trainer.model.get_input_embeddings()._forward_hooks
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
