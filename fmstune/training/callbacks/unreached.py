"""Report weights that are to be trained, and that the training does not reach.

A model for texts and images does not use its tower for images on texts, and some models read the weights of a
layer past its adapter (Mamba its `dt_proj`): the optimizer has them, and nothing is learnt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fmstune.errors import ConfigError

_SHOWN = 3
_SMALL = 0.001
"""A smaller share is none that a gradient is meant for, as are biases that balance experts."""


class Unreached(TrainerCallback):
    """Calls `warn` if trained weights have no gradient in the first update, unless others of their kind in
    other layers, or other experts, have one."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn: Callable[[str], None] | None = warn

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        if self._warn is not None and (message := unreached(model.named_parameters())):
            self._warn(message)
        self._warn = None


def require_reached(loss: torch.Tensor, model: Any) -> None:
    """Raise `ConfigError` for the loss of a batch that depends on none of the trained weights: torch would
    fail, without naming them."""
    if loss.requires_grad:
        return
    kinds = sorted({_kind(name) for name, weight in model.named_parameters() if weight.requires_grad})
    raise ConfigError(
        f"the model computes without the weights to train, or past their adapter: {_listed(kinds)}. Choose "
        "others, or more, with lora.target_modules or model.trainable."
    )


def unreached(weights: Iterable[tuple[str, torch.nn.Parameter]]) -> str | None:
    """A message about the trained weights without a gradient; `None` if there are none."""
    trained = [(_kind(name), weight) for name, weight in weights if weight.requires_grad]
    reached = {kind for kind, weight in trained if weight.grad is not None}
    left = [(kind, weight.numel()) for kind, weight in trained if kind not in reached]
    if not left or not reached:
        return None
    share = sum(size for _, size in left) / sum(weight.numel() for _, weight in trained)
    if share < _SMALL:
        return None
    kinds = sorted({kind for kind, _ in left})
    return (
        f"{100 * share:.2g}% of the weights to train got no gradient in the first update, and learn nothing "
        f"from this data: {_listed(kinds)}. The model computes without them, or past their "
        "adapter"
    )


def _listed(kinds: Sequence[str]) -> str:
    more = f" and {len(kinds) - _SHOWN} more" if len(kinds) > _SHOWN else ""
    return ", ".join(kinds[:_SHOWN]) + more


def _kind(name: str) -> str:
    """The module and parameter of a weight without the numbers of layers and experts, or of its adapter."""
    module = re.sub(r"\.lora_.*", "", name.removeprefix("module.").removeprefix("base_model.model."))
    return re.sub(r"\.\d+(?=\.)", "", module)
