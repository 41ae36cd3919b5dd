"""Find settings that need a package or program that is not installed, without importing anything."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fmstune.config.schema.tables import RunConfig
from fmstune.text import shown

_BITSANDBYTES = ("bitsandbytes", "bitsandbytes")
_OPTIMIZERS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        ("adamw_bnb_8bit", "adamw_8bit", "ademamix", "ademamix_8bit", "lion_8bit", "lion_32bit",
         "paged_adamw_32bit", "paged_adamw_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit",
         "paged_lion_32bit", "paged_lion_8bit", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"),
        _BITSANDBYTES,
    ),
    "adamw_torch_4bit": ("torchao", "torchao"),
    "adamw_torch_8bit": ("torchao", "torchao"),
    "adamw_anyprecision": ("torchdistx", "torchdistx"),
    "adamw_torch_xla": ("torch_xla", "torch_xla"),
    "adamw_torch_npu_fused": ("torch_npu", "torch_npu"),
    **dict.fromkeys(
        ("galore_adamw", "galore_adamw_8bit", "galore_adafactor", "galore_adamw_layerwise",
         "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise"),
        ("galore_torch", "galore-torch"),
    ),
    "lomo": ("lomo_optim", "lomo-optim"),
    "adalomo": ("lomo_optim", "lomo-optim"),
    "grokadamw": ("grokadamw", "grokadamw"),
    "schedule_free_radam": ("schedulefree", "schedulefree"),
    "schedule_free_adamw": ("schedulefree", "schedulefree"),
    "schedule_free_sgd": ("schedulefree", "schedulefree"),
    "apollo_adamw": ("apollo_torch", "apollo-torch"),
    "apollo_adamw_layerwise": ("apollo_torch", "apollo-torch"),
    "stable_adamw": ("optimi", "torch-optimi"),
}  # fmt: skip
"""For each optimizer that comes with neither torch nor transformers: its module and its package."""

_ATTENTION_ELSEWHERE = {
    **dict.fromkeys(
        ("fa2", "fa", "flash", "flash_attn", "flash_attention", "flash-attn"), "flash_attention_2"
    ),
    "fa3": "flash_attention_3",
    "flex": "flex_attention",
    **dict.fromkeys(("sdp", "xformers", "torch"), "sdpa"),
    "disabled": "eager",
}
"""Names of implementations of attention in other tools."""
_FLASH_MODULES = {
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
    "flash_attention_4": ("flash_attn.cute", "flash-attn-4"),
}


def missing(config: RunConfig) -> Iterator[str]:
    """Messages about settings that need missing packages or programs, each with the remedy."""
    training = config.training
    name = str(training.get("optim", ""))
    module, package = _OPTIMIZERS.get(name, ("", ""))
    if module and not _there(module):
        yield (
            f"{config.at('training.optim')}training.optim = {name!r} needs {package}: `pip install "
            f"{package}`, or use adamw_torch, or adafactor, which has a smaller state."
        )
    for key, module, package in (
        ("use_liger_kernel", "liger_kernel", "liger-kernel"),
        ("deepspeed", "deepspeed", "deepspeed"),
    ):
        if training.get(key) and not _there(module):
            yield (
                f"{config.at(f'training.{key}')}training.{key} needs {package}: `pip install {package}`, or "
                "leave it out."
            )
    quantization = config.model.quantization
    if quantization and config.lora.enabled and not _there("bitsandbytes"):
        key = "model.quantization"
        yield (
            f"{config.at(key)}{key} = {shown(quantization)} needs bitsandbytes: pip install "
            '"fmstune[quantization]".'
        )
    attention = config.model.attn_implementation or ""
    module, package = _FLASH_MODULES.get(attention, ("", ""))
    # With the package `kernels`, transformers uses a kernel from the hub instead.
    if module and not _there(module) and not _there("kernels"):
        yield (
            f"{config.at('model.attn_implementation')}model.attn_implementation = {attention!r} needs "
            f"{package}: `pip install {package}` or `pip install kernels`, or use sdpa."
        )
    if compiles_with_inductor(training):
        yield from _compiler(config)


def misnamed_attention(config: RunConfig) -> Iterator[str]:
    """A message about an attention that has another name in transformers."""
    key, attention = "model.attn_implementation", config.model.attn_implementation or ""
    if meant := _ATTENTION_ELSEWHERE.get(attention.lower()):
        yield f"{config.at(key)}{key} = {attention!r} is not a name in transformers. Did you mean {meant}?"


def compiles_with_inductor(training: Mapping[str, Any]) -> bool:
    """Whether the model will be compiled with torch's own backend; the mode or the backend also turns it
    on."""
    backend = training.get("torch_compile_backend")
    wanted = training.get("torch_compile") or training.get("torch_compile_mode") or backend
    return bool(wanted) and (backend or "inductor") == "inductor"


def _compiler(config: RunConfig) -> Iterator[str]:
    key = "training.torch_compile"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++", "c++"]
    if not any(shutil.which(compiler) for compiler in compilers):
        yield f"{config.at(key)}{key} needs a C++ compiler: install g++, or leave it out."
    elif not header.exists():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        yield (
            f"{config.at(key)}{key} needs Python's header files, which are not installed: install "
            f"python{version}-dev, or leave it out."
        )


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a parent package is missing, or is not a package
        return False
