"""The closest known name to one that is not known; nothing where nothing is close."""

from __future__ import annotations

from collections.abc import Iterable

# What the same things are called elsewhere (TRL, transformers, axolotl, LLaMA-Factory, everyday speech).
ALIASES = {
    "lr": "training.learning_rate",
    "epochs": "training.num_train_epochs",
    "num_epochs": "training.num_train_epochs",
    "steps": "training.max_steps",
    "batch_size": "training.per_device_train_batch_size",
    "micro_batch_size": "training.per_device_train_batch_size",
    "train_batch_size": "training.per_device_train_batch_size",
    "eval_batch_size": "training.per_device_eval_batch_size",
    "grad_accum": "training.gradient_accumulation_steps",
    "gradient_accumulation": "training.gradient_accumulation_steps",
    "warmup": "training.warmup_steps",
    "warmup_ratio": "training.warmup_steps",
    "scheduler": "training.lr_scheduler_type",
    "lr_scheduler": "training.lr_scheduler_type",
    "optimizer": "training.optim",
    "max_seq_length": "training.max_length",
    "max_seq_len": "training.max_length",
    "sequence_len": "training.max_length",
    "cutoff_len": "training.max_length",
    "evaluation_strategy": "training.eval_strategy",
    "group_by_length": "training.train_sampling_strategy",
    "sample_packing": "training.packing",
    "output": "training.output_dir",
    "model": "model.path",
    "name": "model.path",
    "base_model": "model.path",
    "model_name": "model.path",
    "model_name_or_path": "model.path",
    "torch_dtype": "model.dtype",
    "dataset": "data.train",
    "datasets": "data.train",
    "train_file": "data.train",
    "dataset_name": "data.train",
    "validation": "data.eval",
    "validation_file": "data.eval",
    "eval_data": "data.eval",
    "val_set_size": "data.eval_fraction",
    "test_size": "data.eval_fraction",
    "use_peft": "lora.enabled",
    "lora_r": "lora.r",
    "lora_rank": "lora.r",
    "rank": "lora.r",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_target_modules": "lora.target_modules",
    "report_to": "tracking.trackers",
    "tracker": "tracking.trackers",
    "strict_tracking": "tracking.strict",
}
_CUTOFF = 0.75


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` most likely means, or `None`.

    Compared are whole names, their last parts (a key right in another table), and `ALIASES`.
    """
    names = list(known)
    last = name.rpartition(".")[2].strip().lower().replace("-", "_")
    meant = ALIASES.get(last)
    by_last = {entry.rpartition(".")[2].lower(): entry for entry in reversed(names)}
    if last in by_last:
        return by_last[last]
    if meant in names:
        return meant
    import difflib  # only when something is wrong

    whole = difflib.get_close_matches(name, names, n=1, cutoff=0.85)
    if whole:
        return whole[0]
    part = difflib.get_close_matches(last, by_last, n=1, cutoff=_CUTOFF)
    if part:
        return by_last[part[0]]
    alias = difflib.get_close_matches(
        last, [a for a, key in ALIASES.items() if key in names], n=1, cutoff=0.85
    )
    return ALIASES[alias[0]] if alias else None


def hint(name: str, known: Iterable[str]) -> str:
    """` Did you mean x?`, or nothing."""
    close = closest(name, known)
    return f" Did you mean {close}?" if close else ""
