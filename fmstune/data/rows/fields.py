"""The fields of objects inside a row (messages, calls, parts). Each read is recorded, so that the unread ones
are reported without extra code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fmstune.data.columns import has_value
from fmstune.data.rows.unused import Unused


@dataclass
class Lost:
    """What is not used inside the conversations of one row: fields by their dotted names, like
    `messages.tool_calls.index`, and remarks. Each kind counts once per row."""

    fields: dict[str, None] = field(default_factory=dict)
    remarks: dict[str, None] = field(default_factory=dict)

    def report(self, unused: Unused, place: str) -> None:
        """Count all of it."""
        for name in self.fields:
            unused.column(name, place)
        for remark in self.remarks:
            unused.add(remark, place)


class Fields:
    """An object called `name`, like `messages.tool_calls`, whose fields are only read through this."""

    def __init__(self, given: Mapping[str, Any], name: str, lost: Lost) -> None:
        self.given, self.name, self._lost = given, name, lost
        self._read: set[str] = set()

    def get(self, key: str) -> Any:
        """The value of a field, which counts as read."""
        self._read.add(key)
        return self.given.get(key)

    def first(self, *keys: str) -> Any:
        """The value of a field with several names: the first that is not empty. Other names with the same
        value are read with it; a different value is recorded as lost."""
        there = [key for key in keys if self.given.get(key) is not None]
        chosen = next((key for key in there if has_value(self.given[key])), next(iter(there), None))
        if chosen is None:
            return None
        for key in there:
            if self.given[key] != self.given[chosen]:
                self.lose(key)
        self._read.update(keys)
        return self.given[chosen]

    def has(self, *keys: str) -> bool:
        """Whether one of the fields has a value."""
        return any(self.given.get(key) is not None for key in keys)

    def rest(self) -> Iterator[str]:
        """The non-empty fields that have not been read."""
        return (key for key, value in self.given.items() if key not in self._read and has_value(value))

    def lose(self, key: str) -> None:
        """Record a field as not used, if it is not empty."""
        self._read.add(key)
        if has_value(self.given[key]):
            self._lost.fields[f"{self.name}.{key}"] = None

    def lose_rest(self) -> None:
        """Record all fields that have not been read."""
        for key in list(self.rest()):
            self.lose(key)
