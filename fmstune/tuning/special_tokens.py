"""The tokens that settings name have to be in the vocabulary; TRL tells that after the model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fmstune.config.errors import ConfigError, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fmstune.config.schema import RunConfig


def require_tokens(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises `ConfigError` when `training.eos_token` or `training.pad_token` is no token of the model."""
    vocabulary = tokenizer.get_vocab()
    for name in ("eos_token", "pad_token"):
        token = config.training.get(name)
        if token is not None and token not in vocabulary:
            key = f"training.{name}"
            raise ConfigError(
                f"{config.at(key)}{key} = {shown(token)} is not in the model's vocabulary; leave it out for "
                "the model's own."
            )
