"""Every weight of an adapter is applied, or the adapter is refused; merged, it has the same logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptEncoderConfig, get_peft_model
from transformers import AutoModelForCausalLM

from fmstune import demo
from fmstune.config.schema.tables import ModelConfig
from fmstune.errors import ModelError
from fmstune.models.load import load_model
from fmstune.models.locate import locate
from fmstune.models.merge import check, merge
from tests.support.models import logits


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def base(name: str = "base", dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    shutil.copytree(demo.model_dir(), name)
    model = demo.build_model(3)
    if settings:
        config = model.config
        for key, value in settings.items():
            setattr(config, key, value)
        model = AutoModelForCausalLM.from_config(config)
    model.to(dtype).save_pretrained(name)
    return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)


def adapted(model: Any, **settings: Any) -> Any:
    """Save a LoRA adapter of plain PEFT in `adapter`; returns its model."""
    usual = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj", "v_proj"]}
    made = get_peft_model(model, LoraConfig(**(usual | settings)))
    torch.manual_seed(5)
    for weights in made.parameters():
        if weights.requires_grad:
            torch.nn.init.normal_(weights, std=0.1)
    made.save_pretrained("adapter")
    return made


def change(**settings: Any) -> None:
    file = Path("adapter/adapter_config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def load(**how: Any) -> Any:
    return load_model(ModelConfig(path="adapter"), lora=True, seed=0, trainable=False, **how).model


@pytest.mark.parametrize(
    ("trained", "changed", "example"),
    [
        ({"use_dora": True}, {"use_dora": False}, "q_proj.lora_magnitude_vector.weight"),
        ({}, {"target_modules": ["q_proj"]}, "v_proj.lora_A.weight"),
        ({}, {"layers_to_transform": [0]}, r"layers\.1\.self_attn\.q_proj\.lora_A\.weight"),
    ],
)
def test_weights_that_would_not_be_used_are_refused(
    trained: dict[str, Any], changed: dict[str, Any], example: str
) -> None:
    adapted(base(), **trained)
    load()
    change(**changed)
    with pytest.raises(ModelError, match=f"does not fit ./base: .* would not be used, .*{example} for one"):
        load()


def test_an_adapter_of_a_deeper_model_is_refused() -> None:
    adapted(base())
    base("shallow", num_hidden_layers=2)
    with pytest.raises(ModelError, match=r"does not fit ./shallow: 4 tensors of it would not be used"):
        load(base="shallow")


def test_an_adapter_without_weights_is_refused_without_asking_the_hub() -> None:
    adapted(base())
    Path("adapter/adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"it has no weights: there is no adapter_model\.safetensors in it"):
        load()


def test_an_adapter_on_an_adapter_is_refused_with_the_remedy() -> None:
    adapted(base())
    Path("adapter").rename("lower")
    adapted(AutoModelForCausalLM.from_pretrained("base"))
    change(base_model_name_or_path="lower")
    with pytest.raises(ModelError, match=r"is an adapter itself; .* fmstune merge lower OUT"):
        load()


def test_a_directory_with_a_model_and_an_adapter_is_refused() -> None:
    """transformers would load the adapter's base model, and not the model."""
    adapted(base())
    shutil.copytree("base", "adapter", dirs_exist_ok=True)
    with pytest.raises(ModelError, match="adapter holds both a whole model and an adapter"):
        locate("adapter")
    with pytest.raises(ModelError, match="adapter holds both a whole model and an adapter"):
        load()


def test_an_adapter_in_a_directory_below_is_pointed_out() -> None:
    adapted(base())
    Path("several").mkdir()
    Path("adapter").rename("several/other")
    with pytest.raises(ModelError, match=r"several holds no model.*Did you mean several/other\?"):
        locate("several")


@pytest.mark.parametrize("modules", [["embed_tokens", "q_proj"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_one_on_tied_embeddings_or_their_head_is_merged_into_that_alone(modules: list[str]) -> None:
    learnt = logits(adapted(base(), target_modules=modules))
    merge(locate("adapter"), Path("merged"), dtype="auto", base="base", trust_remote_code=False)
    merged = AutoModelForCausalLM.from_pretrained("merged")
    assert torch.allclose(logits(merged), learnt, atol=1e-4)
    # vLLM and llama.cpp go by this flag, and would leave the head out.
    assert not json.loads(Path("merged/config.json").read_text())["tie_word_embeddings"]


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-5), ("float16", 1e-2)])
def test_a_base_in_16_bits_is_merged_in_the_digits_that_are_asked_for(dtype: str, most: float) -> None:
    learnt = logits(adapted(base(dtype=torch.bfloat16)))
    merge(locate("adapter"), Path("merged"), dtype=dtype, base=None, trust_remote_code=False)
    merged = AutoModelForCausalLM.from_pretrained("merged", dtype="auto")
    assert str(merged.dtype) == f"torch.{dtype}"
    assert (logits(merged).float() - learnt).abs().max() < most


@pytest.mark.parametrize(
    ("kind", "said"), [(PrefixTuningConfig, "prefix tuning"), (PromptEncoderConfig, "p-tuning")]
)
def test_what_is_learnt_before_each_text_cannot_be_merged(kind: Any, said: str) -> None:
    more = {"encoder_hidden_size": 8} if kind is PromptEncoderConfig else {}
    made = get_peft_model(base(), kind(task_type="CAUSAL_LM", num_virtual_tokens=2, **more))
    made.save_pretrained("adapter")
    with pytest.raises(ModelError, match=rf"learnt words before each text \({said}\), which are no weights"):
        check(locate("adapter"), Path("merged"))
    assert torch.equal(logits(load()), logits(PeftModel.from_pretrained(base("again"), "adapter")))
