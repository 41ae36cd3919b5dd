"""QLoRA: the frozen weights under an adapter, held in 4 or 8 bits by bitsandbytes."""

from __future__ import annotations

import os
from typing import Any

import torch
from peft import prepare_model_for_kbit_training
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers import __version__ as transformers_version

from fmstune.errors import ModelError
from fmstune.transformers_compat import forget_quantization


def quantized(bits: str) -> dict[str, Any]:
    """Arguments of `from_pretrained`: NF4 with double quantisation, as in the QLoRA paper, or LLM.int8()."""
    if bits == "4bit":
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    else:
        settings = BitsAndBytesConfig(load_in_8bit=True)
    options: dict[str, Any] = {"quantization_config": settings}
    if torch.cuda.is_available():  # each rank on its own GPU: quantised where they are used
        options["device_map"] = {"": int(os.environ.get("LOCAL_RANK", 0))}
    return options


def unpacked(model: Any, settings: Any, path: str) -> str | None:
    """Let a model whose quantized weights were unpacked on loading be saved like any other; returns a message
    about that, or `None` if they are still quantized. `settings` are those in config.json.

    transformers unpacks FP8 and MXFP4 where no GPU computes with them. It would quantize them again on
    saving, but no longer say so in config.json: whoever loads that gets the bare 8-bit numbers.
    Raises `ModelError` for a method that transformers does not know, and whose weights it takes as they are.
    """
    method = settings.get("quant_method") if isinstance(settings, dict) else settings.quant_method
    if getattr(model.config, "quantization_config", None) is not None:
        if getattr(model, "hf_quantizer", None) is None:
            raise ModelError(
                f"config.json of {path!r} says that the weights are quantized with {method}, which "
                f"transformers {transformers_version} does not know; use weights that are not quantized."
            )
        return None
    forget_quantization(model)
    return (
        f"the weights of {path!r} are quantized ({getattr(method, 'value', method)}) and were unpacked; a "
        "model that is trained or merged from them is saved without quantization"
    )


def prepare(model: PreTrainedModel) -> PreTrainedModel:
    """The model ready for an adapter: frozen, its norms and embeddings in float32."""
    # The trainer enables activation checkpointing.
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
