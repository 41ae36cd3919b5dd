"""Weights that are to be trained, and that the training does not reach, are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fmstune.errors import ConfigError
from fmstune.training.callbacks.unreached import unreached
from tests.support.architectures import save_tiny
from tests.support.tracked import tune

SETS = ["training.max_steps=1", "training.eval_strategy=no", "training.save_strategy=no"]


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_an_adapter_that_the_model_reads_past_is_named() -> None:
    save_tiny("mamba", Path("model"))
    _, shown = tune("run", "model.path=model", "data.train=demo", "lora.enabled=true", *SETS)
    said = " ".join(shown.split()).partition("warning ")[2]
    assert "of the weights to train got no gradient in the first update, and learn nothing from this" in said
    assert "data: backbone.layers.mixer.dt_proj. The model computes without them" in said


def test_training_nothing_but_such_an_adapter_is_refused() -> None:
    save_tiny("mamba", Path("model"))
    sets = ("model.path=model", "data.train=demo", "lora.enabled=true", 'lora.target_modules=["dt_proj"]')
    with pytest.raises(
        ConfigError, match=r"past their adapter: backbone\.layers\.mixer\.dt_proj\. Choose others"
    ):
        tune("run", *sets, *SETS)


def test_training_nothing_but_a_tower_for_images_is_refused() -> None:
    save_tiny("gemma3", Path("model"))
    sets = ("model.path=model", "data.train=demo", 'model.trainable=["vision_tower"]')
    with pytest.raises(ConfigError, match="the model computes without the weights to train"):
        tune("run", *sets, *SETS)


def test_a_model_that_learns_as_a_whole_is_not_commented_on() -> None:
    assert "no gradient" not in tune("run", *SETS)[1]


def test_an_expert_that_no_token_is_sent_to_learns_later() -> None:
    def weight(*, reached: bool) -> torch.nn.Parameter:
        made = torch.nn.Parameter(torch.zeros(2))
        made.grad = torch.zeros(2) if reached else None
        return made

    names = ("model.layers.0.experts.0.up_proj.weight", "model.layers.1.experts.3.up_proj.weight")
    experts = dict(zip(names, (weight(reached=False), weight(reached=True)), strict=True))
    assert unreached(experts.items()) is None
    tower = {f"model.tower.{n}.fc1.lora_A.default.weight": weight(reached=False) for n in range(4)}
    assert unreached({**experts, **tower}.items()) == (
        "67% of the weights to train got no gradient in the first update, and learn nothing from this data: "
        "model.tower.fc1. The model computes without them, or past their adapter"
    )
    frozen = weight(reached=False).requires_grad_(False)
    assert unreached({**experts, "model.head.weight": frozen}.items()) is None
