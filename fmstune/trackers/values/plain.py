"""Foreign values as JSON, in bounded time and space, whatever the values are or do.

A value may be a graph: a tree whose nodes know their parent, lists that share lists. Walking every path
through it takes exponential time, so one call visits a bounded number of values. Only a foreign `__str__`
that never returns cannot be handled from within its own thread.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import itertools
import math
import os
import sys
import types
from collections.abc import ItemsView, Iterable, KeysView, Mapping, Sequence, ValuesView
from typing import Any

from fmstune.errors import is_stop
from fmstune.secrets.redaction import beginning

MOST_VALUES = 100_000
"""The most values, nested ones included, kept of one call by the user."""
MOST_TABLE_VALUES = 1_000_000
_MOST_CHARACTERS = 1 << 26
_MOST_TEXT = 10_000
"""The most characters kept of an unknown object's text."""
_MOST_IN_NAME = 100
_DEEPEST = 64
_MOST_BITS = 4096
_MOST_ITEMS = 10_000
"""The most numbers of an array, or bytes, that are kept; of longer ones, only the size."""
_MOST_TRIES = 5
"""Attempts to read a mapping that another thread changes meanwhile."""

_NUMBERS = frozenset({int, float})
_SIMPLE = (str, bool, int, float, type(None))
_NON_FINITE = ("NaN", "Infinity", "-Infinity")


def plain(value: Any, depth: int = _DEEPEST) -> Any:
    """Convert a value to JSON types. Never raises, whatever the value does.

    Dataclasses become mappings, enums their value, paths text, dates ISO 8601, bytes text with escapes,
    sets lists, tensors and arrays numbers or lists of at most 10,000 numbers, and non-finite numbers strings.
    Anything unknown becomes its text. A value that contains itself, is nested deeper than `depth` or exceeds
    `MOST_VALUES` is cut, with a note in its place.
    """
    return Walk().plain(value, depth)


def text_of(value: Any) -> str:
    """The value as text, for use as a name. Never raises."""
    found = Walk(_MOST_IN_NAME).plain(value)
    return found if isinstance(found, str) else _text(found)


def mapping_of(value: Any, walk: Walk | None = None) -> dict[str, Any]:
    """Convert a mapping to JSON types; an unreadable one becomes its text, under the key `value`."""
    found = (walk or Walk()).plain(value)
    return found if isinstance(found, dict) else {"value": found}


def is_mapping(value: Any) -> bool:
    """Whether the value is a mapping. Never raises, as a foreign `__class__` may."""
    try:
        return isinstance(value, Mapping)
    except BaseException as error:
        if is_stop(error):
            raise
        return False


class Walk:
    """One walk through values, at most `most` of them in total."""

    def __init__(self, most: int = MOST_VALUES) -> None:
        self._most = self._left = most
        self._characters = _MOST_CHARACTERS
        self._above: set[int] = set()  # the containers around the current value, by identity

    def plain(self, value: Any, depth: int = _DEEPEST) -> Any:
        """Convert a value to JSON types; see `plain`."""
        self._left -= 1
        kind = type(value)
        if kind is str:
            return self._kept(value)
        if kind is bool or value is None:
            return value
        try:
            if isinstance(value, enum.Enum):
                return self.plain(value.value, depth - 1) if depth > 0 else _named(value, "nested too deep")
            if isinstance(value, float):
                return _finite(float(value))
            if isinstance(value, int):
                # Python refuses to print the largest.
                bits = value.bit_length()
                return int(value) if bits <= _MOST_BITS else f"<a number of {bits} bits>"
            if isinstance(value, str):
                return self._kept(str.__str__(value))
            return self._object(value, depth)
        except BaseException as error:  # whatever a foreign object raises, only its text is left
            if is_stop(error):
                raise
            return self._kept(_text(value))

    def _object(self, value: Any, depth: int) -> Any:
        if isinstance(value, (bytes, bytearray, memoryview)):
            # The bytes after the kept ones show whether a secret is cut there.
            text = bytes(value[: 8 * _MOST_ITEMS]).decode("utf-8", "backslashreplace")
            if len(value) <= _MOST_ITEMS:
                return self._kept(text)
            return self._kept(f"{beginning(text, _MOST_ITEMS)}… ({len(value)} bytes)")
        if isinstance(value, os.PathLike):
            return self._kept(os.fsdecode(value))
        if isinstance(value, (datetime.date, datetime.time)):
            return self._kept(value.isoformat())
        if id(value) in self._above:
            return _named(value, "nested in itself")
        if depth <= 0:
            # Not its text: a container's text is as long as all the paths through it.
            return _named(value, "nested too deep") if _is_container(value) else self._kept(_text(value))
        self._above.add(id(value))
        try:
            return self._nested(value, depth)
        finally:
            self._above.discard(id(value))

    def _nested(self, value: Any, depth: int) -> Any:
        if isinstance(value, Mapping):
            return self._mapping(self._items(value), depth)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            names = [each.name for each in dataclasses.fields(value)]
            return self._mapping(((name, getattr(value, name)) for name in names), depth)
        if isinstance(value, types.SimpleNamespace):
            return self._mapping(self._items(vars(value)), depth)
        if isinstance(value, (set, frozenset)):
            # One more than is kept, so that the cut is noticed.
            return self._list(sorted(itertools.islice(value, max(self._left, 0) + 1), key=_text), depth)
        if _is_container(value):
            return self._list(value, depth)
        if not hasattr(value, "tolist"):
            if not hasattr(value, "item"):
                return self._number(value)
            item = value.item()
            return self.plain(item, 0) if isinstance(item, _SIMPLE) else self._kept(_text(value))
        # A tensor, an array or a scalar of NumPy. One number in it is that number, whatever the shape.
        shape = tuple(int(size) for size in itertools.islice(value.shape, _DEEPEST))
        if math.prod(shape) > _MOST_ITEMS:
            return f"<{type(value).__name__} of shape {list(shape)}>"
        if math.prod(shape) != 1:
            return self.plain(value.tolist(), depth - 1)
        masked = sys.modules.get("numpy.ma")
        if masked is not None and isinstance(value, masked.MaskedArray) and value.mask:
            return "NaN"  # its item is whatever is behind the mask, such as 0.0
        item = value.item()  # of a `longdouble`, itself
        return self._number(item) if type(item) is type(value) else self.plain(item, depth - 1)

    def _number(self, value: Any) -> Any:
        """A number of another type, such as `Decimal` and `Fraction`, as a float; else the text."""
        if not hasattr(type(value), "__float__"):
            return self._kept(_text(value))
        number = float(value)
        # Too large for a float, or not a number: its text says more.
        beyond = math.isinf(number) and not _text(value).lower().lstrip("+-").startswith("inf")
        return self._kept(_text(value)) if beyond else _finite(number)

    def _list(self, items: Iterable[Any], depth: int) -> list[Any]:
        found: list[Any] = []
        for item in items:
            if self.is_over:
                found.append(self.cut)
                break
            found.append(self.plain(item, depth - 1))
        return found

    def _mapping(self, items: Iterable[tuple[Any, Any]], depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        counts: dict[str, int] = {}
        for key, item in items:
            if self.is_over:
                found["…"] = self.cut
                break
            name = stem = self._key(key)
            while name in found:  # `1` and `"1"` are different keys here, and stay so
                counts[stem] = counts.get(stem, 1) + 1
                name = f"{stem} ({counts[stem]})"
            found[name] = self.plain(item, depth - 1)
        return found

    def _items(self, value: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
        """The items of a mapping that another thread may be adding to. They are copied first, which is
        usually one atomic step of the interpreter for a dict, and retried when it was not."""
        most = max(self._left, 0) + 1  # one more than is kept, so that the cut is noticed
        for _ in range(_MOST_TRIES):
            try:
                return list(itertools.islice(value.items(), most))
            except RuntimeError:  # it changed its size
                continue
        # A subclass of dict may read files here, or raise; its own items are better than its text.
        held = dict.items(value) if isinstance(value, dict) else value.items()
        return list(itertools.islice(held, most))

    def _key(self, key: Any) -> str:
        if type(key) is str:
            return self._kept(key)
        if isinstance(key, tuple) and all(isinstance(part, _SIMPLE) for part in key):
            return self._kept(_text(key))
        found = self.plain(key, 2)
        return found if isinstance(found, str) else self._kept(str(found))

    def _kept(self, text: str) -> str:
        """As much of the text as fits."""
        room, self._characters = self._characters, max(self._characters - len(text), 0)
        if len(text) <= room:
            return text
        return (
            f"{beginning(text, room)}… <cut: {len(text)} characters, more than {_MOST_CHARACTERS:,} together>"
        )

    @property
    def is_over(self) -> bool:
        """Whether no further value fits."""
        return self._left <= 0

    @property
    def cut(self) -> str:
        """The note in the place of values that were cut."""
        return f"<cut: more than {self._most:,} values>"


def number(value: Any) -> Any:
    """A metric as a number if it is one, whatever library it comes from, else as a JSON value."""
    if type(value) is float or type(value) is int:
        return value
    simple = plain(value)
    return float(simple) if simple in _NON_FINITE and not isinstance(value, str) else simple


def _is_container(value: Any) -> bool:
    """Whether the value holds others that can be read one by one."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return True
    several = (Mapping, list, tuple, set, frozenset, collections.deque, collections.UserList)
    return isinstance(value, (*several, KeysView, ValuesView, ItemsView, types.SimpleNamespace))


def _named(value: Any, why: str) -> str:
    return f"<{type(value).__name__}, {why}>"


def _finite(value: float) -> float | str:
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _text(value: Any) -> str:
    try:
        text = str.__str__(str(value))  # exactly `str`: a subclass may do anything later
    except (
        BaseException
    ) as error:  # a foreign `__str__` may raise anything, and this is called in the training
        if is_stop(error):
            raise
        return f"<{type(value).__name__}>"
    kept = beginning(text, _MOST_TEXT)
    return text if len(text) <= _MOST_TEXT else f"{kept}… ({len(text)} characters)"


def are_finite(values: Sequence[Any]) -> bool:
    """Whether all values are finite numbers, of Python's own types."""
    try:
        return _NUMBERS.issuperset(map(type, values)) and all(map(math.isfinite, values))
    except OverflowError:  # an integer beyond all floats
        return False
