"""A run saves what its user expects: weights in their original dtype, and unchanged settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from fmstune import demo
from fmstune.config.schema.tables import ModelConfig
from fmstune.models.generate import generate_texts
from fmstune.models.load import load_for_use, load_tokenizer
from fmstune.models.saving import in_dtype, tied_again
from tests.support.architectures import save_tiny
from tests.support.short_runs import train


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with bfloat16 files, like most published ones."""
    directory = tmp_path_factory.mktemp("half")
    demo.build_model(1).to(torch.bfloat16).save_pretrained(directory)
    load_tokenizer(ModelConfig(path="demo")).save_pretrained(directory)
    return directory


def dtypes(directory: Path) -> set[str]:
    found = set()
    for file in directory.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            found |= {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    return found


def settings(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return found


def test_weights_are_saved_in_their_own_dtype_and_checkpoints_keep_full_precision(
    tmp_path: Path, half: Path
) -> None:
    said = train(tmp_path / "run", "training.save_steps=3", model=str(half))
    assert "· weights in bfloat16" in said
    assert dtypes(tmp_path / "run") == {"BF16"}
    assert dtypes(tmp_path / "run" / "checkpoint-3") == {"F32"}
    size = (tmp_path / "run" / "model.safetensors").stat().st_size
    assert abs(size - (half / "model.safetensors").stat().st_size) < 1000  # also with tied embeddings
    for directory, dtype in ((tmp_path / "run", "bfloat16"), (tmp_path / "run" / "checkpoint-3", "float32")):
        assert (settings(directory)["dtype"], settings(directory)["use_cache"]) == (dtype, True)
        # Whoever may read the configuration may read the weights.
        modes = {(directory / name).stat().st_mode for name in ("config.json", "model.safetensors")}
        assert len(modes) == 1
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run", dtype="auto")
    exact = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-3")
    for name, weight in exact.state_dict().items():
        assert torch.equal(saved.state_dict()[name], weight.to(torch.bfloat16)), name


@pytest.mark.parametrize(
    ("sets", "dtype"),
    [
        (["run.save_dtype=float32"], "F32"),
        (["run.save_dtype=bfloat16", "lora.enabled=true"], "BF16"),
        (["lora.enabled=true"], "F32"),
        (["model.dtype=float32"], "F32"),
    ],
)
def test_the_user_can_choose_another_dtype(tmp_path: Path, half: Path, sets: list[str], dtype: str) -> None:
    train(tmp_path / "run", "training.max_steps=1", *sets, model=str(half))
    assert dtypes(tmp_path / "run") == {dtype}


def test_weights_that_a_model_requires_in_float32_and_integers_stay_unchanged() -> None:
    class Model(torch.nn.Module):
        _keep_in_fp32_modules = ("bias_of_experts",)

    shared = torch.ones(2, 2)
    weights = {
        "a": shared,
        "b": shared,
        "bias_of_experts.x": torch.ones(2),
        "n": torch.ones(1, dtype=torch.int),
    }
    made = in_dtype(weights, torch.bfloat16, Model())
    assert [tensor.dtype for tensor in made.values()] == [
        torch.bfloat16, torch.bfloat16, torch.float32, torch.int32
    ]  # fmt: skip
    assert made["a"] is made["b"]


def test_weights_copied_by_deepspeed_share_memory_as_in_the_model() -> None:
    model = torch.nn.ModuleDict({each: torch.nn.Linear(2, 2, bias=False) for each in ("a", "b", "c")})
    model["b"].weight = model["a"].weight
    copies = {name: weight.clone() for name, weight in model.state_dict().items()}
    tied = tied_again({**copies, "buffer": torch.ones(1)}, model)
    assert tied["a.weight"] is tied["b.weight"]
    assert tied["c.weight"] is copies["c.weight"]
    assert tied.keys() == {*copies, "buffer"}


def test_a_model_for_texts_and_images_keeps_its_settings(tmp_path: Path) -> None:
    save_tiny("gemma3", tmp_path / "model")
    train(tmp_path / "run", model=str(tmp_path / "model"))
    assert settings(tmp_path / "run") == settings(tmp_path / "model")


@pytest.mark.parametrize("own", [True, False])
def test_a_mixture_of_experts_keeps_its_settings_and_answers_prompts_of_different_lengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    """Training computes a loss that balances the experts, which fails in generation."""
    monkeypatch.chdir(tmp_path)
    save_tiny("mixtral", Path("model"), output_router_logits=own)
    asked = ['samples.prompts=["What does the lamp cost?", "Hello"]', "data.eval_fraction=0.2"]
    train(Path("run"), "training.eval_strategy=steps", "training.eval_steps=1", *asked, model="model")
    assert settings(Path("run")) == settings(Path("model"))
    model, tokenizer = load_for_use(ModelConfig(path="run"))
    assert len(generate_texts(model.model, tokenizer, ["What does the lamp cost?", "Hello"], 4)) == 2
    assert model.model.config.output_router_logits is own


def test_a_setting_that_only_the_training_adds_is_not_saved(tmp_path: Path) -> None:
    save_tiny("openai-gpt", tmp_path / "model")
    assert "use_cache" not in settings(tmp_path / "model")
    train(tmp_path / "run", "training.save_steps=3", model=str(tmp_path / "model"))
    for directory in (tmp_path / "run", tmp_path / "run" / "checkpoint-3"):
        assert "use_cache" not in settings(directory)
