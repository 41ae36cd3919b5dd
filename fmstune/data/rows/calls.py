"""Convert tool calls from the forms of OpenAI, Anthropic, LangChain and ShareGPT to OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fmstune.data.cells import loaded
from fmstune.data.rows.fields import Fields, Lost
from fmstune.errors import DataError

Call = dict[str, Any]

_ARGUMENTS = ("arguments", "parameters", "input", "args", "kwargs")
_TYPES = (None, "function", "function_call", "tool_call", "tool_use")
_NO_ARGUMENTS = ("index", "caller")
"""Fields of calls that never contain arguments."""


def read_calls(value: Any, where: str, name: str, lost: Lost) -> list[Call]:
    """The calls in a field called `name`: a list, a single one, or either as JSON text. Unread fields go to
    `lost`. Raises `DataError`."""
    value = loaded(value, where)
    calls = value if isinstance(value, (list, tuple)) else [value]
    return [_call(loaded(call, where), where, name, lost) for call in calls]


def _call(given: Any, where: str, name: str, lost: Lost) -> Call:
    outer = Fields(given, name, lost) if isinstance(given, Mapping) else None
    inner = outer
    if outer is not None and outer.has("function"):
        function = loaded(outer.get("function"), where)
        inner = Fields(function, f"{name}.function", lost) if isinstance(function, Mapping) else None
    if outer is None or inner is None or not isinstance(inner.given.get("name"), str):
        raise DataError(f"{where} has a tool call that is not JSON with a `name`.")
    called = inner.get("name")
    if inner is not outer and outer.given.get("name") == called:
        outer.get("name")
    if outer.given.get("type") in _TYPES:
        outer.get("type")
    own = {"id": outer.get("id")} if outer.has("id") else {}
    if inner is not outer and not inner.has(*_ARGUMENTS):
        arguments, found = outer.first(*_ARGUMENTS), outer.has(*_ARGUMENTS)
    else:
        arguments, found = inner.first(*_ARGUMENTS), inner.has(*_ARGUMENTS)
    others = [key for each in (inner, outer) for key in each.rest() if key not in _NO_ARGUMENTS]
    if not found and others:
        raise DataError(
            f"{where} has a call of {called!r} without `arguments`, but with `{others[0]}`; if these are its "
            "arguments, rename it to `arguments`, else remove the field."
        )
    for each in (inner, outer):
        each.lose_rest()
    return {
        "type": "function",
        **own,
        "function": {"name": called, "arguments": _read_arguments(arguments, where)},
    }


def _read_arguments(value: Any, where: str) -> Any:
    """An object, if they are one or the text of one, however often encoded; an empty one if there are none,
    which some services write as an empty text; any other text unchanged."""
    if isinstance(value, str) and not value.strip():
        return {}
    found = value
    while isinstance(found, str):
        if (again := loaded(found, where)) is found:
            return value
        found = again
    if found is None:
        return {}
    return dict(found) if isinstance(found, Mapping) else value
