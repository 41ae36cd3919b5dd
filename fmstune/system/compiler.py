"""Check before the data is prepared that torch can compile on this machine, and report why if it cannot.

An installed compiler may not work: a header, a linker or disk space may be missing.
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
    """Compile one line, if the run will be compiled. Raises `ConfigError` if that fails.

    It costs a run little: most of its time is setup that the model's compilation needs, too.
    """
    if not compiles_with_inductor(config.training):
        return
    values = torch.ones(64, device=_device(config), requires_grad=True)
    try:
        torch.compile(_line)(values).backward()
    except Exception as error:  # errors of torch, the compiler or the disk, which would fail the run
        key = "training.torch_compile"
        raise ConfigError(
            f"{config.at(key)}{key}: torch cannot compile on this machine: {_cause(error)}. Fix that, or "
            "leave it out."
        ) from error
    torch.compiler.reset()


def compile_failure(error: BaseException) -> str | None:
    """The message for a model that could not be compiled; `None` for other errors."""
    from torch._dynamo.exc import TorchDynamoException

    if not isinstance(error, TorchDynamoException):
        return None
    return f"torch cannot compile this model: {_cause(error)}. Leave out training.torch_compile."


def _line(values: torch.Tensor) -> torch.Tensor:
    return (values.sin() * 2).sum()


def _device(config: RunConfig) -> torch.device:
    kind = torch.accelerator.current_accelerator()
    if config.training.get("use_cpu") or kind is None or not torch.accelerator.is_available():
        return torch.device("cpu")
    return torch.device(kind.type, int(os.environ.get("LOCAL_RANK", "0")))


def _cause(error: BaseException) -> str:
    """The line with the cause, from torch's pages of output."""
    while isinstance(inner := getattr(error, "inner_exception", None), BaseException):
        error = inner
    said: Any = getattr(error, "output", None)  # the compiler's own output
    lines = [line.strip() for line in str(said or error).splitlines() if line.strip()]
    telling = next((line for line in lines if "error:" in line.lower()), lines[0] if lines else "")
    if not telling:
        return type(error).__name__
    return f"{telling[:_LONGEST]}…" if len(telling) > _LONGEST else telling.rstrip(".")
