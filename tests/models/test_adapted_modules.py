"""The reported modules of an adapter are those that are trained: tied modules, and experts of a mixture."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from fmstune.config.load.load import load
from fmstune.errors import ConfigError
from fmstune.launch.notices import warnings_shown
from fmstune.models.adapted_modules import unreached_experts
from fmstune.models.adapters import describe, peft_config
from fmstune.models.load import load_model
from fmstune.training.trainers.preferences import refused_by_trl

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
