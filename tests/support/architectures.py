"""Tiny models with random weights, one for each causal architecture in the installed transformers.

Sizes are set by field name wherever a config has it; what else an architecture needs is in `_BESIDES`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from fmstune import demo

ALL = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers",
           "num_decoder_layers", "num_encoder_layers", "num_layers_per_stack")  # fmt: skip
_INNER = ("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "d_ff", "ffn_hidden_size")
_SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim"), 32),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(_INNER, 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("shared_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 512),
    **dict.fromkeys(("mamba_n_heads", "n_mamba_heads", "index_n_heads", "num_heads"), 4),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("num_decoder_attention_heads", "num_encoder_attention_heads"), 2),
    **dict.fromkeys(("linear_num_key_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("linear_num_value_heads", "mamba_num_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 16),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 16),
    "num_key_value_heads": 1,
    "head_dim": 16,
}  # fmt: skip
_LATENT: dict[str, Any] = {  # multi-head latent attention, whose heads have several parts
    "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16, "kv_lora_rank": 16, "q_lora_rank": 16,
    "num_key_value_heads": 2, "n_group": 1, "topk_group": 1, "index_head_dim": 16,
}  # fmt: skip
_BOTH = {"layer_types": ["linear_attention", "full_attention"]}
_BESIDES: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_d_head": 16},
    "codegen": {"rotary_dim": 16, "n_ctx": 512, "n_head": 4, "n_embd": 64},
    "diffllama": {"num_key_value_heads": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "gemma3n_text": {"num_kv_shared_layers": 0, "intermediate_size": [64, 64],
                     "hidden_size_per_layer_input": 16,
                     "layer_types": ["sliding_attention", "full_attention"],
                     "vocab_size_per_layer_input": 1024, "activation_sparsity_pattern": [0.0, 0.0]},
    "gemma4_text": {"vocab_size_per_layer_input": 1024, "hidden_size_per_layer_input": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_heads": 2},
    "gptj": {"rotary_dim": 16},
    "granitemoehybrid": {"mamba_d_head": 16, "layer_types": ["mamba", "attention"]},
    "kimi_linear": {"num_experts_per_token": 2, "linear_num_heads": 2, "linear_head_dim": 16},
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "bailing_hybrid"), _BOTH),
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"head_dim": 16, "expand": 2, "n_groups": 1},
    "nemotron_h": {"n_groups": 2, "mamba_head_dim": 16},
    "zaya": {"num_experts_per_tok": 1},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
}  # fmt: skip
_ALIKE = {
    "apertus", "arcee", "aria_text", "bart", "bigbird_pegasus", "biogpt", "bitnet", "blenderbot",
    "blenderbot-small", "bloom", "codegen", "cohere", "cohere2", "cohere2_moe", "ctrl", "deepseek_v2",
    "deepseek_v3", "deepseek_v32", "deepseek_v4", "doge", "dots1", "ernie4_5", "exaone4", "falcon",
    "falcon_mamba", "flex_olmo", "gemma", "gemma3_text", "git", "glm", "glm4", "glm_moe_dsa", "gpt-sw3",
    "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "granite", "granitemoe", "granitemoeshared", "helium",
    "hrm_text", "hunyuan_v1_dense", "hunyuan_v1_moe", "hyperclovax", "inkling_text", "internlm3",
    "iquestcoder", "jais2", "jetmoe", "kolibri1", "lfm2", "lfm3", "llama", "mamba", "marian", "mbart",
    "mellum", "minicpm3", "minimax_m2", "minimax_m3_vl_text", "ministral", "ministral3", "mistral",
    "mixtral", "moshi", "mpt", "mvp", "nanochat", "nemotron", "olmo", "olmo2", "olmo3", "olmoe",
    "openai-gpt", "opt", "pegasus", "persimmon", "phi", "phi3", "phimoe", "plbart", "prophetnet",
    "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen4_exp_text", "recurrent_gemma", "seed_oss",
    "smollm3", "solar_open", "stablelm", "starcoder2", "trocr", "xglm", "xlstm", "youtu",
}  # fmt: skip
"""Architectures whose first two layers have the same modules, shapes and settings: only one is built. A new
architecture gets two until it has been compared."""


def tiny_model(kind: str, **settings: Any) -> PreTrainedModel:
    """A model of an architecture, without dropout, with at most three million weights. Raises whatever
    its config raises."""
    config = AutoConfig.for_model(kind, **(_sizes(kind) | settings))
    _without_dropout(config)
    torch.manual_seed(1)
    with _at_most(3_000_000):
        made: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return made


def tiny_gemma3(**settings: Any) -> PreTrainedModel:
    """A model for texts and images, whose default config cannot be made small by the names of its fields."""
    text = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 16, **settings}  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 56, "patch_size": 14}  # fmt: skip
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=3
    )
    made: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return made


def save_tiny(kind: str, folder: Path, **settings: Any) -> None:
    """Save a tiny model of an architecture with the demo's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(demo.model_dir())
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    settings = {"vocab_size": len(tokenizer), **ids, **settings}
    made = tiny_gemma3(**settings) if kind == "gemma3" else tiny_model(kind, **settings)
    for part in (made, tokenizer):
        part.save_pretrained(folder)


@contextlib.contextmanager
def _at_most(most: int) -> Iterator[None]:
    """Refuse a model as soon as it registers too many weights, before they are initialized."""
    weights = 0

    def count(module: torch.nn.Module, name: str, weight: torch.nn.Parameter | None) -> None:
        nonlocal weights
        weights += 0 if weight is None else weight.numel()
        if weights > most:
            raise ValueError(f"more than {most:,} weights")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _sizes(kind: str) -> dict[str, Any]:
    default = AutoConfig.for_model(kind)
    return _small(default, 1 if kind in _ALIKE else 2) | _BESIDES.get(kind, {})


def _small(config: PreTrainedConfig, layers: int) -> dict[str, Any]:
    known = config.to_dict()
    usual = _SMALL | dict.fromkeys(_LAYERS, layers)
    sizes = {key: value for key, value in usual.items() if isinstance(known.get(key), int)}
    if known.get("head_dim", 0) is None:
        sizes["head_dim"] = 16
    if "num_key_value_heads" in known:
        sizes["num_key_value_heads"] = 1
    if "qk_rope_head_dim" in known:
        sizes |= {key: value for key, value in _LATENT.items() if known.get(key) is not None}
        sizes.pop("head_dim", None)
    inner = {
        name: _small(value, layers)
        for name, value in vars(config).items()
        if isinstance(value, PreTrainedConfig)
    }
    return sizes | inner


def _without_dropout(config: PreTrainedConfig) -> None:
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            _without_dropout(value)
        elif isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
            setattr(config, name, 0.0)
