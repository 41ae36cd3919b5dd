"""The fields of `[training]` that fmstune sets differently from TRL, renames, bounds, or manages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TRAINING_DEFAULTS: dict[str, Any] = {
    # TRL's True costs a fifth of the speed; it can be turned on if memory runs out.
    "activation_checkpointing": False,
    # A checkpoint per epoch; two of them allow falling back from a damaged one.
    "save_strategy": "epoch",
    "save_total_limit": 2,
    # A NaN loss should be visible, not replaced by the average of the others.
    "logging_nan_inf_filter": False,
    # fmstune shows progress itself.
    "disable_tqdm": True,
}

RENAMED_TRAINING: dict[str, str] = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
"""Older names of fields: transformers accepts them with a warning, but the newer ones take precedence."""

OWNED_TRAINING: dict[str, str] = {
    "report_to": "choose trackers with --tracker or [tracking] trackers",
    "resume_from_checkpoint": "use --resume",
    "dataset_kwargs": "fmstune prepares the data itself",
    "dataset_num_proc": "fmstune prepares the data itself, and caches it for later runs (data.cache)",
    "dataset_text_field": 'name the text column with data.columns = {text = "…"}',
    "length_column_name": "fmstune knows the lengths of its rows",
    "model_init_kwargs": "use the table [model]",
    "chat_template_path": "use model.chat_template",
    "trust_remote_code": "use model.trust_remote_code",
    "assistant_only_loss": 'use data.train_on, "responses" (the default) or "all"',
    "completion_only_loss": 'use data.train_on, "responses" (the default) or "all"',
    "bf16_full_eval": "evaluations use the precision of the training; use training.bf16",
    "fp16_full_eval": "evaluations use the precision of the training; use training.fp16",
    "enable_jit_checkpoint": "SIGTERM and SIGINT always save a checkpoint",
    "project": "use the trackers' options, such as trackers.wandb.project",
    "trackio_space_id": "choose trackers with --tracker or [tracking] trackers",
    "trackio_bucket_id": "choose trackers with --tracker or [tracking] trackers",
    "trackio_static_space_id": "choose trackers with --tracker or [tracking] trackers",
    "local_rank": "torchrun sets it",
    "do_train": "`fmstune train` always trains",
    "do_eval": "add evaluation data, and choose when with training.eval_strategy",
    "do_predict": "`fmstune train` only trains and evaluates",
    "generate_during_eval": "use samples.rows and samples.prompts",
    "is_encoder_decoder": "it only trains decoders",
    "max_completion_length": "it is for encoder-decoders; use training.max_length",
    "padding_value": "it is the tokenizer's pad_token",
    "parallelism_config": "it is a Python object, which TOML cannot express; use training.fsdp_config",
}
"""Fields of TRL's classes that fmstune manages, and what to use instead."""

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
    # A token is predicted from the preceding ones, so a single one teaches nothing.
    "max_length": {"min": 2},
    # For the methods that learn from preferences.
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
    # The range of NumPy's generator.
    "seed": {"min": 0, "max": 2**32 - 1},
    "data_seed": {"min": 0, "max": 2**32 - 1},
}
"""Bounds for fields of TRL's classes, which TRL checks late or never; as in the metadata of our own
fields."""
