"""What rows of conversations have besides their messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fmstune.data.cells import loaded
from fmstune.data.columns import SYSTEMS, TEMPLATE_KWARGS, Row, has_value, system_of
from fmstune.data.rows.messages import Message
from fmstune.data.rows.tools import read_tools
from fmstune.data.rows.unused import Unused
from fmstune.errors import DataError

BESIDE_CHATS = (*SYSTEMS, "tools", "functions", TEMPLATE_KWARGS)
"""Columns that are read in addition to those of any conversation."""


def template_inputs(row: Row, place: str, unused: Unused) -> dict[str, Any]:
    """What a chat template is given with a row's conversation: its tools, if any, and values for its
    variables, as TRL and SmolTalk 2 have them. OpenAI's older files have `functions`; those that differ from
    `tools` are counted as not used.

    Raises `DataError`.
    """
    tools, functions = (
        read_tools(row[name], place) if has_value(row.get(name)) and row[name] != "null" else []
        for name in ("tools", "functions")
    )
    if tools and any(function not in tools for function in functions):
        unused.column("functions", place)
    found = tools or functions
    return ({"tools": found} if found else {}) | _template_kwargs(row, place)


def _template_kwargs(row: Row, place: str) -> dict[str, Any]:
    value = row.get(TEMPLATE_KWARGS)
    if not has_value(value) or value == "null":
        return {}
    given = loaded(value, f"{place}: `{TEMPLATE_KWARGS}`")
    if not isinstance(given, Mapping):
        raise DataError(
            f"{place}: `{TEMPLATE_KWARGS}` takes an object of variables of the chat template, such as "
            '{"enable_thinking": false}.'
        )
    # Tables have null for variables that only other rows set.
    values = {str(name): each for name, each in given.items() if each is not None}
    return {TEMPLATE_KWARGS: values} if values else {}


def with_system(messages: list[Message], row: Row, place: str, unused: Unused) -> list[Message]:
    """The messages after the row's own system text, if it has one and they do not begin with one."""
    system = system_of(row, place)
    if not system:
        return messages
    if messages and messages[0]["role"] in ("system", "developer"):
        if messages[0].get("content") != system:
            name = next(name for name in SYSTEMS if has_value(row.get(name)))
            unused.add(f"the column `{name}` is not used: the conversation has a system message", place)
        return messages
    return [{"role": "system", "content": system}, *messages]


def require_answer(messages: list[Message], place: str, key: str) -> None:
    """Raise `DataError` if no message is the assistant's."""
    if not any(message["role"] == "assistant" for message in messages):
        raise DataError(
            f"{place}: no message of `{key}` is the assistant's; there is nothing to learn from it."
        )
