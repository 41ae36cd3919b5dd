"""Checks that depend on the method: settings that TRL rejects late, or uses wrongly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fmstune.config.methods.known import METHODS, methods_for
from fmstune.config.methods.record import Problem
from fmstune.config.paths.models import ADAPTER_CONFIG
from fmstune.config.schema.tables import RunConfig


def method_problems(config: RunConfig) -> Iterator[Problem]:
    """Settings that do not fit the run's method."""
    method, training, others = METHODS[config.run.method], config.training, methods_for("tokens")
    if method.compares and config.data.train_on == "all":
        yield (
            "data.train_on",
            f'data.train_on = "all" is only for {others}; {method.name} always trains {method.trains}.',
        )
    for key, wanted in (("samples.rows", config.samples.rows), ("samples.prompts", config.samples.prompts)):
        if method.scores and wanted:
            yield key, f"{key} need a model that generates text, and a reward model does not: leave it out."
    if method.compares and training.get("label_smoothing_factor"):
        key = "training.label_smoothing_factor"
        instead = f"; use {method.smooths_by}" if method.smooths_by else ""
        yield (
            key,
            f"{key} is only for {others}: the loss of {method.name} ignores it{instead}.",
        )
    strategy = training.get("train_sampling_strategy")
    if method.compares and strategy in ("group_by_length", "batch_rebalance"):
        key = "training.train_sampling_strategy"
        yield (
            key,
            f'{key} = "{strategy}" is only for {others}: rows of {method.name} have no single length. '
            "Leave it out.",
        )
    yield from method.problems(training)
    if method.in_order and config.run.auto_batch and training.get("precompute_ref_log_probs"):
        yield (
            "run.auto_batch",
            "run.auto_batch changes the batches that training.precompute_ref_log_probs computes "
            "in advance: leave one of them out.",
        )
    if method.reference:
        yield from _reference(config)


def _reference(config: RunConfig) -> Iterator[Problem]:
    key, training = "training.sync_ref_model", config.training
    if training.get("sync_ref_model") and config.lora.enabled:
        yield (
            key,
            f"{key} needs a separate reference model, which an adapter run does not have: leave one out.",
        )
    if training.get("sync_ref_model") and training.get("precompute_ref_log_probs"):
        yield key, f"{key} changes what training.precompute_ref_log_probs computes in advance: leave one out."
    yield from _moved_by_biases(config)


def _moved_by_biases(config: RunConfig) -> Iterator[Problem]:
    """Biases that an adapter trains stay on when it is turned off for the reference."""
    bias = config.lora.bias
    if not config.lora.enabled or bias == "none":
        return
    why = f'lora.bias = "{bias}" trains biases of the model itself, and the reference needs them as they were'
    if config.origins.get("lora.bias", "").endswith(ADAPTER_CONFIG):
        yield "lora.bias", f"{why}: merge the adapter with fmstune merge, and train a new one."
    elif not config.training.get("precompute_ref_log_probs"):
        yield "lora.bias", f"{why}: leave it out, or set training.precompute_ref_log_probs = true."


def unweighted_by(training: Mapping[str, Any]) -> str:
    """The setting that limits weights of answers in the loss of sft to 0 and 1; "" if there is none."""
    if training.get("loss_type", "nll") != "nll":  # it has its own weights for tokens
        return f"training.loss_type = {training['loss_type']}"
    # TRL sums the smoothed loss over the whole batch before it returns it.
    return "training.label_smoothing_factor" if training.get("label_smoothing_factor") else ""


def divided_by(training: Mapping[str, Any]) -> tuple[str, str]:
    """The settings by which training and evaluation rows longer than `max_length` tokens are split rather
    than truncated; "" if they are truncated."""
    strategy = training.get("packing_strategy", "bfd")
    if not training.get("packing") or strategy == "bfd":
        return "", ""
    setting = f"training.packing_strategy = {strategy}"
    return setting, "" if training.get("eval_packing") is False else setting
