"""Suggest the known name closest to an unknown one, if any is close."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from fmstune.text import shown_path

# Names of the same settings elsewhere (TRL, transformers, axolotl, LLaMA-Factory, torchtune, mlx-lm, Unsloth,
# ms-swift, everyday speech). What is not just another name is in `elsewhere`.
ALIASES = {
    "lr": "training.learning_rate",
    "epochs": "training.num_train_epochs",
    "num_epochs": "training.num_train_epochs",
    "steps": "training.max_steps",
    "batch_size": "training.per_device_train_batch_size",
    "micro_batch_size": "training.per_device_train_batch_size",
    "train_batch_size": "training.per_device_train_batch_size",
    "per_device_batch_size": "training.per_device_train_batch_size",
    "eval_batch_size": "training.per_device_eval_batch_size",
    "grad_accum": "training.gradient_accumulation_steps",
    "gradient_accumulation": "training.gradient_accumulation_steps",
    "warmup": "training.warmup_steps",
    "warmup_ratio": "training.warmup_steps",
    "scheduler": "training.lr_scheduler_type",
    "lr_scheduler": "training.lr_scheduler_type",
    "weight_decay_rate": "training.weight_decay",
    "gradient_clipping": "training.max_grad_norm",
    "clip_grad_norm": "training.max_grad_norm",
    "num_workers": "training.dataloader_num_workers",
    "random_seed": "training.seed",
    "random_state": "training.seed",
    "optimizer": "training.optim",
    "max_seq_length": "training.max_length",
    "max_seq_len": "training.max_length",
    "sequence_len": "training.max_length",
    "cutoff_len": "training.max_length",
    "model_max_length": "training.max_length",
    "stage": "run.method",
    "rl": "run.method",
    "rlhf_type": "run.method",
    "pref_beta": "training.beta",
    "dpo_beta": "training.beta",
    "kto_beta": "training.beta",
    "rl_beta": "training.beta",
    "pref_loss": "training.loss_type",
    "evaluation_strategy": "training.eval_strategy",
    "group_by_length": "training.train_sampling_strategy",
    "sample_packing": "training.packing",
    "noisy_embedding_alpha": "training.neftune_noise_alpha",
    "enable_liger_kernel": "training.use_liger_kernel",
    "deterministic": "training.full_determinism",
    "early_stop_interval": "run.early_stopping_patience",
    "use_wandb": "tracking.trackers",
    "output": "training.output_dir",
    "output_directory": "training.output_dir",
    "model": "model.path",
    "model_path": "model.path",
    "name": "model.path",
    "base_model": "model.path",
    "model_name": "model.path",
    "model_name_or_path": "model.path",
    "model.name": "model.path",
    "unfrozen_parameters": "model.trainable",
    "trainable_parameters": "model.trainable",
    "trainable_parameters_regex": "model.trainable",
    "freeze_parameters": "model.trainable",
    "freeze_trainable_layers": "model.trainable",
    "freeze_trainable_modules": "model.trainable",
    "attn_impl": "model.attn_implementation",
    "flash_attn": "model.attn_implementation",
    "flash_attention": "model.attn_implementation",
    "torch_dtype": "model.dtype",
    "precision": "model.dtype",
    "data": "data.train",
    "dataset": "data.train",
    "datasets": "data.train",
    "train_file": "data.train",
    "train_data": "data.train",
    "dataset_path": "data.train",
    "dataset_name": "data.train",
    "data.path": "data.train",
    "data.name": "data.train",
    "train_dataset": "data.train",
    "train_on_inputs": "data.train_on",
    "train_on_prompt": "data.train_on",
    "train_on_input": "data.train_on",
    "roles_to_train": "data.train_on",
    "train_on_responses_only": "data.train_on",
    "mask_history": "data.history",
    "validation": "data.eval",
    "validation_file": "data.eval",
    "eval_data": "data.eval",
    "val_dataset": "data.eval",
    "validation_dataset": "data.eval",
    "test_file": "data.eval",
    "max_eval_samples": "data.eval",
    "eval_on_each_dataset": "data.eval",
    "val_set_size": "data.eval_fraction",
    "test_size": "data.eval_fraction",
    "test_split_size": "data.eval_fraction",
    "eval_size": "data.eval_fraction",
    "split_dataset_ratio": "data.eval_fraction",
    "validation_split": "data.eval_fraction",
    "max_samples": "data.max_rows",
    "max_train_samples": "data.max_rows",
    "buffer_size": "data.shuffle_buffer",
    "preprocess": "data.handler",
    "preprocess_function": "data.handler",
    "column_mapping": "data.columns",
    "prompt_template": "data.template",
    "formatting_func": "data.template",
    "use_peft": "lora.enabled",
    "adapter": "lora.enabled",
    "lora_r": "lora.r",
    "lora_rank": "lora.r",
    "rank": "lora.r",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_bias": "lora.bias",
    "lora_target_modules": "lora.target_modules",
    "lora_target": "lora.target_modules",
    "lora_target_parameters": "lora.target_parameters",
    "lora_target_linear": "lora.target_modules",
    "lora_modules_to_save": "lora.modules_to_save",
    "use_rslora": "lora.rslora",
    "use_dora": "lora.dora",
    "peft_use_dora": "lora.dora",
    "use_rank_stabilized_lora": "lora.rslora",
    "load_in_4bit": "model.quantization",
    "load_in_8bit": "model.quantization",
    "quantization_bit": "model.quantization",
    "quant_bits": "model.quantization",
    "num_virtual_tokens": "prompt_tuning.tokens",
    "prompt_tuning_init_text": "prompt_tuning.text",
    "report_to": "tracking.trackers",
    "tracker": "tracking.trackers",
    "strict_tracking": "tracking.strict",
    "iters": "training.max_steps",
    "max_steps_per_epoch": "training.max_steps",
    "total_steps": "training.max_steps",
    "train_steps": "training.max_steps",
    "steps_per_report": "training.logging_steps",
    "log_every_n_steps": "training.logging_steps",
    "steps_per_eval": "training.eval_steps",
    "run_val_every_n_steps": "training.eval_steps",
    "save_every": "training.save_steps",
    "steps_per_save": "training.save_steps",
    "save_every_n_steps": "training.save_steps",
    "keep_last_n_checkpoints": "training.save_total_limit",
    "batch_size_val": "training.per_device_eval_batch_size",
    "lr_warmup_steps": "training.warmup_steps",
    "num_warmup_steps": "training.warmup_steps",
    "adam_eps": "training.adam_epsilon",
    "neftune_alpha": "training.neftune_noise_alpha",
    "neft_alpha": "training.neftune_noise_alpha",
    "eval_sample_packing": "training.eval_packing",
    "max_prompt_length": "training.max_length",
    "max_prompt_len": "training.max_length",
    "compile": "training.torch_compile",
    "shuffle": "training.train_sampling_strategy",
    "disable_shuffling": "training.train_sampling_strategy",
    "curriculum_sampling": "training.train_sampling_strategy",
    "grad_checkpoint": "training.activation_checkpointing",
    "use_gradient_checkpointing": "training.activation_checkpointing",
    "enable_gradient_checkpointing": "training.activation_checkpointing",
    "kto_desirable_weight": "training.desirable_weight",
    "kto_chosen_weight": "training.desirable_weight",
    "kto_undesirable_weight": "training.undesirable_weight",
    "kto_rejected_weight": "training.undesirable_weight",
    "dpo_label_smoothing": "training.label_smoothing",
    "dpo_loss_type": "training.loss_type",
    "orpo_alpha": "training.beta",
    "early_stopping_steps": "run.early_stopping_patience",
    "checkpoint_dir": "model.path",
    "revision_of_model": "model.revision",
    "xformers_attention": "model.attn_implementation",
    "sdp_attention": "model.attn_implementation",
    "eager_attention": "model.attn_implementation",
    "flex_attention": "model.attn_implementation",
    "use_flash_attention_2": "model.attn_implementation",
    "quantize_base": "model.quantization",
    "pretraining_dataset": "data.train",
    "source": "data.train",
    "test_datasets": "data.eval",
    "dataset_val": "data.eval",
    "fine_tune_type": "lora.enabled",
    "additional_target": "lora.modules_to_save",
    "peft_use_rslora": "lora.rslora",
    "eval_max_new_tokens": "samples.max_new_tokens",
}
_CLOSE = 0.8
_VERY_CLOSE = 0.85
# Measured on 38 typos and 40 unrelated names: at 0.6, `sweep` gave seed, and `quantization` gave validation.
# Typos rarely affect the first letter, so a name with a different one must be closer.


def closest(name: str, known: Iterable[str], aliases: Mapping[str, str] = ALIASES) -> str | None:
    """The known name that `name` most likely means, or `None`.

    Compares the last parts of dotted keys, so that a correct key in the wrong table is found, and the names
    of the same settings elsewhere (`aliases`: other name → dotted key).
    """
    names = list(known)
    last = _plain(name.rpartition(".")[2])
    means = {_plain(alias): key for alias, key in aliases.items() if key in names}
    means |= {_plain(entry.rpartition(".")[2]): entry for entry in reversed(names)}
    means |= {_plain(entry): entry for entry in names}
    for asked in (_plain(name), last):
        if asked in means:
            return means[asked]
    import difflib  # only for errors

    for candidate in difflib.get_close_matches(last, means, n=3, cutoff=_CLOSE):
        ratio = difflib.SequenceMatcher(None, candidate, last).ratio()
        if candidate[0] == last[0] or ratio >= _VERY_CLOSE:
            return means[candidate]
    return None


def hint(name: str, known: Iterable[str]) -> str:
    """` Did you mean x?`, or an empty string."""
    close = closest(name, known)
    return f" Did you mean {close}?" if close else ""


def _plain(name: str) -> str:
    return name.strip().strip("\"'").lower().replace("-", "_")


def similar_file(path: Path, base: Path | None = None) -> str:
    """` Did you mean x?`, for a path (relative to `base`) that does not exist; or a note that its directory
    does not exist either; or an empty string."""
    import difflib  # only for errors

    try:
        names = [
            entry.name for entry in ((base or Path()) / path.parent).iterdir() if entry.name != path.name
        ]
    except (OSError, ValueError):
        parent = f" Its directory {shown_path(path.parent)} does not exist, either."
        return parent if path.parent != Path() else ""
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    return f" Did you mean {shown_path(path.parent / close[0])}?" if close else ""
