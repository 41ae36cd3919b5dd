"""Follow the learning rate through all steps before the first one.

transformers evaluates a schedule step by step: an argument that it cannot compute with ends the training
when the warmup does, and a warmup longer than the run never reaches the learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from fmstune.config.schema.tables import RunConfig
from fmstune.errors import ConfigError
from fmstune.text import counted, first_line, shown

_FOLLOWED = 4096
"""The most steps that are computed of a long run, evenly distributed, besides those around the warmup."""
_KIND, _ARGUMENTS, _RATE, _WARMUP = (
    f"training.{name}"
    for name in ("lr_scheduler_type", "lr_scheduler_kwargs", "learning_rate", "warmup_steps")
)


def schedule_notes(config: RunConfig, args: Any, steps: int) -> Iterator[str]:
    """Messages about a learning rate that never has its value, or exceeds it, in the run's `steps`. Raises
    `ConfigError` if the schedule fails in one of them."""
    if args.deepspeed and "scheduler" in (getattr(args.hf_deepspeed_config, "config", None) or {}):
        return
    warmup = args.get_warmup_steps(steps)
    rates = list(_rates(config, args, steps, warmup))
    if not rates or not args.learning_rate:
        return
    highest, rate = max(rates), args.learning_rate
    if math.isclose(highest, rate, rel_tol=1e-3):
        return
    if highest > rate:
        yield (
            f"{config.at(_ARGUMENTS)}the schedule raises the learning rate to {highest:.4g}, "
            f"above {_RATE} = {rate:g}"
        )
    elif warmup >= steps and (not highest or config.at(_WARMUP)):
        reached = (
            f"reaches only {highest:.4g} of {_RATE} = {rate:g}"
            if highest
            else "stays 0, and nothing is learnt"
        )
        yield (
            f"{config.at(_WARMUP)}the learning rate {reached}: {_WARMUP} = {args.warmup_steps:g} is not "
            f"less than the run's {counted(steps, 'step')}"
        )


def _rates(config: RunConfig, args: Any, steps: int, warmup: int) -> Iterator[float]:
    """The learning rates of the steps that are followed; none for a schedule that depends on the metrics."""
    name = f"the schedule {getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)}"
    place, remedy = config.at(_KIND), f"use another {_KIND}"
    if args.lr_scheduler_kwargs:
        place, remedy = (
            config.at(_ARGUMENTS) or place,
            f"change {_ARGUMENTS} = {shown(args.lr_scheduler_kwargs)}",
        )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
    try:
        schedule = get_scheduler(
            args.lr_scheduler_type,
            optimizer,
            num_warmup_steps=warmup,
            num_training_steps=steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ConfigError(f"{place}{name} is refused: {first_line(error)}; {remedy}.") from error
    if not isinstance(schedule, LambdaLR):
        return
    if warmup >= steps:
        place, remedy = config.at(_WARMUP) or place, f"{_WARMUP} must be less than {steps}"
    factor: Any = schedule.lr_lambdas[0]
    for step in _followed(steps, warmup):
        try:
            rate = args.learning_rate * factor(step)
            usable = 0 <= rate < math.inf
        except (ArithmeticError, TypeError, ValueError) as error:
            what = f"{name} fails at step {step} of {steps}: {first_line(error)}"
            raise ConfigError(f"{place}{what}; {remedy}.") from error
        if not usable:
            what = f"{name} gives a learning rate of {rate:.4g} at step {step} of {steps}"
            raise ConfigError(f"{place}{what}; {remedy}.")
        if step < steps:  # the one after the last step is computed, but not used
            yield rate


def _followed(steps: int, warmup: int) -> list[int]:
    """The finished steps after which the rate is computed, in ascending order."""
    stride = -(-steps // _FOLLOWED)
    around = {*range(warmup - 2, warmup + 3), *range(steps - 2, steps)}
    return sorted({*range(0, steps, stride), *(step for step in around if 0 <= step < steps), steps})
