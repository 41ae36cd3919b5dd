"""The eval metrics of preferences are means over all rows: they do not depend on the batch size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fmstune.training.build import BuiltTrainer
from tests.support.architectures import save_tiny
from tests.support.preferred import build, pairs, write

pytestmark = pytest.mark.usefixtures("small_demo")
FIGURES = {
    "dpo": ("rewards/accuracies", "rewards/margins", "rewards/chosen", "logps/rejected", "logits/rejected"),
    "kto": ("rewards/margins", "rewards/chosen", "rewards/rejected", "logps/chosen", "entropy"),
    "reward": ("accuracy", "margin", "mean_reward", "min_reward", "max_reward"),
    "orpo": ("rewards/accuracies", "rewards/margins", "logps/chosen", "logits/chosen", "nll_loss"),
}


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = pairs(11)
    for at, row in enumerate(rows[::3]):  # answers of other lengths, and some worse than the other
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        row["chosen"][0]["content"] += " And so on." * at
    write("pairs.jsonl", rows)


def evaluated(method: str, size: int, *more: str) -> tuple[BuiltTrainer, dict[str, float]]:
    """The metrics of an evaluation by a model that differs from its reference."""
    sets = ["data.eval=pairs.jsonl", f"training.per_device_eval_batch_size={size}", *more]
    if method == "kto":  # its loss compares a row with the others of its batch
        sets.append("training.loss_type=apo_zero_unpaired")
    built = build(method, *sets)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in built.trainer.model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.05)
    built.trainer.evaluate()
    return built, built.trainer.state.log_history[-1]


@pytest.mark.parametrize("method", FIGURES)
def test_the_metrics_do_not_depend_on_the_batch_size(method: str) -> None:
    _, whole = evaluated(method, 64)
    for size in (1, 4):
        _, found = evaluated(method, size)
        for name in FIGURES[method]:
            assert found[f"eval_{name}"] == pytest.approx(whole[f"eval_{name}"], rel=1e-4), (name, size)


@pytest.mark.parametrize(
    ("method", "more"),
    [("dpo", ()), ("dpo", ("training.loss_type=['sft', 'ipo']",)), ("reward", ()), ("orpo", ())],
)
def test_the_loss_does_not_depend_on_the_batch_size(method: str, more: tuple[str, ...]) -> None:
    _, whole = evaluated(method, 64, *more)
    for size in (1, 4):
        _, found = evaluated(method, size, *more)
        assert found["eval_loss"] == pytest.approx(whole["eval_loss"], rel=1e-5), size


@pytest.mark.parametrize("method", ["dpo", "kto", "orpo"])
def test_the_eval_loss_of_a_mixture_of_experts_does_not_depend_on_the_batch_size(method: str) -> None:
    save_tiny("mixtral", Path("mixture"), output_router_logits=True, router_aux_loss_coef=0.5)
    found = [evaluated(method, size, "model.path=mixture")[1]["eval_loss"] for size in (64, 1, 4)]
    assert found == pytest.approx([found[0]] * 3, rel=1e-5)


def test_a_reward_accuracy_is_the_share_of_all_rows() -> None:
    built, found = evaluated("reward", 4)
    model, right = built.trainer.model.eval(), 0
    for row in built.trainer.eval_dataset:
        with torch.no_grad():
            good, bad = (
                float(model(input_ids=torch.tensor([row[name]])).logits)
                for name in ("chosen_ids", "rejected_ids")
            )
        right += good > bad
    assert 0 < right < 11
    assert found["eval_accuracy"] == pytest.approx(right / 11)
