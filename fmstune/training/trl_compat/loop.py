"""What the training loop asks again at each step, though the answer is that of the step before."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import accelerate.optimizer
import transformers.trainer

_ASKED: tuple[tuple[Any, str], ...] = (
    (accelerate.optimizer, "is_lomo_available"),
    (transformers.trainer, "is_sagemaker_mp_enabled"),
)


@contextlib.contextmanager
def asked_once() -> Iterator[None]:
    """Within, the libraries ask once whether a package is there that they have code for: else they look
    through the folders of `sys.path` for LOMO twice at each step (0.35 ms), and parse SageMaker's variables.
    There is no setting for it."""
    given = [getattr(module, name) for module, name in _ASKED]
    try:
        for (module, name), ask in zip(_ASKED, given, strict=True):
            setattr(module, name, functools.cache(ask))
        yield
    finally:
        for (module, name), ask in zip(_ASKED, given, strict=True):
            setattr(module, name, ask)
