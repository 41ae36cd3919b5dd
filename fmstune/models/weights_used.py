"""What a model makes of the weights in its files, beyond what transformers reports to its log."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fmstune.text import counted
from fmstune.transformers_compat import tied_weights


def unused_weights(unexpected: Collection[str], path: str) -> str | None:
    """A message about weights that the model has no place for, as when config.json has fewer layers; `None`
    if there are none. They are dropped, also from the tuned model."""
    if not unexpected:
        return None
    return (
        f"{counted(len(unexpected), 'tensor')} in the weights of {path!r} are not part of the model that its "
        f"config.json describes, {min(unexpected)} for one; they are neither used nor saved"
    )


def record_untied(model: Any) -> None:
    """Record in the configuration that the head does not share the weights of the embeddings, if it says so.

    transformers leaves weights that differ untied and saves both, but keeps the flag, by which other readers
    of the saved model (vLLM, llama.cpp) drop the head.
    """
    if tied_weights(model) != 1:
        return  # the flag is for other weights, too
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight.data_ptr() == embeddings.weight.data_ptr():
        return
    for settings in (model.config, model.config.get_text_config()):
        if getattr(settings, "tie_word_embeddings", False):
            settings.tie_word_embeddings = False
