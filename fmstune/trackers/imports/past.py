"""A run that another tool tracked, in fmstune's terms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmstune.trackers.records import MetricPoint, Status, TrackerError

_MOST_STEP = 1 << 53
"""Integers below this are exact in every JSON implementation."""


class NotASource(TrackerError):
    """Runs cannot be read from the given location."""


@dataclass(frozen=True, slots=True)
class PastText:
    """A text that was tracked; `time` is in Unix seconds."""

    text: str
    name: str
    stage: str | None
    step: int | None
    time: float


@dataclass(frozen=True, slots=True)
class PastRun:
    """`source` and `id` identify the run permanently; `created` is in Unix seconds. `points` are in the
    order in which they were tracked. `lost` lists what could not be read, one sentence each."""

    source: str
    id: str
    name: str
    created: float
    status: Status
    points: tuple[MetricPoint, ...] = ()
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    error: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    notes: str | None = None
    texts: tuple[PastText, ...] = ()
    lost: tuple[str, ...] = ()


def namespaces(params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Params by namespace: each mapping is one, values outside of mappings belong to `params`."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            found[str(name)] = dict(value)
        else:
            found.setdefault("params", {})[str(name)] = value
    return found


def step_of(*given: Any) -> int | None:
    """The first of these that is a step: an integer that a tracker can store."""
    for each in given:
        if type(each) is float and each.is_integer():
            each = int(each)
        if type(each) is int and abs(each) < _MOST_STEP:
            return each
    return None


def epoch_of(given: Any) -> float | None:
    """An epoch, if it is a finite number."""
    return float(given) if type(given) in (int, float) and math.isfinite(given) else None


def file_below(source: Path, name: str) -> Path | None:
    """The path, if it is the file of this name, or that file in the folder."""
    if source.is_file() and source.name == name:
        return source
    return source / name if (source / name).is_file() else None
