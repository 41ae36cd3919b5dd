"""Label smoothing and `compute_metrics`, which read the logits of the model's plain forward: the loss
contains all that other losses do, and logits stand beside their labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fmstune.config.load.load import load
from fmstune.trackers.base import Tracker
from fmstune.training.build import build_trainer
from tests.support.architectures import save_tiny

SMOOTH, BALANCE = 0.2, 0.5
TEXTS = ("a red lamp", "the lamp costs nine euros", "we have a table, dear")


def built(model: str, *sets: str) -> Any:
    Path("x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    flags = [("model.path", model, "--model"), ("data.train", "x.jsonl", "--data")]
    more = ["data.eval=x.jsonl", "training.optim=sgd", "training.max_steps=1", "training.logging_steps=1"]
    config = load(None, flags, [*more, *sets])
    return build_trainer(config, Tracker(), Path("out")).trainer


def smoothed(model: Any, ids: list[int]) -> torch.Tensor:
    """The sum over the tokens of a row."""
    logs = model(input_ids=torch.tensor([ids])).logits[0, -len(ids) : -1].log_softmax(-1)
    right = logs.gather(1, torch.tensor(ids[1:])[:, None])
    return -((1 - SMOOTH) * right.sum() + SMOOTH * logs.mean(-1).sum())


def expected(trainer: Any) -> float:
    model = trainer.model.eval()
    rows = [row["input_ids"] for row in trainer.train_dataset]
    with torch.no_grad():
        total = sum(smoothed(model, ids) for ids in rows)
    return float(total) / sum(len(ids) - 1 for ids in rows)


def logged(trainer: Any) -> dict[str, float]:
    trainer.train()
    log: dict[str, float] = next(each for each in trainer.state.log_history if "loss" in each)
    return log


@pytest.mark.parametrize(("size", "several"), [(3, 1), (1, 3), (2, 2)])
def test_label_smoothing_balances_a_mixture_of_experts_too(
    size: int, several: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny("mixtral", tmp_path / "tiny")
    sets = [f"training.per_device_train_batch_size={size}", f"training.gradient_accumulation_steps={several}"]
    sets += [f"training.label_smoothing_factor={SMOOTH}", f"training.router_aux_loss_coef={BALANCE}"]
    trainer = built("tiny", *sets)
    own = expected(trainer)
    log = logged(trainer)
    assert log["aux_loss"] > 1
    assert log["loss"] == pytest.approx(own + BALANCE * log["aux_loss"], rel=1e-3)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected(trainer), rel=1e-3)


@pytest.mark.parametrize("size", [1, 3])
def test_label_smoothing_with_virtual_tokens(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sets = ["prompt_tuning.enabled=true", "prompt_tuning.tokens=5"]
    sets += [f"training.label_smoothing_factor={SMOOTH}", f"training.per_device_train_batch_size={size}"]
    trainer = built("demo", *sets, f"training.gradient_accumulation_steps={3 // size}")
    own = expected(trainer)
    assert logged(trainer)["loss"] == pytest.approx(own, rel=1e-4)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected(trainer), rel=1e-4)


def test_compute_metrics_gets_no_logits_of_virtual_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = built("demo", "prompt_tuning.enabled=true", "prompt_tuning.tokens=5")
    losses: list[float] = []

    def compute(prediction: Any) -> dict[str, float]:
        logits, labels = torch.tensor(prediction.predictions), torch.tensor(prediction.label_ids)
        assert logits.shape[:2] == labels.shape
        losses.append(
            float(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()))
        )
        return {}

    trainer.compute_metrics = compute
    found = trainer.evaluate()["eval_loss"]
    assert found == pytest.approx(losses[0], rel=1e-4)
