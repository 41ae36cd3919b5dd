"""Why a model or its tokenizer could not be loaded, in one sentence with the remedy.

The libraries below raise many types of errors, including a bare `KeyError` for a damaged file.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Collection
from pathlib import Path

from fmstune.access import denied
from fmstune.config.schema.tables import ModelConfig
from fmstune.text import counted, first_line

_DIVIDED = ("pytorch_model_fsdp*", "global_step*")


def why_not_loaded(config: ModelConfig, what: str, error: Exception) -> str:
    """The message for an `error` of `what`, the "model" or "tokenizer" of `config`."""
    path = config.path
    first = _explained(error)
    if Path(path).is_dir() and config.gguf_file is not None:
        file = str(Path(path) / config.gguf_file)
        if "ignore_mismatched_sizes" in first:
            return (
                f"the weights in {file!r} do not fit the model that transformers makes of its metadata: "
                "their sizes differ. Use the original model."
            )
        return f"the {what} in {file!r} cannot be read: {first}"
    if "trust_remote_code" in str(error):
        where = "there" if Path(path).is_dir() else "on the hub"
        return (
            f"the model {path!r} contains Python code: read it {where}; if you trust it, set "
            "model.trust_remote_code = true."
        )
    if kind := re.match(r"Unrecognized configuration class <class '[\w.]*?\.(\w+)Config'>", first):
        if "SequenceClassification" in str(error):
            return (
                f"the model {path!r} is a {kind.group(1)}, of which transformers has no reward model; use a "
                "model of another architecture."
            )
        return (
            f"the model {path!r} is a {kind.group(1)}, and not a causal language model, which predicts the "
            "next token of a text; use one that is."
        )
    if Path(path).is_dir():
        return _of_directory(path, what, first)
    return (
        f"the model {path!r} is neither a directory here nor could it be fetched from the hub: "
        f"{first.rstrip('.')}. Check the name (owner/name) and the network, or use a local directory."
    )


def description(path: str) -> str:
    """Where the model at a path is described."""
    return "metadata" if path.lower().endswith(".gguf") else "config.json"


def weights_lacking(path: str, missing: Collection[str], own: Collection[str] | None, loaded: str) -> str:
    """The message for a model without the weights named `missing`: `own` are the classes that its config.json
    names, `loaded` is the one that has those weights."""
    lacking = counted(len(missing), "tensor")
    if own and loaded not in own:
        return (
            f"the model {path!r} is a {min(own)}: it lacks {lacking} of a {loaded}, {min(missing)} for one. "
            f"Use a {loaded}."
        )
    found = (
        f"the weights of {path!r} are not complete: they lack {lacking} that its {description(path)} asks "
        f"for, {min(missing)} for one"
    )
    if path.lower().endswith(".gguf"):
        return f"{found}, or have them under names that transformers does not know. Use the original model."
    return f"{found}."


def _of_directory(path: str, what: str, first: str) -> str:
    if what == "tokenizer" and not any(Path(path).glob("tokenizer*")):
        return f"model.path = {path!r} is a model without a tokenizer: there is no tokenizer.json."
    if "tiktoken" in first and (missing := _sentencepiece(Path(path))):
        return missing
    if "ignore_mismatched_sizes" in first:
        return f"the weights in {path!r} do not match its config.json: their sizes differ."
    if "no file named" in first and any(True for name in _DIVIDED for _ in Path(path).glob(name)):
        return (
            f"the weights in {path!r} are divided as FSDP or DeepSpeed trained them; join them first, with "
            "`accelerate merge-weights` or the zero_to_fp32.py in it."
        )
    if first.startswith("Weights only load failed"):
        return (
            f"the weights in {path!r} are a pickle that contains more than tensors, or is damaged; it could "
            "run any code, and is not loaded. Convert it to safetensors, or use a model that has them."
        )
    if "deserializing header" in first or "invalid header" in first.lower():
        return f"the weights in {path!r} are damaged or incompletely copied: {first}. Copy them again."
    if closed := _unreadable(Path(path)):
        return f"the {what} in {path!r} cannot be loaded: {closed.name} cannot be read: {denied(closed)}."
    return f"the {what} in {path!r} cannot be loaded: {first}"


def _sentencepiece(folder: Path) -> str | None:
    """The remedy for a tokenizer that only sentencepiece can read: transformers asks for tiktoken, which it
    tries next."""
    if importlib.util.find_spec("sentencepiece") is not None:
        return None
    return (
        f"the tokenizer in {str(folder)!r} has no tokenizer.json, and its *.model file needs a package: pip "
        "install sentencepiece protobuf."
    )


def _unreadable(folder: Path) -> Path | None:
    """A file that may not be read: the libraries say that it does not exist, or is damaged."""
    return next((each for each in sorted(folder.iterdir()) if not os.access(each, os.R_OK)), None)


def _explained(error: Exception) -> str:
    first = first_line(error)
    if isinstance(error, (KeyError, IndexError, TypeError, AttributeError)):
        # A library failed on a file of an unexpected format; its message alone says little.
        return f"one of its files is damaged or of an unknown version ({type(error).__name__}: {first})"
    return first
