"""Lookups that the training loop repeats at each step although the result never changes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import accelerate.optimizer
import transformers.trainer

from fmstune.training.tuned_trainer import as_trainer

_LOOKUPS: tuple[tuple[Any, str], ...] = (
    (accelerate.optimizer, "is_lomo_available"),
    (transformers.trainer, "is_sagemaker_mp_enabled"),
)


@contextlib.contextmanager
def cached_lookups() -> Iterator[None]:
    """Cache, within this context, whether optional packages are available. Otherwise the libraries search
    `sys.path` for LOMO twice per step (0.35 ms) and parse SageMaker's variables; no setting prevents it."""
    originals = [getattr(module, name) for module, name in _LOOKUPS]
    try:
        for (module, name), lookup in zip(_LOOKUPS, originals, strict=True):
            setattr(module, name, functools.cache(lookup))
        yield
    finally:
        for (module, name), lookup in zip(_LOOKUPS, originals, strict=True):
            setattr(module, name, lookup)


class CachedLookups:
    """A mixin for a TRL Trainer, before it.

    The walks over all modules at each step (`model.train`, `model.zero_grad`: 0.5 ms for the demo) stay:
    callbacks replace both methods, and add modules in ways that torch's registration hooks do not see.
    """

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, with cached lookups."""
        this = as_trainer(self)
        if this.is_deepspeed_enabled:
            # The Trainer tells accelerate 1, as it accumulates itself. accelerate then takes DeepSpeed's
            # number, with a warning about a mismatch that no user can act on.
            this.accelerator.gradient_accumulation_steps = this.args.gradient_accumulation_steps
        with cached_lookups():
            return as_trainer(super()).train(*args, **kwargs)
