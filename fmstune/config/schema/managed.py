"""The fields of `[training]` that fmstune sets differently from TRL, renames, bounds, or decides itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TRAINING_DEFAULTS: dict[str, Any] = {
    # TRL's True saves memory for a fifth of the speed; whoever runs out of memory turns it on.
    "activation_checkpointing": False,
    # A checkpoint an epoch; two of them are enough to go back from a damaged one.
    "save_strategy": "epoch",
    "save_total_limit": 2,
    # A loss that is NaN should be seen, not replaced by the average of the others.
    "logging_nan_inf_filter": False,
    # fmstune shows the progress itself.
    "disable_tqdm": True,
}

RENAMED_TRAINING: dict[str, str] = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
"""Older names of fields, which transformers takes with a warning, and lets the newer ones win over."""

OWNED_TRAINING: dict[str, str] = {
    "report_to": "choose trackers with --tracker or [tracking] trackers",
    "resume_from_checkpoint": "use --resume",
    "dataset_kwargs": "fmstune prepares the data itself",
    "dataset_num_proc": "fmstune prepares the data itself, and keeps them for later runs (data.cache)",
    "dataset_text_field": 'name the column of the text with data.columns = {text = "…"}',
    "length_column_name": "fmstune knows the lengths of its rows",
    "model_init_kwargs": "use the table [model]",
    "chat_template_path": "use model.chat_template",
    "trust_remote_code": "use model.trust_remote_code",
    "assistant_only_loss": 'use data.train_on = "responses"',
    "completion_only_loss": 'use data.train_on = "responses"',
    "bf16_full_eval": "evaluations are part of the training, in its precision; use training.bf16",
    "fp16_full_eval": "evaluations are part of the training, in its precision; use training.fp16",
    "enable_jit_checkpoint": "SIGTERM and SIGINT save a checkpoint in any case",
    "project": "trackers have options of their own, such as trackers.wandb.project",
    "trackio_space_id": "choose trackers with --tracker or [tracking] trackers",
    "trackio_bucket_id": "choose trackers with --tracker or [tracking] trackers",
    "trackio_static_space_id": "choose trackers with --tracker or [tracking] trackers",
    "local_rank": "torchrun sets it",
    "do_train": "`fmstune train` always trains",
    "do_eval": "give evaluation data, and choose when with training.eval_strategy",
    "do_predict": "`fmstune train` only trains and evaluates",
    "generate_during_eval": "use samples.rows and samples.prompts",
    "is_encoder_decoder": "the models that it trains are decoders",
    "max_completion_length": "it is for encoder-decoders; use training.max_length",
    "padding_value": "it is the tokenizer's pad_token",
    "parallelism_config": "it is an object of Python, which no TOML can hold; use training.fsdp_config",
}
"""Fields of TRL's classes that fmstune decides, and what to use instead."""

_POSITIVE = {"above": 0}
_COUNT = {"min": 1}
_NOT_NEGATIVE = {"min": 0}

TRAINING_BOUNDS: dict[str, Mapping[str, float]] = {
    "learning_rate": _POSITIVE,
    "num_train_epochs": _POSITIVE,
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "eval_accumulation_steps": _COUNT,
    "torch_empty_cache_steps": _COUNT,
    "ddp_timeout": _COUNT,
    "ddp_bucket_cap_mb": _COUNT,
    "dataloader_prefetch_factor": _COUNT,
    "pad_to_multiple_of": _COUNT,
    "logging_steps": _POSITIVE,
    "eval_steps": _POSITIVE,
    "save_steps": _POSITIVE,
    "eval_delay": _NOT_NEGATIVE,
    "warmup_steps": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "max_grad_norm": _NOT_NEGATIVE,
    "neftune_noise_alpha": _NOT_NEGATIVE,
    "adam_epsilon": _NOT_NEGATIVE,
    "dataloader_num_workers": _NOT_NEGATIVE,
    "router_aux_loss_coef": _NOT_NEGATIVE,
    "adam_beta1": {"min": 0, "below": 1},
    "adam_beta2": {"min": 0, "below": 1},
    "label_smoothing_factor": {"min": 0, "below": 1},
    # A token is predicted from those before it, so that one alone teaches nothing.
    "max_length": {"min": 2},
    # Of the methods that learn from preferences.
    "beta": _POSITIVE,
    "label_smoothing": {"min": 0, "below": 1},
    "ld_alpha": {"min": 0, "max": 1},
    "discopop_tau": _POSITIVE,
    "desirable_weight": _NOT_NEGATIVE,
    "undesirable_weight": _NOT_NEGATIVE,
    "center_rewards_coefficient": _NOT_NEGATIVE,
    "ref_model_mixup_alpha": {"min": 0, "max": 1},
    "ref_model_sync_steps": _COUNT,
    "precompute_ref_batch_size": _COUNT,
    # What NumPy's generator takes.
    "seed": {"min": 0, "max": 2**32 - 1},
    "data_seed": {"min": 0, "max": 2**32 - 1},
}
"""Bounds of fields of TRL's classes, which TRL checks late or never; as in the metadata of our own fields."""
