"""Nulls in tools and calls that stand for nothing.

A table gives each tool the parameters of all, and each call the arguments of all, with null where a row has
none. Tables are read without such fields; `datasets` writes them to JSON, where a null may also be a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fmstune.data.columns import Row

NOT_USED = "null fields of tools and calls are not used: no tool has such a parameter"

_MAY_BE_NULL = ("default", "const", "example")
_VALUES = (*_MAY_BE_NULL, "enum", "examples")
"""Keys of a JSON schema that have values, not schemas."""
_NAMES = ("properties", "$defs", "definitions", "patternProperties")
"""Keys of a JSON schema whose values are schemas by name."""


def without_padding(row: Row) -> tuple[Row, bool]:
    """A row without nulls that no JSON schema can have, and arguments that are null and that their tool does
    not have; and whether there were any."""
    if not row.get("tools"):
        return row, False
    tools = [_tool(tool) for tool in row["tools"]]
    functions = [tool["function"] for tool in tools if isinstance(tool.get("function"), Mapping)]
    parameters = {str(function.get("name")): function.get("parameters") for function in functions}
    made = {**row, "tools": tools}
    for key, messages in row.items():
        if key != "tools" and isinstance(messages, list):
            made[key] = [_message(message, parameters) for message in messages]
    return (made, True) if made != row else (row, False)


def _tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = tool.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("parameters"), Mapping):
        return tool
    return {**tool, "function": {**function, "parameters": _schema(function["parameters"])}}


def _schema(value: Any, *, names: bool = False) -> Any:
    if isinstance(value, list):
        return [_schema(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    return {
        key: each if key in _VALUES and not names else _schema(each, names=key in _NAMES and not names)
        for key, each in value.items()
        if each is not None or (key in _MAY_BE_NULL and not names)
    }


def _message(message: Any, parameters: Mapping[str, Any]) -> Any:
    if not isinstance(message, Mapping) or not message.get("tool_calls"):
        return message
    calls = [
        call | {"function": function | {"arguments": _value(function["arguments"], parameters[name])}}
        if (name := (function := call["function"])["name"]) in parameters
        else call
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _value(value: Any, schema: Any) -> Any:
    """A value without the null fields that its schema does not have."""
    schema = schema if isinstance(schema, Mapping) else {}
    if isinstance(value, list):
        return [_value(item, schema.get("items")) for item in value]
    known = schema.get("properties")
    if not isinstance(value, Mapping) or not isinstance(known, Mapping):
        return value
    return {
        key: _value(each, known.get(key)) for key, each in value.items() if each is not None or key in known
    }
