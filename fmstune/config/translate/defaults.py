"""What other tools do where a configuration is silent, where fmstune does something else.

Sources: axolotl's `utils/schemas`, LLaMA-Factory's `hparams` (on transformers' `TrainingArguments`),
mlx-lm's `CONFIG_DEFAULTS`, ms-swift's `arguments`, torchtune's recipes with
`torch.optim.AdamW`, and TRL's `ModelConfig`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fmstune.config.methods.known import DEFAULT
from fmstune.config.schema.training import training_fields
from fmstune.config.translate.foreign import Foreign, Tool
from fmstune.config.translate.rule import Here

_DEFAULTS: Mapping[Tool, Here] = {
    "axolotl": {
        "training.num_train_epochs": 1.0,
        "training.per_device_train_batch_size": 1,
        "training.max_length": 512,
        "training.lr_scheduler_type": "cosine",
        "training.warmup_steps": 0.03,
    },
    "LLaMA-Factory": {
        "training.learning_rate": 5e-5,
        "training.max_length": 2048,
        "lora.r": 8,
    },
    "mlx-lm": {
        "data.train_on": "all",
        "training.max_steps": 1000,
        "training.per_device_train_batch_size": 4,
        "training.learning_rate": 1e-5,
        "training.lr_scheduler_type": "constant",
        "training.optim": "adamw_torch",
        "training.weight_decay": 0.0,
        "training.max_grad_norm": 0.0,
        "training.max_length": 2048,
        "training.seed": 0,
        "training.logging_steps": 10,
        "lora.enabled": True,
        "lora.r": 8,
        "lora.alpha": 160,
    },
    "torchtune": {
        "training.max_length": "none",
        "training.lr_scheduler_type": "constant",
        "training.max_grad_norm": 0.0,
    },
    "ms-swift": {
        "training.learning_rate": 1e-4,
        "training.per_device_train_batch_size": 1,
        "training.weight_decay": 0.1,
        "training.adam_beta2": 0.95,
        "training.lr_scheduler_type": "cosine",
        "training.logging_steps": 5,
        "training.activation_checkpointing": True,
        "training.max_length": "none",
        "lora.enabled": True,
        "lora.r": 8,
        "lora.alpha": 32,
        "lora.dropout": 0.05,
    },
    # PEFT's modules for most models; and the learning rate, which fmstune chooses for an adapter.
    "TRL": {"lora.dropout": 0.05, "lora.target_modules": ["q_proj", "v_proj"]},
}


def defaults_of(theirs: Foreign, here: Mapping[str, Any]) -> Here:
    """The defaults of a tool that hold in a configuration, translated so far to `here`."""
    found = dict(_DEFAULTS.get(theirs.tool, {}))
    if theirs.tool == "LLaMA-Factory":
        found["lora.alpha"] = 2 * _count(here, "lora.r", found["lora.r"])
        if "finetuning_type" not in theirs.settings:
            found["lora.enabled"] = True
        if theirs.get("stage") == "pt" and "packing" not in theirs.settings:
            found["training.packing"] = True
    if theirs.tool == "ms-swift" and (theirs.get("tuner_type") or theirs.get("train_type")) == "full":
        del found["lora.enabled"]
        found["training.learning_rate"] = 1e-5
    if theirs.tool == "ms-swift" and "training.gradient_accumulation_steps" not in here:
        batch = _count(here, "training.per_device_train_batch_size", 1)
        found["training.gradient_accumulation_steps"] = math.ceil(16 / batch)
    if theirs.tool == "TRL":
        rate = training_fields(here.get("run.method", DEFAULT))["learning_rate"].default
        found |= {"training.learning_rate": rate} if rate else {}
    if theirs.tool == "torchtune" and "adamw" in str(here.get("training.optim", "")):
        found["training.weight_decay"] = 0.01  # torch.optim.AdamW
    if theirs.tool == "mlx-lm":
        if here.get("training.optim") == "adamw_torch" and theirs.get("optimizer") == "adamw":
            found["training.weight_decay"] = 0.01
        if theirs.get("fine_tune_type") == "full":
            del found["lora.enabled"]
        found["lora.alpha"] = 20 * _count(here, "lora.r", found["lora.r"])
    if not here.get("lora.enabled", found.get("lora.enabled")):
        found = {key: value for key, value in found.items() if not key.startswith("lora.")}
    if "training.max_steps" in here or "training.num_train_epochs" in here:
        found.pop("training.max_steps", None)
    if here.get("run.method", "sft") != "sft":
        found.pop("data.train_on", None)
    return {key: value for key, value in found.items() if key not in here}


def _count(here: Mapping[str, Any], key: str, default: int) -> int:
    """A positive number among the settings; the default for one that fmstune will refuse."""
    value = here.get(key, default)
    return value if isinstance(value, int) and value > 0 else default
