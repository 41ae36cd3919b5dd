"""Train some of a model's weights, and keep the others as they are (`model.trainable`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fmstune.config.check.suggest import hint
from fmstune.errors import ConfigError
from fmstune.text import shown

KEY = "model.trainable"


def train_only(model: Any, patterns: Sequence[str], at: str = "") -> None:
    """Freeze all weights but those that a pattern names.

    A pattern is a regular expression for a whole name within the path of a weight: `mlp` and `layers.2[0-9]`,
    not `layers.2` for layer 20. The new head of a reward model is always trained, as it starts random. `at`
    is the location of the setting for messages. Raises `ConfigError` for a pattern that names no weight.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]  # a tied head, too
    matched = {name for pattern in patterns for name in named_weights(pattern, names, f"{at}{KEY}")}
    head = getattr(model, "score", None)
    drawn = set() if head is None else {id(weight) for weight in head.parameters()}
    for weight in model.parameters():
        weight.requires_grad_(False)
    for name, weight in model.named_parameters(remove_duplicate=False):
        if name in matched or id(weight) in drawn:
            weight.requires_grad_(True)


def let_gradients_through(model: Any, asked: Any) -> None:
    """With `use_reentrant` in `training.gradient_checkpointing_kwargs`, gradients only reach layers whose
    input has one."""
    if (asked or {}).get("use_reentrant"):
        model.enable_input_require_grads()


def named_weights(pattern: str, names: Sequence[str], setting: str) -> list[str]:
    """The names of weights that a pattern names, as in `train_only`. Raises `ConfigError`, which starts with
    `setting`, if there are none."""
    try:
        re.compile(pattern)  # alone, for the position of an error in it
        whole = re.compile(rf"(?:^|\.)(?:{pattern})(?:\.|$)")
    except re.error as error:
        raise ConfigError(f"{setting}: {shown(pattern)} is not a regular expression: {error}.") from error
    found = [name for name in names if whole.search(name)]
    if not found:
        parts = sorted({part for name in names for part in name.split(".") if not part.isdigit()})
        close = hint(pattern, parts) or f" They are, for example: {names[0]}, {names[-1]}."
        raise ConfigError(f"{setting}: the model has no weights called {shown(pattern)}.{close}")
    return found
