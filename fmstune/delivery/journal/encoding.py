"""Encode and decode the journal's lines as JSON.

The result equals that of Python's own `json`. `orjson` does nearly all of it, in a fifth of the time: a
training waits while lines are written, and journals of ten million lines are read. It supports neither
surrogates nor non-finite numbers, and reads integers beyond 64 bits as floats: such lines are left to
`json`.

Each event's line ends with the CRC-32 of what is before it, so that a line whose bytes have changed is not
taken for an event with other values. Earlier versions wrote none.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from fmstune.trackers.values.plain import plain

NON_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
"""Non-finite metrics in the journal; `texts` lists those that are strings with the same spelling."""

CHECKSUM = "crc"
KEYS = 7
"""The number of keys in a line of metrics, without its checksum: seq, time, kind, stage, step, epoch and
values."""

_METRICS = b'"kind":"metrics"'
BITS_63 = float(1 << 63)
_SIMPLE = (int, str, bool, type(None))
_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":"), ensure_ascii=False, default=plain).encode


def numbered(seq: int, body: bytes) -> bytes:
    """The line of the event with this number."""
    text = b'{"seq":%d,%b' % (seq, body)
    return b'%b,"crc":"%08x"}\n' % (text, zlib.crc32(text))


def is_intact(line: bytes) -> bool:
    """Whether a line has the checksum of its bytes, or none."""
    line = line.rstrip()
    if line[-18:-10] != b',"crc":"':
        return True
    return line[-10:] == b'%08x"}' % zlib.crc32(line[:-18])


def body(record: Mapping[str, Any]) -> bytes:
    """The part of a record's line between its number and its checksum."""
    try:
        text = _encode(record)
    except (ValueError, RecursionError):  # a non-finite number, for example: JSON has no value for it
        text = _encode(plain(record))
    return text[1:-1].encode("utf-8", "backslashreplace")


def body_of_finite(record: Mapping[str, Any]) -> bytes:
    """Like `body`, for a record of only strings, finite numbers and `None`."""
    try:
        return orjson.dumps(record)[1:-1]
    except TypeError:  # a surrogate, or an integer beyond 64 bits
        return body(record)


def loads(line: bytes) -> Any:
    """Parse a line. Raises `ValueError` or `RecursionError` if it is not JSON, or damaged."""
    if not is_intact(line):
        raise ValueError("the line's checksum is not that of its bytes")
    if _METRICS in line:  # nearly all lines of a large journal
        try:
            found = orjson.loads(line)
        except ValueError:
            pass  # `json` may accept it
        else:
            if is_exact(found):
                return found
    return json.loads(line.decode())  # given bytes, json would detect their encoding first


def is_exact(raw: Any) -> bool:
    """Whether what `orjson` has read are ordinary metrics, in which no number can have been an integer beyond
    64 bits."""
    try:
        values, stage = raw["values"], raw["stage"]
        if not (
            len(raw) == KEYS + (CHECKSUM in raw) and raw["kind"] == "metrics" and type(raw["seq"]) is int
        ):
            return False
        if not (stage is None or type(stage) is str):
            return False
        for value in (raw["time"], raw["step"], raw["epoch"], *values.values()):
            if type(value) is float:
                if not -BITS_63 < value < BITS_63:
                    return False
            elif type(value) not in _SIMPLE:
                return False
        return True
    except (TypeError, KeyError, AttributeError):
        return False


def numbers(values: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """The values of metrics, with the journal's strings for numbers converted; `texts` stay strings."""
    found = dict(values)
    if str in map(type, found.values()):
        for key, value in found.items():
            if isinstance(value, str) and key not in texts:
                found[key] = NON_FINITE.get(value, value)
    return found
