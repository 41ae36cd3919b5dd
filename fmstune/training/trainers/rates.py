"""Learning rates of their own for some weights (`model.lr_multipliers`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from fmstune.errors import ConfigError
from fmstune.models.trainable import named_weights
from fmstune.training.tuned_trainer import OfRun, as_trainer

KEY = "model.lr_multipliers"
_WRAPPERS = re.compile(r"\b_(?:fsdp|checkpoint)_wrapped_module\.")


def factors_of(model: Any, multipliers: Mapping[str, float], at: str = "") -> dict[int, float]:
    """The factor of each trained weight that a multiplier names, by its `id`. `at` is the location of the
    setting for messages. Raises `ConfigError` if a name has no trained weights, or a weight has two."""
    weights = {
        _plain(name): weight
        for name, weight in model.named_parameters(remove_duplicate=False)
        if weight.requires_grad
    }
    every = [_plain(name) for name, _ in model.named_parameters(remove_duplicate=False)]
    found: dict[int, float] = {}
    by: dict[int, str] = {}
    for pattern, factor in multipliers.items():
        trained = [name for name in named_weights(pattern, every, f"{at}{KEY}") if name in weights]
        if not trained:
            raise ConfigError(f"{at}{KEY}: {pattern} names no weights that are trained; leave it out.")
        for name in trained:
            one = id(weights[name])
            if by.setdefault(one, pattern) != pattern:
                raise ConfigError(f"{at}{KEY}: {by[one]} and {pattern} both name {name}; keep one of them.")
            found[one] = factor
    return found


def _plain(name: str) -> str:
    """The name of a weight without what FSDP, and its activation checkpointing, put into it."""
    return _WRAPPERS.sub("", name)


class MultipliedRates(OfRun):
    """A mixin for a Trainer whose optimizer multiplies the learning rate of some weights."""

    def create_optimizer(self, model: Any = None) -> Any:
        """The Trainer's, with further groups for the weights that have a factor."""
        this, is_new = as_trainer(self), as_trainer(self).optimizer is None
        given = {} if model is None else {"model": model}
        optimizer = as_trainer(super()).create_optimizer(**given)
        if self.lr_multipliers and is_new:
            _multiply(optimizer, factors_of(this.model if model is None else model, self.lr_multipliers))
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The Trainer's, with the smallest and largest rate of each group multiplied as its rate is."""
        is_new = as_trainer(self).lr_scheduler is None
        given = {} if optimizer is None else {"optimizer": optimizer}
        scheduler = as_trainer(super()).create_scheduler(num_training_steps, **given)
        if self.lr_multipliers and is_new:
            _multiply_bounds(scheduler)
        return scheduler


def _multiply_bounds(scheduler: Any) -> None:
    """Schedules that follow evaluations have the same bounds for all groups (`min_lr`, `max_lr`), which end
    them at different times; all others multiply a rate with one number."""
    rates = [float(group["lr"]) for group in scheduler.optimizer.param_groups]
    for name in ("min_lrs", "max_lrs"):
        bounds = getattr(scheduler, name, None)
        if bounds is not None and rates[0]:
            setattr(
                scheduler, name, [bound * rate / rates[0] for bound, rate in zip(bounds, rates, strict=True)]
            )


def _multiply(optimizer: Any, factors: dict[int, float]) -> None:
    """Move the weights into groups with the factor. The first group stays the first: its rate is logged."""
    groups = optimizer.param_groups if isinstance(optimizer, torch.optim.Optimizer) else []
    there = {id(weight) for group in groups for weight in group["params"]}
    if not factors.keys() <= there or any(group["lr"] is None for group in groups):
        raise ConfigError(
            f"{KEY}: the optimizer {type(optimizer).__name__} has no learning rates for single weights; use "
            "another training.optim, such as adamw_torch."
        )
    for group in list(groups):
        for factor in sorted({factors[id(weight)] for weight in group["params"] if id(weight) in factors}):
            chosen = [weight for weight in group["params"] if factors.get(id(weight)) == factor]
            groups.append({**group, "params": chosen, "lr": group["lr"] * factor})
        group["params"] = [weight for weight in group["params"] if id(weight) not in factors]
