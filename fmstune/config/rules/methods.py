"""What can only be checked once the method is known: settings that TRL refuses, late, or uses wrongly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fmstune.config.methods.known import METHODS, methods_for
from fmstune.config.methods.record import Problem
from fmstune.config.schema.tables import RunConfig


def method_problems(config: RunConfig) -> Iterator[Problem]:
    """What does not fit the method of the run."""
    method, training, others = METHODS[config.run.method], config.training, methods_for("tokens")
    if method.compares and config.data.train_on == "all":
        yield (
            "data.train_on",
            f'data.train_on = "all" is for {others} alone; {method.name} always trains the responses.',
        )
    for key, wanted in (("samples.rows", config.samples.rows), ("samples.prompts", config.samples.prompts)):
        if method.scores and wanted:
            yield key, f"{key} are answered by models that write; a reward model writes none: leave it out."
    if method.compares and training.get("label_smoothing_factor"):
        key = "training.label_smoothing_factor"
        instead = f"; use {method.smooths_by}" if method.smooths_by else ""
        yield (
            key,
            f"{key} is for {others} alone: the loss of {method.name} does not smooth labels so{instead}.",
        )
    pairs = method.form in ("pair", "judged pair")
    if pairs and training.get("train_sampling_strategy") == "group_by_length":
        key = "training.train_sampling_strategy"
        yield (
            key,
            f'{key} = "group_by_length" is for {others} alone: rows of {method.name} are pairs. '
            "Leave it out.",
        )
    yield from method.problems(training)
    if method.in_order and config.run.auto_batch and training.get("precompute_ref_log_probs"):
        yield (
            "run.auto_batch",
            "run.auto_batch changes the batches that training.precompute_ref_log_probs computes "
            "in advance: leave out one.",
        )
    if method.reference:
        yield from _reference(config)


def _reference(config: RunConfig) -> Iterator[Problem]:
    key, training = "training.sync_ref_model", config.training
    if training.get("sync_ref_model") and config.lora.enabled:
        yield key, f"{key} needs a reference model of its own, which an adapter does without: leave out one."
    if training.get("sync_ref_model") and training.get("precompute_ref_log_probs"):
        yield key, f"{key} changes what training.precompute_ref_log_probs computes in advance: leave out one."


def unweighted_by(training: Mapping[str, Any]) -> str:
    """The setting under which the loss of sft obeys no weights of answers but 0 and 1, "" without one."""
    if training.get("loss_type", "nll") != "nll":  # it weights the tokens itself
        return f"training.loss_type = {training['loss_type']}"
    # TRL sums the smoothed loss over whole batches of logits before it returns it.
    return "training.label_smoothing_factor" if training.get("label_smoothing_factor") else ""


def divided_by(training: Mapping[str, Any]) -> tuple[str, str]:
    """The setting under which rows of more than `max_length` tokens are divided, not cut: that of rows to
    train on, and that of rows to evaluate on; "" where they are cut."""
    strategy = training.get("packing_strategy", "bfd")
    if not training.get("packing") or strategy == "bfd":
        return "", ""
    setting = f"training.packing_strategy = {strategy}"
    return setting, "" if training.get("eval_packing") is False else setting
