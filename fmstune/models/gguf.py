"""GGUF files as base models: dequantized to plain weights on loading, and saved as such."""

from __future__ import annotations

from typing import Any

import transformers


def dequantized() -> dict[str, Any]:
    """Arguments of `from_pretrained` in addition to `gguf_file`, so that all weights are plain tensors."""
    if hasattr(transformers, "GgufConfig"):  # since transformers 5.20 or so; before, there is no other way
        return {"quantization_config": transformers.GgufConfig(dequantize=True)}
    return {}
