"""Check adapters, quantized weights and GGUF files, before heavy imports."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from fmstune.config.check.suggest import similar_file
from fmstune.config.methods.known import METHODS, methods_for
from fmstune.config.paths.models import holds_adapter, split_gguf
from fmstune.config.schema.tables import RunConfig
from fmstune.text import shown

Problem = tuple[str, str]
"""The dotted key and the message of a problem."""
_ONE_RATE = ("lomo", "adalomo")
"""Optimizers that update weights in the backward pass, with the learning rate of the first group."""


def adapter_problems(config: RunConfig) -> Iterator[Problem]:
    """Settings of `[model]`, `[lora]` and `[prompt_tuning]` that conflict."""
    if config.prompt_tuning.enabled:
        yield from _prompt_tuning(config)
    quantization = config.model.quantization
    key = "model.quantization"
    if quantization and not config.lora.enabled:
        yield (
            key,
            f"{key} = {shown(quantization)} freezes the weights, so that only a LoRA adapter can be trained: "
            "add --lora.",
        )
    key = "model.lr_multipliers"
    for name, factor in (config.model.lr_multipliers or {}).items():
        if factor <= 0:
            yield (
                key,
                f"{key}: the factor of {shown(name)} is {factor:g}; it must be more than 0. To keep weights "
                "as they are, name the others in model.trainable.",
            )
    optim = str(config.training.get("optim"))
    if config.model.lr_multipliers and (optim in _ONE_RATE or optim.endswith("_layerwise")):
        yield (
            "training.optim",
            f"training.optim = {shown(optim)} has one learning rate for all weights, so {key} is impossible; "
            "use another, such as adamw_torch.",
        )
    if config.model.trainable and config.adapter is not None:
        own = (
            "lora.target_modules and lora.modules_to_save choose its weights"
            if config.lora.enabled
            else "it has weights of its own"
        )
        key = "model.trainable"
        yield key, f"{key} is for training without an adapter: {own}. Leave one of them out."
    if config.lora.enabled and config.lora.target_parameters:
        key = "lora.target_parameters"
        for name, on in (("dropout", config.lora.dropout), ("dora", config.lora.dora)):
            if on:
                yield f"lora.{name}", f"lora.{name} is impossible for {key}; leave one of them out."
    yield from _gguf(config)
    yield from _overwritten(config)


def gguf_problem(path: str, gguf_file: str | None, base: Path = Path()) -> str | None:
    """Why a GGUF file cannot be read, as far as that can be checked here; `None` if the model is not one."""
    if gguf_file is None and not path.lower().endswith(".gguf"):
        return None
    place, name = split_gguf(path, gguf_file, base)
    file = base / place / (name or "")
    on_hub = not (base / place).is_dir() and (gguf_file is not None or place != str(Path(path).parent))
    if not on_hub and not file.is_file():
        return f"there is no such file.{similar_file(Path(place) / (name or ''), base)}"
    if file.is_file():
        try:
            with open(file, "rb") as opened:
                magic = opened.read(4)
        except OSError as error:
            return f"it cannot be read: {error.strerror or error}."
        if magic != b"GGUF":
            return "this is not a GGUF file, despite its name."
    if not _installed("gguf"):
        return 'reading GGUF files needs a package: pip install "fmstune[gguf]".'
    return None


def _gguf(config: RunConfig) -> Iterator[Problem]:
    path, name = config.model.path, config.model.gguf_file
    key = "model.path" if name is None else "model.gguf_file"
    if name is not None and path.lower().endswith(".gguf"):
        yield (
            key,
            f"{key} = {shown(name)}, but model.path = {shown(path)} is already a GGUF file; leave it out.",
        )
        return
    problem = gguf_problem(path, name, config.base_dir)
    if problem is not None:
        yield key, f"{key} = {shown(path if name is None else name)}: {problem}"
    elif split_gguf(path, name)[1] and config.model.quantization:
        yield (
            "model.quantization",
            "model.quantization is for full-precision weights, but those of a GGUF file are already "
            "quantized, in another way; leave it out.",
        )


def _overwritten(config: RunConfig) -> Iterator[Problem]:
    """Refuse a run in the directory of its own model, which it would overwrite, or delete unread."""
    model, out = config.base_dir / config.model.path, config.output_dir
    if config.model.path == "demo" or out is None or not model.is_dir():
        return
    run, model = (config.base_dir / out).resolve(), model.resolve()
    if model == run or (model.parent == run and model.name.startswith("checkpoint-")):
        yield (
            "training.output_dir",
            f"training.output_dir = {shown(out)} holds the model to be trained; use another directory.",
        )


def _prompt_tuning(config: RunConfig) -> Iterator[Problem]:
    key = "prompt_tuning.enabled"
    path = config.model.path
    if config.lora.enabled and holds_adapter(config.base_dir / path):
        yield (
            key,
            f"{key} and lora.enabled (--lora) exclude each other, and the adapter in {path} is trained "
            f"further as it is; leave both out, or merge a LoRA adapter first (fmstune merge {path} OUT).",
        )
    elif config.lora.enabled:
        yield key, f"{key} and lora.enabled (--lora) exclude each other; choose one."
    if METHODS[config.run.method].compares:
        yield key, f"{key} is for run.method = {methods_for('tokens')!r} only; use --lora."
    for name in ("packing", "padding_free"):
        if config.training.get(name):
            yield (
                f"training.{name}",
                f"training.{name} joins several rows, and only the first would get the virtual tokens of "
                "prompt_tuning; leave it out.",
            )
    if config.prompt_tuning.text is not None and not config.prompt_tuning.text.strip():
        yield "prompt_tuning.text", "prompt_tuning.text is empty; leave it out to start from random tokens."


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
