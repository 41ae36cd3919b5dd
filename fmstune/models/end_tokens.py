"""Store the tokens that end an answer where users of the model need them: in its generation settings.

A base model that learnt a chat template would still only end a text at the tokenizer's end of text, and plain
`transformers` would continue past the mark that each of its answers was trained to end with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from fmstune.data.rendering.answer import Writer
from fmstune.data.summary import learns_chats


def learnt_ends(shape: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The tokens that end answers in rows of this shape, as named in a data summary."""
    return Writer(tokenizer).ends() if learns_chats(shape) and tokenizer.chat_template else ()


def stop_at(model: Any, tokenizer: PreTrainedTokenizerBase, ends: tuple[str, ...]) -> None:
    """Make the model's generation settings stop at these tokens too, and set the tokenizer's end of text if
    they have none."""
    if ends and tokenizer.eos_token is None:
        tokenizer.eos_token = ends[0]
    settings = getattr(model, "generation_config", None)
    if settings is None or not ends:
        return
    own = settings.eos_token_id
    known = list(own) if isinstance(own, (list, tuple)) else [] if own is None else [own]
    found = [token for end in ends if isinstance(token := tokenizer.convert_tokens_to_ids(end), int)]
    stops = list(dict.fromkeys([*known, *found]))
    settings.eos_token_id = stops if len(stops) > 1 else stops[0]


class _AsPublished(GenerationConfig):
    """Settings that transformers refuses to save after any change, as it calls them inconsistent: a
    temperature without sampling, for example. Many published models have them, and other programs heed them,
    so that they are neither changed nor left out."""

    def validate(self, strict: bool = False, **how: Any) -> None:
        super().validate(strict=False, **how)


def keep_as_published(model: Any) -> None:
    """Let the model's generation settings be saved, with the tokens that it learns to stop at."""
    settings = getattr(model, "generation_config", None)
    if settings is None:
        return
    try:
        settings.validate(strict=True)
    except ValueError:
        settings.__class__ = _AsPublished


def save_settings(model: Any, folder: Path) -> None:
    """Write the generation settings next to an adapter, whose files have none; merging reads them."""
    settings = getattr(model, "generation_config", None)
    if settings is not None:
        settings.save_pretrained(folder)


def saved_settings(folder: Path) -> GenerationConfig | None:
    """The generation settings next to an adapter."""
    if not (folder / "generation_config.json").exists():
        return None
    settings: GenerationConfig = GenerationConfig.from_pretrained(folder)
    return settings
