"""Lines of the journal as JSON, written and read.

What Python's own `json` makes of them holds. `orjson` does nearly all of it, in a fifth of the time: a
training waits for what is written, and journals of ten million lines are read. It knows no surrogates and no
numbers that are not finite, and reads integers beyond 64 bits as floats: such lines are left to `json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from fmstune.trackers.values.plain import plain

NON_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
"""Metrics that are not finite, in the journal; `texts` names those that are texts with these words."""

_METRICS = b'"kind":"metrics"'
_BITS_63 = float(1 << 63)
_SIMPLE = (int, str, bool, type(None))
_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":"), ensure_ascii=False, default=plain).encode


def body(record: Mapping[str, Any]) -> bytes:
    """The line of a record, behind the beginning that says its number."""
    try:
        text = _encode(record)
    except (ValueError, RecursionError):  # a number that is not finite, say: JSON has no word for it
        text = _encode(plain(record))
    return (text[1:] + "\n").encode("utf-8", "backslashreplace")


def body_of_finite(record: Mapping[str, Any]) -> bytes:
    """As `body`, for a record of nothing but texts, finite numbers and `None`."""
    try:
        return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)[1:]
    except TypeError:  # a surrogate, or an integer beyond 64 bits
        return body(record)


def loads(line: bytes) -> Any:
    """What a line holds. Raises `ValueError` or `RecursionError` when it is no JSON."""
    if _METRICS in line:  # nearly all of a journal of millions
        try:
            found = orjson.loads(line)
        except ValueError:
            pass  # `json` may take it
        else:
            if is_exact(found):
                return found
    return json.loads(line.decode())  # of bytes, json looks for their encoding first


def is_exact(raw: Any) -> bool:
    """Whether what `orjson` has read are metrics as they are written by the million, in which no number can
    have been an integer beyond 64 bits."""
    try:
        values, stage = raw["values"], raw["stage"]
        if not (len(raw) == 7 and raw["kind"] == "metrics" and type(raw["seq"]) is int):
            return False
        if not (stage is None or type(stage) is str):
            return False
        for value in (raw["time"], raw["step"], raw["epoch"], *values.values()):
            if type(value) is float:
                if not -_BITS_63 < value < _BITS_63:
                    return False
            elif type(value) not in _SIMPLE:
                return False
        return True
    except (TypeError, KeyError, AttributeError):
        return False


def numbers(values: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """The values of metrics, with the numbers that the journal has words for; `texts` are no such numbers."""
    found = dict(values)
    if str in map(type, found.values()):
        for key, value in found.items():
            if isinstance(value, str) and key not in texts:
                found[key] = NON_FINITE.get(value, value)
    return found
