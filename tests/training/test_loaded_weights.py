"""A resumed run loads every weight of its checkpoint, or says which one is missing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import Trainer

from fmstune.errors import RunError
from tests.support.architectures import save_tiny
from tests.support.tuned import tune

SETS = ["training.eval_strategy=no", "training.save_steps=1"]


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tune("out", *SETS, "training.max_steps=2")
    return Path("out", "checkpoint-2", "model.safetensors")


def test_embeddings_that_are_stored_once_are_not_missing(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(Trainer, "_issue_warnings_after_load", lambda _, found: reported.append(found))
    assert "lm_head.weight" not in load_file(checkpoint)
    tune("out", *SETS, "training.max_steps=3", resume="out")
    (found,) = reported
    assert (found.missing_keys, found.unexpected_keys) == ([], [])


def test_a_missing_weight_is_named(checkpoint: Path) -> None:
    stored = load_file(checkpoint)
    removed = next(name for name in stored if name.endswith("q_proj.weight"))
    save_file(
        {name: value for name, value in stored.items() if name != removed}, checkpoint, {"format": "pt"}
    )
    with pytest.raises(RunError, match=f"checkpoint-2 lacks 1 tensor of the model, {removed} for one"):
        tune("out", *SETS, "training.max_steps=3", resume="out")


@pytest.mark.parametrize(
    ("sets", "other", "said"),
    [
        (
            [],
            {"hidden_size": 64},
            r"model.embed_tokens.weight has the shape \[496, 32\] there, and \[496, 64\] here",
        ),
        (["lora.enabled=true"], {"intermediate_size": 96}, r"gate_proj.lora_B.default.weight has the shape"),
        (
            ["lora.enabled=true"],
            {"num_hidden_layers": 2},
            r"its adapter lacks model.layers.1.self_attn.q_proj",
        ),
        (["prompt_tuning.enabled=true"], {"hidden_size": 64}, r"has the shape \[20, 32\] there"),
    ],
)
def test_another_model_at_the_path_of_the_first_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sets: list[str], other: dict[str, int], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny("llama", Path("base"))
    sets = [*SETS, *sets, "model.path=base", "data.train=demo"]
    tune("out", *sets, "training.max_steps=2")
    shutil.rmtree("base")
    save_tiny("llama", Path("base"), **other)
    remedy = r"Put the model of that run at \./base again, or start a new run"
    with pytest.raises(
        RunError, match=rf"checkpoint-2 is of another model than \./base: .*{said}.*\. {remedy}"
    ):
        tune("out", *sets, "training.max_steps=3", resume="out")
