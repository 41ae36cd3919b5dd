"""The reported modules of an adapter are those that are trained: tied modules, and experts of a mixture."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from fmstune.config.load.load import load
from fmstune.errors import ConfigError
from fmstune.launch.notices import warnings_shown
from fmstune.models.adapted_modules import unreached_experts
from fmstune.models.adapters import describe, peft_config
from fmstune.models.load import load_model
from fmstune.models.locate import locate
from fmstune.models.merge import merge
from fmstune.training.trainers.preferences import refused_by_trl
from tests.support.architectures import save_tiny
from tests.support.models import logits
from tests.support.short_runs import train

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
}


@pytest.mark.parametrize("named", ["lm_head", "embed_tokens", "model.embed_tokens"])
def test_modules_that_share_their_weights_are_both_reported(named: str) -> None:
    config = load(
        None,
        [("model.path", "demo", ""), ("data.train", "demo", "")],
        ["lora.enabled=true", f'lora.modules_to_save=["{named}"]'],
    )
    model = load_model(config.model, lora=True, seed=1).model
    made = get_peft_model(model, peft_config(config, model))
    assert str(describe(made)).endswith(", and all of embed_tokens, lm_head")


@pytest.mark.parametrize(
    ("kind", "sizes", "reached"),
    [
        ("mixtral", {"num_local_experts": 4}, True),
        ("qwen3_moe", {"num_experts": 4, "moe_intermediate_size": 16}, True),
        ("granitemoe", {"num_local_experts": 4}, False),
        ("gpt_oss", {"num_local_experts": 4, "head_dim": 8}, False),
    ],
)
def test_experts_are_adapted_and_reported_or_reported_as_left_out(
    kind: str, sizes: dict[str, Any], reached: bool
) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES, **sizes))
    made = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    trained = any("experts" in name and weight.requires_grad for name, weight in made.named_parameters())
    assert trained == reached == ("experts.down_proj" in str(describe(made)))
    said = unreached_experts(made, "all-linear")
    assert (said is None) == reached
    assert said is None or "does not reach the experts" in said
    assert unreached_experts(made, ("q_proj",)) is None


def test_what_peft_says_to_be_ignored_on_fused_experts_is_used_and_not_shown() -> None:
    kind = AutoConfig.for_model("mixtral", **SIZES, num_local_experts=4)
    shown: list[str] = []
    with warnings.catch_warnings(), warnings_shown(shown.append):
        warnings.simplefilter("always")
        made = get_peft_model(
            AutoModelForCausalLM.from_config(kind),
            LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
    assert shown == []
    ranks = {
        module.parameter_name: (module.r["default"], module.scaling["default"])
        for module in made.modules()
        if hasattr(module, "parameter_name")
    }
    assert ranks["down_proj"][0] == 4
    assert ranks["gate_up_proj"] == (8, ranks["down_proj"][1])  # a rank of 4 for each of its two parts


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "lora.dora"),
        ({"lora_dropout": 0.1}, "lora.dropout"),
        ({"modules_to_save": ["gate"]}, "lora.modules_to_save for the experts or their router"),
        ({"modules_to_save": ["experts"]}, "lora.modules_to_save for the experts or their router"),
    ],
)
def test_what_peft_cannot_do_beside_an_adapter_on_experts_is_refused_by_the_name_of_its_setting(
    settings: dict[str, Any], named: str
) -> None:
    kind = AutoConfig.for_model("mixtral", **SIZES, num_local_experts=4)
    everywhere = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    message = rf"^{named} does not work beside an adapter on the experts"
    with pytest.raises(ConfigError, match=message), refused_by_trl():
        get_peft_model(AutoModelForCausalLM.from_config(kind), everywhere)
    named_modules = LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **settings)
    get_peft_model(AutoModelForCausalLM.from_config(kind), named_modules)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["w1", "w2"]}, "w1 without also targeting w3 .* Name all of these in"),
        (
            {"target_modules": ["q_proj"], "modules_to_save": ["self_attn"]},
            "lora.modules_to_save contains all that .* adapts: leave out one of them",
        ),
    ],
)
def test_what_peft_refuses_is_said_with_what_to_do(settings: dict[str, Any], message: str) -> None:
    kind = AutoConfig.for_model("mixtral", **SIZES, num_local_experts=4)
    refused = LoraConfig(task_type="CAUSAL_LM", **settings)
    with pytest.raises(ConfigError, match=message), refused_by_trl():
        get_peft_model(AutoModelForCausalLM.from_config(kind), refused)


def test_experts_are_adapted_by_the_names_that_published_files_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny("qwen3_moe", Path("base"))
    names = 'lora.target_modules=["q_proj","gate_proj","up_proj","down_proj"]'
    train(Path("run"), "lora.enabled=true", names, model="base")
    keys = load_file("run/adapter_model.safetensors").keys()
    assert any("experts" in key for key in keys)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "run")
    merge(locate("run"), Path("merged"), dtype="auto", base=None, trust_remote_code=False)
    merged = AutoModelForCausalLM.from_pretrained("merged")
    torch.testing.assert_close(logits(adapted), logits(merged), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits(merged), logits(AutoModelForCausalLM.from_pretrained("base")), atol=1e-3)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ('lora.target_modules=["experts.0"]', "All experts of a layer are one module, experts"),
        ('lora.target_modules=["experts.0.w1"]', "All experts of a layer are one module, experts"),
        ('lora.modules_to_save=["experts.0"]', "one module, experts, for lora.modules_to_save"),
        ('lora.modules_to_save=["mlp"]', "as a module of lora.modules_to_save contains it"),
    ],
)
def test_what_is_no_module_of_a_mixture_is_refused_with_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny("mixtral", Path("base"))
    with pytest.raises(ConfigError, match=said):
        train(Path("run"), "lora.enabled=true", setting, model="base")


def test_experts_that_are_trained_whole_are_not_said_to_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny("granitemoe", Path("base"))
    assert "does not reach the experts" in train(Path("run"), "lora.enabled=true", model="base")
    said = train(Path("all"), "lora.enabled=true", 'lora.modules_to_save=["experts"]', model="base")
    assert "does not reach the experts" not in said
