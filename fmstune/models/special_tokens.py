"""The special tokens that settings name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fmstune.errors import ConfigError
from fmstune.text import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fmstune.config.schema.tables import RunConfig


def use_tokens(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the tokenizer's `training.eos_token` before the data are prepared, so that texts are learnt to
    end as the saved model will: TRL sets it too, but for rows that are already tokenised.

    Raises `ConfigError` when it, or `training.pad_token`, is not a token of the model.
    """
    vocabulary = tokenizer.get_vocab()
    for name in ("eos_token", "pad_token"):
        token = config.training.get(name)
        if token is not None and token not in vocabulary:
            key = f"training.{name}"
            raise ConfigError(
                f"{config.at(key)}{key} = {shown(token)} is not in the model's vocabulary; leave it out for "
                "the model's own."
            )
    if config.training.get("eos_token") is not None:
        tokenizer.eos_token = config.training["eos_token"]
