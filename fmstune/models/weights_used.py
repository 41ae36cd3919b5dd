"""What a model makes of the weights in its files, beyond what transformers reports to its log."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fmstune.config.schema.tables import ModelConfig
from fmstune.errors import ModelError
from fmstune.models.load_errors import description
from fmstune.text import counted
from fmstune.transformers_compat import tied_weights


def unused_weights(unexpected: Collection[str], path: str) -> str | None:
    """A message about weights that the model has no place for, as when config.json has fewer layers; `None`
    if there are none. They are dropped, also from the tuned model."""
    if not unexpected:
        return None
    return (
        f"{counted(len(unexpected), 'tensor')} in the weights of {path!r} are not part of the model that its "
        f"{description(path)} describes, {min(unexpected)} for one; they are neither used nor saved"
    )


def unread_settings(unread: Collection[str], path: str) -> str | None:
    """A message about settings of a GGUF file that a model is computed without; `None` if there are none."""
    if not unread:
        return None
    return (
        f"{path} says {', '.join(unread)}, which transformers does not read: the model is used without, and "
        "may answer otherwise than the original"
    )


def ignored_shards(config: ModelConfig) -> str | None:
    """A message about a directory with a whole model and one in parts, of which the whole one is read."""
    folder = Path(config.path)
    index = folder / "model.safetensors.index.json"
    if config.gguf_file is not None or not (folder / "model.safetensors").is_file() or not index.is_file():
        return None
    return (
        f"{config.path} holds two models: model.safetensors, which is used, and the parts that {index.name} "
        "lists, which are not; remove the one that is not meant"
    )


def require_no_integers(config: ModelConfig) -> None:
    """Raise `ModelError` for quantized weights of a model whose config.json does not say how to read them:
    transformers would take the integers for the weights."""
    for file in () if config.gguf_file is not None else sorted(Path(config.path).glob("model*.safetensors")):
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118  (it is no mapping)
                    if name.endswith(".weight") and (kind := opened.get_slice(name).get_dtype())[0] in "IU":
                        raise ModelError(
                            f"{file}: {name} holds integers ({kind}), but config.json has no "
                            "quantization_config that says how to read them; use the original weights, or "
                            "the config.json that belongs to these."
                        )
        except (OSError, SafetensorError):
            return  # reported when they are loaded


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
