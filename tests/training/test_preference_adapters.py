"""The reference of preferences with an adapter: the model without it, or the adapter as it was before."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from fmstune import demo
from fmstune.config.load.load import load
from fmstune.config.rules.unused import unused
from fmstune.errors import ConfigError
from tests.support.preferred import build, pairs, tune, write
from tests.support.tracked import rewrite_as_interrupted

pytestmark = pytest.mark.usefixtures("small_demo")
ADAPTED = ("lora.enabled=true", "lora.r=2", "model.path=./base", "training.learning_rate=0.1")


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with biases, whose head does not share the weights of its embeddings."""
    monkeypatch.chdir(tmp_path)
    write("pairs.jsonl", pairs(8))
    tokenizer = AutoTokenizer.from_pretrained(demo.model_dir())
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen2Config(
        vocab_size=len(tokenizer), num_key_value_heads=2, eos_token_id=tokenizer.eos_token_id, **sizes
    )
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained("base")
    tokenizer.save_pretrained("base")


def rewards(trainer: Any) -> list[float]:
    """The mean rewards of the first batch."""
    trainer.model.eval()
    with torch.no_grad():
        trainer.compute_loss(
            trainer.model, trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        )
    return [trainer._metrics["eval"][f"rewards/{name}"][-1] for name in ("chosen", "rejected")]


@pytest.mark.parametrize("method", ["dpo", "kto"])
@pytest.mark.parametrize("more", ["training.beta=0.2", "training.precompute_ref_log_probs=true"])
def test_a_continued_adapter_is_compared_with_itself_as_it_was(method: str, more: str) -> None:
    embedded = "lora.target_modules=['q_proj', 'embed_tokens']"
    tune("dpo", "first", *ADAPTED, embedded, "training.max_steps=2", evaluation="")
    trainer = build(method, "model.path=./first", more).trainer
    assert rewards(trainer) == pytest.approx([0, 0], abs=1e-5)


def test_the_reference_of_a_continued_adapter_is_not_a_part_of_the_result_and_is_resumed() -> None:
    tune("dpo", "first", *ADAPTED, "training.max_steps=2", evaluation="")
    steps = ["training.max_steps=4", "training.save_strategy='steps'", "training.save_steps=2"]
    tune("dpo", "whole", "model.path=./first", *steps, evaluation="")
    assert not Path("whole/ref").exists()
    shutil.copytree("whole", "parts")
    Path("parts/adapter_model.safetensors").unlink()
    shutil.rmtree("parts/checkpoint-4")
    rewrite_as_interrupted(Path("parts"))
    tune("dpo", "parts", "model.path=./first", *steps, evaluation="", resume="auto")
    whole, parts = (Path(name, "adapter_model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert parts == whole


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_are_refused_as_they_would_move_the_reference(bias: str) -> None:
    trained = (*ADAPTED, f"lora.bias={bias}")
    with pytest.raises(ConfigError, match=r"as they were: leave it out, or set training\.precompute"):
        build("kto", *trained)
    precomputed = (*trained, "training.precompute_ref_log_probs=true", "training.max_steps=2")
    tune("dpo", "first", *precomputed, evaluation="")
    tune("orpo", "other", *trained, "training.max_steps=1", evaluation="")  # it has no reference
    with pytest.raises(ConfigError, match="as they were: merge the adapter with fmstune merge"):
        build("dpo", "model.path=./first")


@pytest.mark.parametrize("method", ["dpo", "kto", "reward", "orpo"])
def test_a_dropout_that_the_trainer_disables_is_reported(method: str) -> None:
    def why(*sets: str) -> str | None:
        flags = [("run.method", method, "--method")]
        return unused(load(None, flags, [*ADAPTED, "data.train=demo", "lora.dropout=0.1", *sets])).get(
            "lora.dropout"
        )

    assert why() == f"training.disable_dropout is true, the default of {method}"
    assert why("training.disable_dropout=false") is None
