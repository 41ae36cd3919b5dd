"""Format values for tables of runs. Names and values in runs are untrusted text: line breaks and escape
sequences are shown as escapes."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from time import localtime as _localtime
from time import strftime as _strftime
from typing import Any

MISSING = "-"
_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


_HARMLESS = "\u3000\u200c\u200d"
"""Unprintable to Python, but used in languages: the wide space of CJK, and the (non-)joiners."""


def printable(text: str) -> str:
    """The text on one line, with control characters escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in _HARMLESS else repr(char)[1:-1] for char in text)


def cell(value: Any) -> str:
    """Format a value for a table: numbers with four significant digits, a missing value as a dash."""
    if value is None or value == "":
        return MISSING
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**15 else f"{value:.4g}" if abs(value) < 10**300 else "very large"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(cell, value)) or MISSING
    if isinstance(value, Mapping):
        return printable(json.dumps(value, ensure_ascii=False, default=str))
    return printable(str(value))


def duration(seconds: float | None) -> str:
    """Format seconds in the two largest units: `2.3s`, `4m10s`, `3h05m`, `2d04h`."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 60:
        return f"{max(seconds, 0.0):.1f}s"
    for (unit, size), (below, smaller) in itertools.pairwise(_UNITS):
        if seconds >= size:
            whole, rest = divmod(int(seconds), size)
            return f"{whole}{unit}{rest // smaller:02}{below}"
    return MISSING  # not reached: a minute has a unit


def moment(time: float | None, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """Format Unix seconds as date and time; a dash if they are out of range."""
    try:
        return MISSING if time is None else _strftime(form, _localtime(time))
    except (OverflowError, ValueError, OSError):
        return MISSING


def age(seconds: float | None) -> str:
    """Format seconds in the largest unit: `5s`, `3m`, `2h`, `4d`."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    unit, size = next((each for each in _UNITS if seconds >= each[1]), _UNITS[-1])
    return f"{max(int(seconds // size), 0)}{unit}"


def strict(value: Any) -> Any:
    """Convert a value to strict JSON: non-finite numbers are strings, as in the journal."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    return value


def _number(value: float) -> str:
    if value.is_integer() and 1e4 <= abs(value) < 1e15:
        return f"{value:.0f}"
    return f"{value:.4g}"
