"""What settings of the model and its adapter are here, where the value differs or depends on others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fmstune.config.translate.foreign import Foreign
from fmstune.config.translate.rule import Here, Left, Rule, if_true, list_of, names_in, to


def _adapter(value: Any, theirs: Foreign) -> Here:
    kinds: dict[str, Here] = {
        "lora": {"lora.enabled": True},
        "qlora": {"lora.enabled": True, "model.quantization": "4bit"},
        "dora": {"lora.enabled": True, "lora.dora": True},
        "full": {},
        "true": {"lora.enabled": True},
        "false": {},
    }
    found = kinds.get(str(value).lower())
    if found is None:
        raise Left("fmstune trains all weights, some (model.trainable), a LoRA adapter, or virtual tokens.")
    return found


def _component_of_model(value: Any, theirs: Foreign) -> Here:
    name = str(value).rpartition(".")[2]
    if "dora" in name:
        return {"lora.enabled": True, "lora.dora": True}
    return _adapter("qlora" if name.startswith("qlora") else "lora" if "lora" in name else "full", theirs)


def _model_name(value: Any, theirs: Foreign) -> Here:
    if theirs.tool == "ms-swift":
        raise Left("It stands for a word in ms-swift's own data: write it into the rows.")
    return {"model.path": value}


def _multiplier(weights: str) -> Rule:
    return lambda value, theirs: {"model.lr_multipliers": {weights: float(value)}} if value else {}


def _embedding_rate(value: Any, theirs: Foreign) -> Here:
    rate = theirs.get("learning_rate")
    if not isinstance(rate, float) or not rate:
        raise Left("")
    return {"model.lr_multipliers": {"embed_tokens": float(value) / rate}}


def _bits(value: Any, theirs: Foreign) -> Here:
    if value not in (4, 8):
        raise Left('model.quantization is "4bit" or "8bit".')
    return {"model.quantization": f"{value}bit"}


def _modules(value: Any, theirs: Foreign) -> Here:
    if theirs.get("lora_target_linear") is True:  # in addition to which it counts
        if beyond := [name for name in value if name in ("embed_tokens", "lm_head")]:
            raise Left(f"all-linear has no {beyond[0]}: name all modules in lora.target_modules.")
        return {}
    if isinstance(value, str) and value.replace("_", "-") in ("all", "all-linear"):
        return {"lora.target_modules": "all-linear"}
    return {"lora.target_modules": names_in(value)}


def _modules_of_torchtune(value: Any, theirs: Foreign) -> Here:
    names = ["o_proj" if name == "output_proj" else name for name in value]
    if theirs.get("model.apply_lora_to_mlp"):
        names += ["gate_proj", "up_proj", "down_proj"]
    if theirs.get("model.apply_lora_to_output"):
        names.append("lm_head")
    return {"lora.target_modules": names}


def _with_modules(value: Any, theirs: Foreign) -> Here:
    """A part of `model.lora_attn_modules`."""
    if value and not theirs.get("model.lora_attn_modules"):
        raise Left("")
    return {}


def _scale(value: Any, theirs: Foreign) -> Here:
    alpha = float(value) * int(theirs.get("rank", 8))
    if alpha != int(alpha):
        raise Left("")
    return {"lora.alpha": int(alpha)}


def _last_layers(value: Any, theirs: Foreign) -> Here:
    if value == -1 or theirs.tool != "mlx-lm":
        return {}
    raise Left("")


def _dtype(value: Any, theirs: Foreign) -> Here:
    names = {"bf16": "bfloat16", "fp32": "float32", "fp16": "float16"}
    value = str(value).removeprefix("torch.")
    return {"model.dtype": names.get(value, value)}


def _attention(value: Any, theirs: Foreign) -> Here:
    if value in (True, "fa2", "flash_attn"):
        value = "flash_attention_2"
    if value in (False, "auto"):
        return {}
    return {"model.attn_implementation": "eager" if value == "disabled" else value}


def _add_tokens(value: Any, theirs: Foreign) -> Here:
    return {"model.add_tokens": names_in(value) if isinstance(value, str) else value}


def _template(value: Any, theirs: Foreign) -> Here:
    if theirs.tool != "LLaMA-Factory" and value in ("tokenizer_default", "default"):
        return {}
    if theirs.tool == "axolotl" and value in ("alpaca", "chatml", "gemma", "llama3", "mistral"):
        return {"model.chat_template": value}
    raise Left("Use model.chat_template if the model has no chat template of its own.")


MODEL_RULES: Mapping[str, Rule] = {
    "adapter": _adapter,
    "finetuning_type": _adapter,
    "fine_tune_type": _adapter,
    "use_peft": _adapter,
    "tuner_type": _adapter,
    "train_type": _adapter,
    "model_name": _model_name,
    "attn_impl": _attention,
    "peft_config.name": _adapter,
    "peft_config.r": to("lora.r"),
    "peft_config.lora_alpha": to("lora.alpha"),
    "peft_config.lora_dropout": to("lora.dropout"),
    "model._component_": _component_of_model,
    "quantization_bit": _bits,
    "quant_bits": _bits,
    "model_author": _model_name,
    "load_in_4bit": if_true({"model.quantization": "4bit"}),
    "load_in_8bit": if_true({"model.quantization": "8bit"}),
    "quantize_base": if_true({"model.quantization": "4bit"}),
    "lora_target_modules": _modules,
    "lora_target": _modules,
    "target_modules": _modules,
    "keys": _modules,
    "lora_target_parameters": list_of("lora.target_parameters"),
    "target_parameters": list_of("lora.target_parameters"),
    "loraplus_lr_ratio": _multiplier("lora_B"),
    "embedding_lr_scale": _multiplier("embed_tokens"),
    "embedding_lr": _embedding_rate,
    "embedding_learning_rate": _embedding_rate,
    "lora_target_linear": if_true({"lora.target_modules": "all-linear"}),
    "lora_attn_modules": _modules_of_torchtune,
    "apply_lora_to_mlp": _with_modules,
    "apply_lora_to_output": _with_modules,
    "additional_target": list_of("lora.modules_to_save"),
    "lora_modules_to_save": list_of("lora.modules_to_save"),
    "scale": _scale,
    "num_layers": _last_layers,
    "dtype": _dtype,
    "torch_dtype": _dtype,
    "pure_bf16": if_true({"model.dtype": "bfloat16"}),
    "bfloat16": if_true({"model.dtype": "bfloat16"}),
    "float16": if_true({"model.dtype": "float16"}),
    "flash_attention": _attention,
    "flash_attn": _attention,
    "attn_implementation": _attention,
    "sdp_attention": if_true({"model.attn_implementation": "sdpa"}),
    "eager_attention": if_true({"model.attn_implementation": "eager"}),
    "flex_attention": if_true({"model.attn_implementation": "flex_attention"}),
    "lora_parameters.dropout": to("lora.dropout"),
    "tokens": _add_tokens,
    "add_tokens": _add_tokens,
    "chat_template": _template,
    "template": _template,
    "special_tokens.pad_token": to("training.pad_token"),
    "special_tokens.eos_token": to("training.eos_token"),
    "trust_remote_code": to("model.trust_remote_code"),
    "checkpointer.checkpoint_dir": to("model.path"),
    "unfrozen_parameters": list_of("model.trainable"),
}
"""By the name of a setting, or its dotted key."""
