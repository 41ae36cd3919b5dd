"""Find environment variables that make accelerate change the training, past fmstune's settings.

`accelerate launch` and its configuration file set them; transformers leaves to them whatever its own
arguments leave open (accelerate 1.15, `state.py` and `utils/dataclasses.py`). Only the precision is taken
over, in `fmstune.system.device`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from fmstune.config.schema.tables import RunConfig

_TRUE = {"1", "on", "t", "true", "y", "yes"}
_INSTEAD = {
    "ACCELERATE_USE_FSDP": ("fsdp", "use training.fsdp = true instead"),
    "ACCELERATE_USE_DEEPSPEED": ("deepspeed", "use training.deepspeed instead"),
    "ACCELERATE_USE_MEGATRON_LM": (None, "leave it out"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (None, "use training.fsdp = true instead"),
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": (None, "leave it out; the model is compiled as a whole"),
}
"""For each switch: the field of `[training]` that it may accompany, and what to do instead."""


def accelerate_problems(config: RunConfig) -> Iterator[str]:
    """Messages about variables that ask for something that `[training]` does not, each with the remedy."""
    training, given = config.training, os.environ
    for name, (field, instead) in _INSTEAD.items():
        if given.get(name, "").lower() in _TRUE and not (field and training.get(field)):
            yield _message(name, instead)
    compiled = ("torch_compile", "torch_compile_mode", "torch_compile_backend")
    if given.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() not in ("", "no") and not any(
        training.get(key) for key in compiled
    ):
        yield _message("ACCELERATE_DYNAMO_BACKEND", "use training.torch_compile = true instead")
    if given.get("ACCELERATE_MIXED_PRECISION", "no").lower() not in ("", "no", "bf16", "fp16"):
        yield _message("ACCELERATE_MIXED_PRECISION", "use training.bf16 = true instead")
    key = "gradient_accumulation_steps"
    steps = given.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps not in ("", "1", str(training.get(key, 1))):
        yield _message("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", f"use training.{key} = {steps} instead")


def _message(name: str, instead: str) -> str:
    where = "in the environment, or from `accelerate launch` and its configuration"
    return f"{name}={os.environ[name]} ({where}) is not supported: {instead}."
