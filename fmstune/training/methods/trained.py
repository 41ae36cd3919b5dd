"""`Trained`: the part of a method that needs torch, from the file named after it."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fmstune.data.prepare import PreparedData
from fmstune.training.sdks import sdks_deferred


def _nothing(data: PreparedData, args: Any) -> Iterator[str]:
    yield from ()


@dataclass(frozen=True)
class Trained:
    """How a method is trained. Each other file of this folder has one, as `TRAINED`."""

    arguments: type[Any]
    """TRL's class for the fields of `[training]`."""
    tuner: type[Any]
    """TRL's trainer, with fmstune's mixins."""
    notes: Callable[[PreparedData, Any], Iterator[str]] = _nothing
    """Messages about the data with these arguments."""


@functools.cache
def trained_by(method: str) -> Trained:
    """The part of a method that needs torch. TRL imports each trainer on demand."""
    with sdks_deferred():
        module = importlib.import_module(f"fmstune.training.methods.{method}")
    found: Trained = module.TRAINED
    return found
