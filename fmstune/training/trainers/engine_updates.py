"""Updates by DeepSpeed's engine, which makes them at the end of the backward pass.

Everything else in the Trainer's loop assumes that the update is still to come: with DeepSpeed the gradient's
norm is known only afterwards, and the engine may have dropped the update because of it.
"""

from __future__ import annotations

from typing import Any, cast

import torch


def is_engine(model: Any) -> bool:
    """Whether the model is wrapped in DeepSpeed's engine. Asking its type would import DeepSpeed."""
    return hasattr(model, "was_step_applied")


def is_applied(engine: Any) -> bool:
    """Whether the last update has changed the weights."""
    return bool(engine.was_step_applied())


def searches_scale(engine: Any) -> bool:
    """Whether infinite gradients are expected, as they serve to find the scale of an fp16 loss."""
    return bool(engine.fp16_enabled())


def is_finite_norm(norm: Any) -> bool:
    """Whether DeepSpeed's norm of a gradient is finite. -1 stands for NaN as well, where the engine does not
    check the gradients itself; at stage 0 there is no norm."""
    return norm is None or 0 <= float(norm) < float("inf")


def drops_updates(model: Any) -> bool:
    """Whether an engine drops updates with non-finite gradients: at stage 0 it makes them all, as it does at
    stages 1 and 2 in bf16 with `check_grad_overflow = false`."""
    if not is_engine(model):
        return False
    stage, of_zero = int(model.zero_optimization_stage()), model.optimizer
    if stage in (1, 2) and not getattr(of_zero, "check_grad_overflow", True):
        return bool(getattr(of_zero, "compute_grad_norm", True)) and not model.bfloat16_enabled()
    return stage > 0 or searches_scale(model)


def dropped(loss: torch.Tensor) -> torch.Tensor:
    """A zero whose gradients are all NaN: the engine then drops the update. Plain zeros would be applied,
    with momentum and weight decay, and at ZeRO 3 there are no weights to get them from."""
    return cast(torch.Tensor, _Dropped.apply(loss))


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(loss)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return torch.full_like(gradient, float("nan"))
