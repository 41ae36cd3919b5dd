"""The tokens that settings name: special ones, and new ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fmstune.errors import ConfigError
from fmstune.text import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fmstune.config.schema.tables import RunConfig


def use_tokens(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Add the tokens of `model.add_tokens` that the tokenizer lacks, and return their ids. Set its
    `training.eos_token` before the data are prepared, so that texts are learnt to end as the saved model
    will: TRL sets it too, but for rows that are already tokenised.

    Raises `ConfigError` when it, or `training.pad_token`, is not a token of the model, and for tokens without
    a character.
    """
    added = _added(config, tokenizer)
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
    return added


def _added(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    known = tokenizer.get_vocab()
    new = [token for token in dict.fromkeys(config.model.add_tokens) if token not in known]
    if any(not token.strip() for token in new):
        raise ConfigError(
            f"{config.at('model.add_tokens')}model.add_tokens has an empty token; leave it out."
        )
    if new:
        from transformers import AddedToken

        # As they are written: a normalizer might change them, and then not find them.
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in new])
    return tuple(int(tokenizer.convert_tokens_to_ids(token)) for token in new)
