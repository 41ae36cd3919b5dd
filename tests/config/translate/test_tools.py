"""`fmstune init --from` translates the configurations of other tools, with their values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fmstune.config.load.load import load
from tests.support.foreign_configs import (
    AXOLOTL,
    LIMITS_OF_TORCHTUNE,
    LLAMA_FACTORY,
    LLAMA_FACTORY_V1,
    LR_OF_AXOLOTL,
    MLX,
    PAIRS_OF_AXOLOTL,
    PRETRAINING_OF_LLAMA_FACTORY,
    SCHEDULE_OF_MLX,
    SWIFT,
    TORCHTUNE,
    TRL,
    TRL_COMMAND,
)
from tests.support.translated import init, value_of

PAIR_COLUMNS = {"instruction": "question", "chosen": "good", "rejected": "bad"}
EXPECTED: dict[str, dict[str, Any]] = {
    AXOLOTL: {
        "model.path": "NousResearch/Llama-3.2-1B",
        "lora.enabled": True,
        "lora.r": 32,
        "lora.alpha": 16,
        "lora.target_modules": "all-linear",
        "data.train": [
            ("teknium/GPT4-LLM-Cleaned", "train[:10%]", None),
            ("chats.jsonl", None, {"messages": "dialog"}),
        ],
        "data.eval_fraction": 0.1,
        "training.max_length": 4096,
        "training.packing": True,
        "training.gradient_accumulation_steps": 4,
        "training.per_device_train_batch_size": 2,
        "training.num_train_epochs": 2,
        "training.learning_rate": 2e-4,
        "training.lr_scheduler_type": "cosine",
        "training.activation_checkpointing": True,
        "training.warmup_steps": 0.1,
        "training.eval_strategy": "steps",
        "training.eval_steps": 0.125,
        "training.save_strategy": "epoch",
        "training.pad_token": "<|end_of_text|>",
        "tracking.trackers": ("wandb",),
        "trackers.wandb": {"project": "llamas"},
    },
    LLAMA_FACTORY: {
        "run.method": "dpo",
        "training.beta": 0.2,
        "training.loss_type": "hinge",
        "lora.r": 16,
        "lora.alpha": 32,  # by default twice the rank
        "lora.target_modules": ("q_proj", "v_proj"),
        "data.train": [("data/pairs.json", None, PAIR_COLUMNS)],
        "data.max_rows": 500,
        "training.warmup_steps": 20,
        "training.save_strategy": "steps",
        "training.save_steps": 500,
        "tracking.trackers": (),
    },
    TORCHTUNE: {
        "model.path": "there",
        "model.dtype": "bfloat16",
        "lora.enabled": True,
        "lora.target_modules": ("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        "data.train": [("yahma/alpaca-cleaned", None, None)],
        "data.train_on": "all",  # as this data set does unless told otherwise
        "training.packing": True,
        "training.learning_rate": 3e-4,
        "training.weight_decay": 0.01,  # torch's
        "training.max_grad_norm": 0.0,
        "training.max_length": None,
        "training.lr_scheduler_type": "cosine",
        "training.warmup_steps": 100,
        "training.per_device_eval_batch_size": 2,
    },
    MLX: {
        "lora.dora": True,
        "lora.r": 4,
        "lora.alpha": 40,
        "data.train": [("chats/train.jsonl", None, None)],
        "data.eval": [("chats/valid.jsonl", None, None)],
        "data.train_on": "all",
        "training.max_steps": 300,  # updates
        "training.weight_decay": 0.0,
        "training.lr_scheduler_type": "constant",
        "training.max_length": 2048,
        "training.eval_strategy": "steps",
    },
    SWIFT: {
        "run.method": "dpo",
        "data.train": [("hjh0119/shareAI", None, None), ("more/pairs", None, None)],
        "data.eval_fraction": 0.01,
        "model.dtype": "bfloat16",
        "lora.enabled": True,
        "lora.r": 4,
        "lora.alpha": 32,
        "training.gradient_accumulation_steps": 8,  # to 16 rows in an update
        "training.learning_rate": 1e-4,
        "training.adam_beta2": 0.95,
        "training.eval_steps": 50,
        "training.activation_checkpointing": True,
    },
    TRL_COMMAND: {
        "run.method": "dpo",
        "training.learning_rate": 5e-7,
        "training.activation_checkpointing": True,
        "lora.enabled": False,
    },
    TRL: {
        "lora.dropout": 0.05,
        "lora.target_modules": ("q_proj", "v_proj"),  # PEFT's
        "training.learning_rate": 2e-5,  # fmstune's own for an adapter is higher
        "training.activation_checkpointing": True,
        "tracking.trackers": ("wandb", "tensorboard"),
    },
    LR_OF_AXOLOTL: {
        "lora.target_modules": "all-linear",  # and q_proj, which is one of them
        "training.lr_scheduler_type": "cosine_with_min_lr",
        "training.lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "training.warmup_steps": 0.03,
        "training.per_device_train_batch_size": 2,
        "training.gradient_accumulation_steps": 8,  # batch_size is that of an update
    },
    PRETRAINING_OF_LLAMA_FACTORY: {
        "lora.enabled": True,  # also with a stage
        "training.packing": True,
        "data.train": [("data/texts.jsonl", None, {"text": "body"})],
    },
    LLAMA_FACTORY_V1: {
        "lora.enabled": True,
        "lora.r": 4,
        "lora.alpha": 12,
        "lora.dropout": 0.05,
        "lora.target_modules": "all-linear",
    },
    SCHEDULE_OF_MLX: {
        "training.max_steps": 100,  # iterations are batches
        "training.eval_steps": 20,
        "training.logging_steps": 2,
        "training.learning_rate": 2e-5,  # the schedule's
        "training.lr_scheduler_type": "cosine_with_min_lr",
        "training.lr_scheduler_kwargs": {"min_lr": 2e-6},
        "training.warmup_steps": 10,
    },
    PAIRS_OF_AXOLOTL: {  # a column that is not named would be left out
        "data.train": [("d/d", None, {"chosen": "chosen", "messages": "dialog", "rejected": "bad"})],
    },
    LIMITS_OF_TORCHTUNE: {
        "training.output_dir": "/tmp/here/tuned/run",
        "training.max_steps": 300,
        "training.adam_beta2": 0.95,
        "training.adam_epsilon": 1e-6,
        "data.train": [("d/d", None, {"messages": "dialog"})],
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    EXPECTED.items(),
    ids=[
        *("axolotl", "llama-factory", "torchtune", "mlx-lm", "ms-swift", "trl dpo", "trl"),
        *("axolotl-schedule", "pretraining", "v1", "mlx-schedule", "axolotl-pairs", "torchtune-limits"),
    ],
)
def test_the_settings_and_defaults_of_a_tool_are_translated(text: str, expected: dict[str, Any]) -> None:
    name = "theirs.sh" if "--" in text else "theirs.yml"
    Path(name).write_text(text)
    assert init("--from", name) == 0
    config = load(Path("fmstune.toml"), trains=False)
    assert {key: value_of(config, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        (f"{MLX}mask_prompt: true\n", "data.train_on", "responses"),
        (f"{MLX}mask_prompt: false\n", "data.train_on", "all"),
        (MLX.replace("dora", "full"), "lora.enabled", False),
        (SWIFT.replace("--eval_steps 50", "--tuner_type full"), "lora.enabled", False),
        (SWIFT.replace("--eval_steps 50", "--weight_decay 0"), "training.weight_decay", 0),
        (LLAMA_FACTORY.replace("finetuning_type: lora", "finetuning_type: full"), "lora.enabled", False),
    ],
)  # fmt: skip
def test_no_default_replaces_what_a_file_says(text: str, key: str, expected: Any) -> None:
    name = "theirs.sh" if "--" in text else "theirs.yml"
    Path(name).write_text(text)
    assert init("--from", name) == 0
    assert value_of(load(Path("fmstune.toml"), trains=False), key) == expected
