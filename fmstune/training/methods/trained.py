"""`Trained`: torch's part of a method, from the file that has its name."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fmstune.data.prepare import PreparedData
from fmstune.training.sdks import not_imported


def _nothing(data: PreparedData, args: Any) -> Iterator[str]:
    yield from ()


@dataclass(frozen=True)
class Trained:
    """What a method is done with. Each file of this folder but this one has one, as `TRAINED`."""

    arguments: type[Any]
    """TRL's class of the fields of `[training]`."""
    tuner: type[Any]
    """TRL's trainer, with what fmstune puts before it."""
    notes: Callable[[PreparedData, Any], Iterator[str]] = _nothing
    """What there is to say of the data, with these arguments."""


@functools.cache
def trained_by(method: str) -> Trained:
    """Torch's part of a method. TRL imports a trainer of its own when it is asked for it."""
    with not_imported():
        module = importlib.import_module(f"fmstune.training.methods.{method}")
    found: Trained = module.TRAINED
    return found
