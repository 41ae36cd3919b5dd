"""Convert a conversation's tools from the forms of OpenAI, Anthropic, MCP, Gemini and Bedrock to OpenAI's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fmstune.data.cells import loaded
from fmstune.errors import DataError

Tool = dict[str, Any]

_SCHEMAS = ("input_schema", "inputSchema")
"""The names that Anthropic and MCP use for `parameters`; templates only know that name."""


def read_tools(value: Any, place: str) -> list[Tool]:
    """Tools in OpenAI's current form, from a list of schemas, also bare ones, or such a list as JSON.

    Raises `DataError` for anything else.
    """
    tools = loaded(value, place)
    if isinstance(tools, Mapping) and tools.keys() & {
        "name",
        "function",
        "function_declarations",
        "toolSpec",
    }:
        tools = [tools]
    # Lists of tools as JSON texts come from tables, which cannot store different schemas in a column.
    tools = [loaded(tool, place) for tool in tools] if isinstance(tools, (list, tuple)) else None
    if tools is None or not all(isinstance(tool, dict) for tool in tools):
        raise DataError(f"{place}: `tools` takes a list of JSON schemas, or such a list as a JSON text.")
    return [each for tool in tools for each in _tools_of(tool, place)]


def _tools_of(tool: Tool, place: str) -> Iterator[Tool]:
    declared = tool.get("function_declarations")
    if isinstance(declared, list) and tool.keys() == {"function_declarations"}:  # Gemini's
        yield from ({"type": "function", "function": _function(each, place)} for each in declared)
    elif isinstance(tool.get("toolSpec"), dict) and tool.keys() == {"toolSpec"}:  # Bedrock's
        yield {"type": "function", "function": _function(tool["toolSpec"], place)}
    elif "function" in tool:
        yield tool | {"function": _function(loaded(tool["function"], place), place)}
    elif "name" in tool:
        bare = {key: value for key, value in tool.items() if (key, value) != ("type", "function")}
        yield {"type": "function", "function": _function(bare, place)}
    else:
        yield tool


def _function(function: Any, place: str) -> Any:
    """A function with its schema under OpenAI's name, as an object. Raises `DataError`."""
    if not isinstance(function, Mapping):
        return function
    named = next((key for key in _SCHEMAS if key in function and "parameters" not in function), None)
    made = {("parameters" if key == named else key): value for key, value in function.items()}
    if "parameters" not in made:
        return made
    schema = loaded(made["parameters"], place)
    if isinstance(schema, Mapping) and schema.keys() == {"json"}:  # Bedrock nests it one level deeper
        schema = schema["json"]
    return made | {"parameters": schema}
