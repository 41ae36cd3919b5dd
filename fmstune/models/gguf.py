"""GGUF files as the models to tune: unpacked to plain weights when they are loaded, and saved as such."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers
from transformers import PreTrainedModel, modeling_gguf_pytorch_utils


def unpacking() -> dict[str, Any]:
    """What `from_pretrained` is told besides `gguf_file`, so that every weight is a plain one."""
    if hasattr(transformers, "GgufConfig"):  # since transformers 5.20 or so; before, there is no other way
        return {"quantization_config": transformers.GgufConfig(dequantize=True)}
    return {}


@contextmanager
def without_bars() -> Iterator[None]:
    """Without the bar of the unpacking, which is drawn also where no setting of transformers wants one."""
    drawn = modeling_gguf_pytorch_utils.tqdm
    modeling_gguf_pytorch_utils.tqdm = functools.partial(drawn, disable=True)
    try:
        yield
    finally:
        modeling_gguf_pytorch_utils.tqdm = drawn


def forget_file(model: PreTrainedModel) -> None:
    """Let a model from a GGUF file, whose weights are plain ones now, be trained and saved like any other:
    transformers goes on calling it quantised, and would refuse both."""
    model.hf_quantizer = None
    for owner in (model.config, model.config.get_text_config()):
        if getattr(owner, "quantization_config", None) is not None:
            del owner.quantization_config
    if "quantization_method" in vars(model):
        del model.quantization_method
