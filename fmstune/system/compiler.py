"""Whether torch can compile on this machine, tried before the data are prepared, and what it says when not.

A compiler that is there need not work: a header may be missing, a linker, or room for what is compiled.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from fmstune.config.rules.installed import compiles_with_inductor
from fmstune.config.schema.tables import RunConfig
from fmstune.errors import ConfigError

_LONGEST = 200


def require_compiler(config: RunConfig) -> None:
    """Compile a line, where the run is to be compiled. Raises `ConfigError` when that fails.

    A run pays little for it: most of the time is for what the model's own compilation needs as well.
    """
    if not compiles_with_inductor(config.training):
        return
    values = torch.ones(64, device=_device(config), requires_grad=True)
    try:
        torch.compile(_line)(values).backward()
    except Exception as error:  # of torch, of the compiler, of the disk: each is what the run would die of
        key = "training.torch_compile"
        raise ConfigError(
            f"{config.at(key)}{key}: torch cannot compile on this machine: {_cause(error)}. Mend that, or "
            "leave it out."
        ) from error
    torch.compiler.reset()


def compile_failure(error: BaseException) -> str | None:
    """What to say when the model could not be compiled; `None` for an error of another kind."""
    from torch._dynamo.exc import TorchDynamoException

    if not isinstance(error, TorchDynamoException):
        return None
    return f"torch cannot compile this model: {_cause(error)}. Leave training.torch_compile out."


def _line(values: torch.Tensor) -> torch.Tensor:
    return (values.sin() * 2).sum()


def _device(config: RunConfig) -> torch.device:
    kind = torch.accelerator.current_accelerator()
    if config.training.get("use_cpu") or kind is None or not torch.accelerator.is_available():
        return torch.device("cpu")
    return torch.device(kind.type, int(os.environ.get("LOCAL_RANK", "0")))


def _cause(error: BaseException) -> str:
    """The line that says what went wrong, of the pages that torch has to say."""
    while isinstance(inner := getattr(error, "inner_exception", None), BaseException):
        error = inner
    said: Any = getattr(error, "output", None)  # the compiler's own words
    lines = [line.strip() for line in str(said or error).splitlines() if line.strip()]
    telling = next((line for line in lines if "error:" in line.lower()), lines[0] if lines else "")
    if not telling:
        return type(error).__name__
    return f"{telling[:_LONGEST]}…" if len(telling) > _LONGEST else telling.rstrip(".")
