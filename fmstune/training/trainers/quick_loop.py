"""The training loop without its walks.

At each step the Trainer has every module of the model go into training mode, and looks for every weight to
forget its gradient: 0.5 ms for the demo's 44 modules, of a step of 17.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from fmstune.training.trl_compat.loop import asked_once
from fmstune.training.tuned_trainer import as_trainer


class QuickLoop:
    """A mixin for a TRL Trainer, before it."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's."""
        this: Any = self
        # FSDP and DeepSpeed put other weights in the place of these when the training begins.
        divided = this.is_fsdp_enabled or this.is_deepspeed_enabled
        with asked_once(), contextlib.nullcontext() if divided else walked_once(this.model):
            return as_trainer(super()).train(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class _Walked:
    modules: tuple[torch.nn.Module, ...]
    weights: tuple[torch.nn.Parameter, ...]


_WALKED = "walked"


@contextlib.contextmanager
def walked_once(model: torch.nn.Module) -> Iterator[None]:
    """Within, `model.train()` does nothing if all modules are in training mode, and `model.zero_grad()` goes
    to the weights directly, until a module or parameter is added to any module."""
    # Methods and what they know are attributes of the model, so that a copy of it has its own.
    known = _Walked(tuple(model.modules()), tuple(model.parameters()))
    own = {_WALKED: known, "train": types.MethodType(_Quick.train, model)}
    own["zero_grad"] = types.MethodType(_Quick.zero_grad, model)
    vars(model).update(own)

    def walk_again() -> None:
        for name in own:
            vars(model).pop(name, None)

    # A weight that a callback adds must get its gradient cleared too. Forward passes register modules too,
    # but in new containers: a slice of a `ModuleList` is one.
    parts = set(map(id, known.modules))

    def look(module: torch.nn.Module, *_: Any) -> None:
        if id(module) in parts:
            walk_again()

    watches = (register_module_module_registration_hook, register_module_parameter_registration_hook)
    added = [watch(look) for watch in watches]
    try:
        yield
    finally:
        walk_again()
        for each in added:
            each.remove()


class _Quick:
    """Methods of a model. They have the names of its own, by which `pickle` finds them in another process."""

    @staticmethod
    def train(self: torch.nn.Module, mode: bool = True) -> torch.nn.Module:
        known: _Walked = vars(self)[_WALKED]
        if mode and all(module.training for module in known.modules):
            return self
        return type(self).train(self, mode)

    @staticmethod
    def zero_grad(self: torch.nn.Module, set_to_none: bool = True) -> None:
        if not set_to_none:
            type(self).zero_grad(self, set_to_none)
            return
        known: _Walked = vars(self)[_WALKED]
        for weight in known.weights:
            weight.grad = None
