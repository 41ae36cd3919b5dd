"""The tokens that settings name: special ones, and new ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fmstune.errors import ConfigError
from fmstune.models.configured_template import set_template
from fmstune.text import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fmstune.config.schema.tables import RunConfig

_NAMED = 3


@dataclass(frozen=True, slots=True)
class Added:
    """The ids of the tokens that a run has added, and a message about those that the tokenizer had."""

    ids: tuple[int, ...] = ()
    note: str | None = None


def use_tokens(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> Added:
    """Add the tokens of `model.add_tokens` that the tokenizer lacks. Set its
    `training.eos_token` before the data are prepared, so that texts are learnt to end as the saved model
    will: TRL sets it too, but for rows that are already tokenised.

    Raises `ConfigError` when it, or `training.pad_token`, is not a token of the model, and for tokens that
    have no character, or the name of another token.
    """
    added = _added(config, tokenizer)
    if added.ids and config.model.chat_template is not None:
        set_template(config.model, tokenizer)  # one by name ends answers with its own token, if there is one
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


def _added(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> Added:
    where = f"{config.at('model.add_tokens')}model.add_tokens"
    given, known = list(dict.fromkeys(config.model.add_tokens)), tokenizer.get_vocab()
    if any(not token.strip() for token in given):
        raise ConfigError(f"{where} has an empty token; leave it out.")
    there = [token for token in given if token in known]
    for token in there:
        if known[token] not in tokenizer(token, add_special_tokens=False)["input_ids"]:
            raise ConfigError(
                f"{where}: {shown(token)} is the name of another token in the model's vocabulary, which "
                "stands for a byte or a part of words; leave it out."
            )
    if new := [token for token in given if token not in known]:
        from transformers import AddedToken

        # As they are written: a normalizer might change them, and then not find them.
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in new])
    ids = tuple(int(tokenizer.convert_tokens_to_ids(token)) for token in new)
    listed = ", ".join(map(shown, there[:_NAMED])) + (", …" if len(there) > _NAMED else "")
    return Added(ids, f"model.add_tokens: the tokenizer has {listed} already" if there else None)
