"""What can only be checked once the method is known: settings that TRL refuses, late, or uses wrongly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fmstune.config.schema.tables import RunConfig
from fmstune.text import counted

Problem = tuple[str, str]
"""The dotted key that a problem is about, and what is wrong."""


def method_problems(config: RunConfig) -> Iterator[Problem]:
    """What does not fit the method of the run."""
    method = config.run.method
    if method != "sft" and config.data.train_on == "all":
        yield (
            "data.train_on",
            f'data.train_on = "all" is for sft alone; {method} always trains the responses.',
        )
    for key, wanted in (("samples.rows", config.samples.rows), ("samples.prompts", config.samples.prompts)):
        if method == "reward" and wanted:
            yield key, f"{key} are answered by models that write; a reward model writes none: leave it out."
    if method != "sft" and config.training.get("label_smoothing_factor"):
        key = "training.label_smoothing_factor"
        instead = "; use training.label_smoothing with a loss that has it" if method == "dpo" else ""
        yield key, f"{key} is for sft alone: the loss of {method} does not smooth labels so{instead}."
    if method in ("dpo", "reward") and config.training.get("train_sampling_strategy") == "group_by_length":
        key = "training.train_sampling_strategy"
        yield key, f'{key} = "group_by_length" is for sft alone: rows of {method} are pairs. Leave it out.'
    if method == "dpo":
        yield from _dpo(config.training)
    if method == "kto":
        yield from _kto(config.training)
        if config.run.auto_batch and config.training.get("precompute_ref_log_probs"):
            yield (
                "run.auto_batch",
                "run.auto_batch changes the batches that training.precompute_ref_log_probs computes "
                "beforehand: leave out one.",
            )
    if method in ("dpo", "kto"):
        yield from _reference(config)


def _dpo(training: Any) -> Iterator[Problem]:
    losses = training.get("loss_type", ["sigmoid"])
    losses = [losses] if isinstance(losses, str) else losses
    weights = training.get("loss_weights")
    smoothing = training.get("label_smoothing", 0)
    if not losses:
        yield "training.loss_type", "training.loss_type = [] names no loss; leave it out for sigmoid."
    if weights is not None and len(weights) != len(losses):
        yield (
            "training.loss_weights",
            f"training.loss_weights has {counted(len(weights), 'weight')} for "
            f"{counted(len(losses), 'loss', 'losses')} (training.loss_type); give one for each.",
        )
    if "exo_pair" in losses and smoothing == 0:
        yield (
            "training.loss_type",
            'training.loss_type = "exo_pair" needs smoothed labels: set training.label_smoothing = 1e-3.',
        )
    if "robust" in losses and smoothing >= 0.5:
        yield (
            "training.label_smoothing",
            f"training.label_smoothing = {smoothing} is out of range; it is the part of the pairs whose "
            'order is wrong, below 0.5 for the loss "robust".',
        )


def _kto(training: Any) -> Iterator[Problem]:
    if training.get("loss_type", "kto") != "kto":
        return
    instead = 'or set training.loss_type = "apo_zero_unpaired", which needs neither'
    if training.get("per_device_train_batch_size", 8) == 1:
        yield (
            "training.per_device_train_batch_size",
            "training.per_device_train_batch_size = 1 is too small: kto compares each row with the others of "
            f"its batch. Give 2 or more, {instead}.",
        )
    if training.get("train_sampling_strategy", "sequential") != "sequential":
        yield (
            "training.train_sampling_strategy",
            f"training.train_sampling_strategy = {training['train_sampling_strategy']!r} does not fit kto, "
            f"whose batches are made beforehand: leave it out, {instead}. The rows are shuffled once.",
        )


def _reference(config: RunConfig) -> Iterator[Problem]:
    key, training = "training.sync_ref_model", config.training
    if training.get("sync_ref_model") and config.lora.enabled:
        yield key, f"{key} needs a reference model of its own, which an adapter does without: leave out one."
    if training.get("sync_ref_model") and training.get("precompute_ref_log_probs"):
        yield key, f"{key} changes what training.precompute_ref_log_probs computes beforehand: leave out one."


def unweighted_by(training: Mapping[str, Any]) -> str:
    """The setting under which the loss of sft obeys no weights of answers but 0 and 1, "" without one."""
    if training.get("loss_type", "nll") != "nll":  # it weights the tokens itself
        return f"training.loss_type = {training['loss_type']}"
    # TRL sums the smoothed loss over whole batches of logits before it returns it.
    return "training.label_smoothing_factor" if training.get("label_smoothing_factor") else ""
