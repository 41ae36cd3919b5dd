"""Values as tables of runs show them. What runs are called, and what they hold, is somebody's text: a line
break or an escape sequence in it is shown, and not obeyed."""

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
"""What Python calls unprintable and languages write: the wide space of CJK, and the (non-)joiners."""


def printable(text: str) -> str:
    """The text on one line, with what a terminal would obey as its escape."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in _HARMLESS else repr(char)[1:-1] for char in text)


def cell(value: Any) -> str:
    """A value as a table shows it: numbers to four digits, nothing as a dash."""
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
    """Seconds in the two largest units that they have: `2.3s`, `4m10s`, `3h05m`, `2d04h`."""
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
    """Unix seconds as a date and a time of day; a dash where no calendar has such a day."""
    try:
        return MISSING if time is None else _strftime(form, _localtime(time))
    except (OverflowError, ValueError, OSError):
        return MISSING


def age(seconds: float | None) -> str:
    """Seconds in the largest unit that they have: `5s`, `3m`, `2h`, `4d`."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    unit, size = next((each for each in _UNITS if seconds >= each[1]), _UNITS[-1])
    return f"{max(int(seconds // size), 0)}{unit}"


def strict(value: Any) -> Any:
    """The value as strict JSON can hold it: numbers that are not finite are texts, as in the journal."""
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
