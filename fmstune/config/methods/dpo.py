"""dpo: prefer the better of two answers (Rafailov et al. 2023, https://huggingface.co/papers/2305.18290)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fmstune.config.methods.record import REWARDS, REWARDS_RESULTS, Method, Problem
from fmstune.text import counted, listed

_SMOOTHED = {"aot", "aot_unpaired", "exo_pair", "robust"}
"""Losses with label smoothing."""


_UNWEIGHTED = {
    "hinge": "as TRL overwrites what its gradient is computed from",
    "sft": "which is a mean over tokens, not over pairs",
}
"""Losses for which TRL fails to weight pairs, in the first step; it refuses those that sort."""


def _problems(training: Mapping[str, Any]) -> Iterator[Problem]:
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
            f"{counted(len(losses), 'loss', 'losses')} (training.loss_type); set one for each.",
        )
    if "exo_pair" in losses and smoothing == 0:
        yield (
            "training.loss_type",
            'training.loss_type = "exo_pair" needs label smoothing: set training.label_smoothing = 1e-3.',
        )
    for name in (each for each in _UNWEIGHTED if each in losses and training.get("use_weighting")):
        yield (
            "training.use_weighting",
            f'training.use_weighting does not work with the loss "{name}", {_UNWEIGHTED[name]}: leave one of '
            "them out.",
        )
    if "robust" in losses and smoothing >= 0.5:
        yield (
            "training.label_smoothing",
            f"training.label_smoothing = {smoothing} is out of range; it is the share of pairs in the wrong "
            'order, and must be below 0.5 for the loss "robust".',
        )


def _unused(training: Mapping[str, Any]) -> Iterator[Problem]:
    losses = training.get("loss_type", "sigmoid")
    losses = [losses] if isinstance(losses, str) else losses
    named = listed(losses)
    if "discopop" not in losses:
        yield "discopop_tau", f"the loss is {named}"
    if not _SMOOTHED & set(losses):
        yield "label_smoothing", f"the loss is {named}"
    if training.get("f_divergence_type", "reverse_kl") != "alpha_divergence":
        yield "f_alpha_divergence_coef", 'training.f_divergence_type is not "alpha_divergence"'


DPO = Method(
    name="dpo",
    learns="preferences",
    form="pair",
    config=("trl", "trainer/dpo_config.py", "DPOConfig"),
    lora_learning_rate=1e-5,  # of 1e-6
    demo_learning_rate=1e-3,
    reference=True,
    smooths_by="training.label_smoothing with a loss that has it",
    shown=REWARDS,
    results=REWARDS_RESULTS,
    problems=_problems,
    unused=_unused,
)
