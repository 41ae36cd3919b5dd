"""What a chat template does not write of a tool's schema, found by removing each part.

If a template writes the same text without a part, it does not express that part. Words do not show it, as a
parameter may be called `a`. Most templates write the schema as JSON, and need only one rendering.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fmstune.data.columns import has_value
from fmstune.errors import DataError

NAMES = "names of parameters"
DESCRIPTIONS = "descriptions"
VALUES = "values (enum, const, default, examples)"
RULES = "rules (types, anyOf, $ref, format, pattern, limits and the like)"
NOT_WRITTEN = "the chat template leaves out {} in the schemas of tools"
NO_NAME = "the chat template leaves out a tool that has no name"

_ELSE = "qzelse"
_BLANKS = re.compile(r"\s+")
_NO_WORDS = (
    "name", "title", "strict", "additionalProperties", "$schema", "$id", "cache_control", "annotations",
)  # fmt: skip
"""Fields for programs, and `name`, without which a tool is refused."""
_KINDS = {
    "description": DESCRIPTIONS,
    **dict.fromkeys(("enum", "const", "default", "examples", "example"), VALUES),
}
_SCHEMAS = ("items", "not", "parameters")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPS = ("$defs", "definitions", "patternProperties")

Write = Callable[[Any], str]
"""Renders a conversation with a tool, or without (`None`). Raises `DataError`."""
Path = tuple[str | int, ...]


@dataclass(frozen=True)
class ToolWords:
    """What is not written of each tool, cached, as most rows have the same tools."""

    write: Write
    _known: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def lost(self, tool: Mapping[str, Any]) -> tuple[str, ...]:
        """Remarks on the parts of a tool that are not written, each a clause without the row."""
        key = json.dumps(tool, ensure_ascii=False, default=str)
        if key not in self._known:
            self._known[key] = tuple(self._ask(tool))
        return self._known[key]

    def _ask(self, tool: Mapping[str, Any]) -> Iterator[str]:
        try:
            whole, without = self.write(tool), self.write(None)
        except DataError:
            return  # reported for the conversation itself
        function = tool.get("function")
        if not isinstance(function, Mapping):
            if whole == without:
                yield NO_NAME
            return
        if _as_json(function) in _BLANKS.sub("", whole):
            return
        found: set[str] = set()
        for kind, path in _parts(function, ()):
            if kind in found:
                continue
            try:
                same = self.write({**tool, "function": _left_out(function, path)}) == whole
            except DataError:
                continue  # it is required, so it is written
            if same:
                found.add(kind)
                yield NOT_WRITTEN.format(kind)


def _as_json(value: Any) -> str:
    return _BLANKS.sub("", json.dumps(value, ensure_ascii=False, default=str))


def _parts(schema: Mapping[str, Any], path: Path) -> Iterator[tuple[str, Path]]:
    """The meaningful parts of a schema, by the names of their kinds, including nested ones."""
    for key, value in schema.items():
        here = (*path, key)
        if key in _NO_WORDS or not has_value(value) or (key == "type" and "properties" in schema):
            continue
        if key == "properties" and isinstance(value, Mapping):
            for name, inner in value.items():
                yield NAMES, (*here, name)
                if isinstance(inner, Mapping):
                    yield from _parts(inner, (*here, name))
            continue
        if not (key == "parameters" and isinstance(value, Mapping) and value.get("properties")):
            # Some have the parameters themselves in place of a schema.
            named = path == ("parameters",) and key not in _MAPS and isinstance(value, Mapping)
            yield NAMES if named else _KINDS.get(key, RULES), here
        if key in _SCHEMAS and isinstance(value, Mapping):
            yield from _parts(value, here)
        elif key in _LISTS and isinstance(value, list):
            for number, inner in enumerate(value):
                if isinstance(inner, Mapping):
                    yield from _parts(inner, (*here, number))
        elif key in _MAPS and isinstance(value, Mapping):
            for name, inner in value.items():
                if isinstance(inner, Mapping):
                    yield from _parts(inner, (*here, name))


def _left_out(value: Any, path: Path) -> Any:
    """The value without the item at a path."""
    first, *rest = path
    if isinstance(value, list):
        assert isinstance(first, int)
        return [*value[:first], _left_out(value[first], tuple(rest)), *value[first + 1 :]]
    if not rest:
        # Keeps an empty object, without which a template may leave out more.
        return {key: each for key, each in value.items() if key != first} or {_ELSE: value[first]}
    return {**value, first: _left_out(value[first], tuple(rest))}
