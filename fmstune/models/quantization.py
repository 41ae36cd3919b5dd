"""QLoRA: the frozen weights under an adapter, held in 4 or 8 bits by bitsandbytes."""

from __future__ import annotations

import os
from typing import Any

import torch
from peft import prepare_model_for_kbit_training
from transformers import BitsAndBytesConfig, PreTrainedModel


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


def prepare(model: PreTrainedModel) -> PreTrainedModel:
    """The model ready for an adapter: frozen, its norms and embeddings in float32."""
    # The trainer enables activation checkpointing.
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
