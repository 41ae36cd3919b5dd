"""The one normaliser: fits metrics and params to what a tracker declares it can hold.

It never raises and never drops in silence: each adaptation is a sentence in the ledger, and the journal
keeps the original.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from fmstune.trackers.base import Limits

_MOST_CHANGES = 50


class Normaliser:
    """Adapts values to `limits`; `changes` lists what was changed, each kind of change once."""

    def __init__(self, limits: Limits, changes: tuple[str, ...] = ()) -> None:
        self._limits = limits
        self._changes = dict.fromkeys(changes)
        self._bad = re.compile(f"[^{limits.name_chars}]") if limits.name_chars else None

    @property
    def changes(self) -> tuple[str, ...]:
        """What was changed, in the order it was met."""
        return tuple(self._changes)

    def metrics(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Metrics as the tracker takes them: numbers under names it allows."""
        kept: dict[str, Any] = {}
        for name, value in values.items():
            if isinstance(value, bool):
                value = int(value)
            if not isinstance(value, (int, float)) and not self._limits.text_metrics:
                self._note(f"metric {name} is not a number and is kept in the journal only")
            elif isinstance(value, float) and not math.isfinite(value) and not self._limits.nan:
                self._note(f"metric {name} was not finite at times; those points are in the journal only")
            else:
                kept[self._name(name, kept)] = value
        return kept

    def params(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Params as the tracker takes them: nested or flat, with texts of a length it allows."""
        nested = values if self._limits.nested else flatten(values)
        return {key: self._param(value, key) for key, value in self._renamed(nested).items()}

    def _param(self, value: Any, key: str) -> Any:
        if isinstance(value, Mapping):
            return {name: self._param(item, f"{key}.{name}") for name, item in self._renamed(value).items()}
        if isinstance(value, list):
            return [self._param(item, key) for item in value]
        most = self._limits.max_value
        if isinstance(value, str) and most is not None and len(value) > most:
            self._note(f"param {key} was cut from {len(value)} to {most} characters")
            return value[:most]
        return value

    def _renamed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        renamed: dict[str, Any] = {}
        for name, value in values.items():
            renamed[self._name(name, renamed)] = value
        return renamed

    def _name(self, name: str, taken: Mapping[str, Any]) -> str:
        fitting = self._bad.sub("_", name) if self._bad else name
        if self._limits.max_name is not None:
            fitting = fitting[: self._limits.max_name]
        fitting = fitting or "_"
        stem, count = fitting, 1
        while fitting in taken:  # two names that became the same stay two
            count += 1
            suffix = f"_{count}"
            fitting = stem[: (self._limits.max_name or len(stem) + 9) - len(suffix)] + suffix
        if fitting != name:
            self._note(f"{name} is called {fitting}")
        return fitting

    def _note(self, change: str) -> None:
        if len(self._changes) < _MOST_CHANGES:
            self._changes[change] = None
        else:
            self._changes["and more"] = None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; an empty mapping stays a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
