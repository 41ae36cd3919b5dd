"""Find environment variables that make accelerate or torch change the training, past fmstune's settings.

`accelerate launch` and its configuration file set them; transformers leaves to them whatever its own
arguments leave open (accelerate 1.15, `state.py` and `utils/dataclasses.py`). Only the precision is taken
over, in `fmstune.system.device`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from fmstune.config.schema.tables import RunConfig

USE_CPU = "ACCELERATE_USE_CPU"
DYNAMIC = "ACCELERATE_DYNAMO_USE_DYNAMIC"

_TRUE = {"1", "on", "t", "true", "y", "yes"}
_FALSE = {"0", "off", "f", "false", "n", "no"}
_INSTEAD = {
    "ACCELERATE_USE_FSDP": ("fsdp", "use training.fsdp = true instead"),
    "ACCELERATE_USE_DEEPSPEED": ("deepspeed", "use training.deepspeed instead"),
    "ACCELERATE_USE_MEGATRON_LM": (None, "leave it out"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (None, "use training.fsdp = true instead"),
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": (None, "leave it out; the model is compiled as a whole"),
}
"""For each switch: the field of `[training]` that it may accompany, and what to do instead."""
_FLAGS = (
    *_INSTEAD, USE_CPU, DYNAMIC, "ACCELERATE_DYNAMO_USE_FULLGRAPH", "ACCELERATE_DEBUG_MODE",
    "ACCELERATE_CPU_AFFINITY", "FORK_LAUNCHED",
)  # fmt: skip
"""Variables that must be yes or no, in one of accelerate's spellings; an empty one is neither."""
_DETAILS = {
    "fsdp": (("FSDP_",), "training.fsdp_config"),
    "deepspeed": (("ACCELERATE_DEEPSPEED_", "ACCELERATE_GRADIENT_CLIPPING"), "training.deepspeed"),
}
"""For each field of `[training]`: the variables that fill what it leaves open, and where to set that."""
_COMPILED = ("torch_compile", "torch_compile_mode", "torch_compile_backend")
_OFF = ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE")


def is_on(name: str) -> bool:
    """Whether a variable is yes, as accelerate reads it."""
    return os.environ.get(name, "").lower() in _TRUE


def accelerate_problems(config: RunConfig) -> Iterator[str]:
    """Messages about variables that ask for something that `[training]` does not, each with the remedy."""
    training, given = config.training, os.environ
    for name in _FLAGS:
        if name in given and given[name].lower() not in _TRUE | _FALSE:
            yield f"{name} = {given[name]!r} in the environment is neither true nor false; unset it."
    for name, (field, instead) in _INSTEAD.items():
        if is_on(name) and not (field and training.get(field)):
            yield _message(name, instead)
    for field, (prefixes, place) in _DETAILS.items():
        for name in sorted(given) if training.get(field) else ():
            if name.startswith(prefixes):
                yield _message(name, f"set it in {place} instead")
    if any(training.get(key) for key in _COMPILED):
        yield from _compilation(config)
    elif given.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() not in ("", "no"):
        yield _message("ACCELERATE_DYNAMO_BACKEND", "use training.torch_compile = true instead")
    if given.get("ACCELERATE_MIXED_PRECISION", "no").lower() not in ("", "no", "bf16", "fp16"):
        instead = "use training.bf16 = true or training.fp16 = true instead, or unset it"
        yield _message("ACCELERATE_MIXED_PRECISION", instead)
    if (device := given.get("ACCELERATE_TORCH_DEVICE")) is not None and not (
        device == "cpu" and training.get("use_cpu")
    ):
        yield _message("ACCELERATE_TORCH_DEVICE", "use training.use_cpu or CUDA_VISIBLE_DEVICES instead")
    key = "gradient_accumulation_steps"
    steps = given.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps not in ("", "1", str(training.get(key, 1))):
        instead = f"use training.{key}{f' = {int(steps)}' if steps.isdecimal() else ''} instead"
        yield _message("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", instead)


def _compilation(config: RunConfig) -> Iterator[str]:
    training, given = config.training, os.environ
    key = next(f"training.{key}" for key in _COMPILED if training.get(key))
    for name in _OFF:
        if given.get(name) == "1":
            yield f"{config.at(key)}{key}: {name}=1 in the environment turns it off; unset one of them."
    mode = given.get("ACCELERATE_DYNAMO_MODE", "default")
    if mode != "default" and mode != training.get("torch_compile_mode"):
        yield _message("ACCELERATE_DYNAMO_MODE", f"use training.torch_compile_mode = {mode} instead")
    for name in ("ACCELERATE_DYNAMO_USE_FULLGRAPH", DYNAMIC):
        if is_on(name):
            yield _message(name, "leave it out")


def _message(name: str, instead: str) -> str:
    where = "in the environment, or from `accelerate launch` and its configuration"
    return f"{name}={os.environ[name]} ({where}) is not supported: {instead}."
