"""Handle a tokenizer with more tokens than the model has embeddings, as after `add_tokens`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import PreTrainedTokenizerBase

from fmstune.config.schema.tables import RunConfig
from fmstune.errors import ConfigError
from fmstune.text import counted

if TYPE_CHECKING:
    from fmstune.data.prepare import PreparedData

ADDED = "model.add_tokens"
_SHOWN = 3
_WEIGHTS = "adapter_model.safetensors"


def fit_vocabulary(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    config: RunConfig,
    data: PreparedData,
    added: Sequence[int] = (),
) -> str | None:
    """Add missing embeddings to the model; return a message for the user, or `None`.

    New embeddings are the mean of the others: random ones can dominate the first steps. Under an adapter they
    would stay frozen; raises `ConfigError` with what to train, unless none of them is needed. So would those
    of the tokens that the run has `added`, for which a model may have spare embeddings.
    """
    there = model.get_input_embeddings().weight.shape[0]
    if added:
        _fit_added(model, tokenizer, config, added)
        return None
    lacking = len(tokenizer) - there
    if lacking <= 0:
        return None
    names = tokenizer.convert_ids_to_tokens(list(range(there, min(there + _SHOWN, len(tokenizer)))))
    shown = ", ".join(map(str, names)) + (", …" if lacking > _SHOWN else "")
    what = f"the tokenizer has {counted(lacking, 'token')} more than the model has embeddings ({shown})"
    if config.adapter is not None:
        modules = _embeddings(model)
        if not isinstance(model, PeftModel) and _trained_whole(config, model):
            _grow(model, len(tokenizer))
            return f"{what}: it gets them, as the mean of the others, and they are saved with the adapter"
        if (tokenizer.pad_token_id or 0) < there and _largest_token_id(data) < there:
            return f"{what}; none of them is in the data, so the model is unchanged"
        raise _frozen(what, modules, model, config)
    _grow(model, len(tokenizer))
    return f"{what}: it gets them, as the mean of the others"


def _fit_added(
    model: Any, tokenizer: PreTrainedTokenizerBase, config: RunConfig, added: Sequence[int]
) -> None:
    """The same for the tokens of `model.add_tokens`."""
    there = model.get_input_embeddings().weight.shape[0]
    if config.adapter is not None:
        modules = _embeddings(model)
        if isinstance(model, PeftModel) or not _trained_whole(config, model):
            raise _frozen(f"{config.at(ADDED)}{ADDED} needs new embeddings", modules, model, config)
    if len(tokenizer) > there:
        _grow(model, len(tokenizer))
    _start_as_mean(model, added)


def _frozen(what: str, modules: Sequence[str], model: Any, config: RunConfig) -> ConfigError:
    listed = ", ".join(f'"{name}"' for name in modules)
    if not config.lora.enabled:
        do = "train all weights, without prompt_tuning"
    elif isinstance(model, PeftModel):  # its settings are fixed
        do = f"merge it first (fmstune merge {config.model.path} OUT), and train the result"
    else:
        do = f"train them whole with lora.modules_to_save = [{listed}], or train all weights (without --lora)"
    return ConfigError(f"{what}, and an adapter does not train embeddings: {do}.")


def fit_adapter(model: Any, directory: Path) -> None:
    """Resize a base model's embeddings to those saved with an adapter."""
    embeddings = model.get_input_embeddings()
    rows = saved_embeddings(model, directory).get(embeddings, 0)
    if rows > embeddings.weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)


def saved_embeddings(model: Any, directory: Path) -> dict[Any, int]:
    """The embeddings and head of a base model that are saved whole with an adapter, with their numbers of
    rows."""
    if not (directory / _WEIGHTS).is_file():
        return {}
    with safe_open(directory / _WEIGHTS, "pt") as weights:
        saved = set(weights.keys())
        return {
            module: weights.get_slice(key).get_shape()[0]
            for path, module in _ends(model)
            if (key := f"base_model.model.{path}.weight") in saved
        }


def _grow(model: Any, tokens: int) -> None:
    before = model.get_input_embeddings().weight.shape[0]
    # Its own method samples around the mean, and so consumes the seed's random numbers.
    model.resize_token_embeddings(tokens, mean_resizing=False)
    _start_as_mean(model, range(before, tokens))


def _start_as_mean(model: Any, tokens: Sequence[int]) -> None:
    """Set the embeddings of new tokens to the mean of those before them."""
    if not tokens:
        return
    before, size = min(tokens), model.get_input_embeddings().weight.shape[0]
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    with torch.no_grad():
        for weights in (getattr(layer, name, None) for layer in layers for name in ("weight", "bias")):
            if weights is not None and weights.shape[0] == size:
                weights[list(tokens)] = weights[:before].float().mean(dim=0).to(weights.dtype)


def frozen_rows(model: Any) -> list[str]:
    """The names of the modules with a row for each token that are not trained."""
    frozen = [path for path, end in _ends(model) if not end.weight.requires_grad]
    return [path.rpartition(".")[2] for path in frozen]


def _ends(model: Any) -> list[tuple[str, Any]]:
    """The modules with a row for each token, with their paths: the embeddings and the head."""
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    return [(path, module) for path, module in model.named_modules() if any(module is end for end in layers)]


def _embeddings(model: Any) -> list[str]:
    """The names of the modules with a row for each token, including the head if it is not tied."""
    embeddings = model.get_input_embeddings()
    own = [path for path, end in _ends(model) if end is embeddings or end.weight is not embeddings.weight]
    return [path.rpartition(".")[2] for path in own]


def _trained_whole(config: RunConfig, model: Any) -> bool:
    named = {name.rpartition(".")[2] for name in config.lora.modules_to_save}
    ends, own = {path.rpartition(".")[2] for path, _ in _ends(model)}, set(_embeddings(model))
    return config.lora.enabled and (own <= named or (len(own) == 1 and bool(ends & named)))


def _largest_token_id(data: PreparedData) -> float:
    """The largest token id in the data; infinite if they are streamed, as it is unknown."""
    import datasets  # half a second with pyarrow, which `generate` does not need
    import pyarrow.compute

    highest = 0.0
    for rows in (data.train, data.eval):
        if rows is None:
            continue
        if not isinstance(rows, datasets.Dataset):
            return float("inf")
        for name in rows.column_names:
            if name.endswith("_ids"):
                flat = pyarrow.compute.list_flatten(rows.data.column(name))
                highest = max(highest, pyarrow.compute.max(flat).as_py() or 0)
    return highest
