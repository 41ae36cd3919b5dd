"""Conversations as lists of {role, content}: brought into that form, and checked."""

from __future__ import annotations

import json
from typing import Any

from fmstune.tuning.errors import DataError
from fmstune.tuning.reading.columns import SYSTEMS, Row, system_of
from fmstune.tuning.reading.unused import Unused

Message = dict[str, Any]

BESIDE_CHATS = (*SYSTEMS, "tools")
"""Columns that are read beside those of any conversation."""

ROLES = ("system", "user", "assistant", "tool", "developer")
_SPEAKERS = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}
"""Who speaks in ShareGPT's rows, whose messages are {from, value}."""


def from_sharegpt(turns: Any, place: str, key: str) -> Any:
    """Messages of {from, value} as {role, content}; what is no such message is left for the checks."""
    if not isinstance(turns, list):
        return turns
    return [_from_turn(turn, number, place, key) for number, turn in enumerate(turns, 1)]


def _from_turn(turn: Any, number: int, place: str, key: str) -> Any:
    if not isinstance(turn, dict) or "from" not in turn:
        return turn
    speaker, value = turn["from"], turn.get("value")
    role = _SPEAKERS.get(speaker.lower()) if isinstance(speaker, str) else None
    if role is None:
        raise DataError(
            f"{place}: message {number} of `{key}` is from {speaker!r}; it may be from "
            f"{', '.join(_SPEAKERS)}."
        )
    if speaker.lower() == "function_call":
        return {"role": role, "content": "", "tool_calls": _calls(value, number, place)}
    return {"role": role, "content": value}


def _calls(value: Any, number: int, place: str) -> list[Message]:
    try:
        calls = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        calls = None
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and "name" in call for call in calls):
        raise DataError(f"{place}: message {number} is a function_call, and no JSON with a `name`.")
    return [{"type": "function", "function": call} for call in calls]


def with_tools(row: Row, place: str) -> dict[str, Any]:
    """The tools of a row's conversation, if it has any. Raises `DataError`."""
    if not row.get("tools"):
        return {}
    check_tools(row["tools"], place)
    return {"tools": row["tools"]}


def with_system(messages: list[Message], row: Row, place: str, unused: Unused) -> list[Message]:
    """The messages after the row's own system text, if it has one and they do not begin with one."""
    system = system_of(row, place)
    if not system:
        return messages
    if messages and messages[0]["role"] in ("system", "developer"):
        if messages[0].get("content") != system:
            unused.add("the column `system` is not used: the conversation has a system message", place)
        return messages
    return [{"role": "system", "content": system}, *messages]


def check_messages(messages: Any, place: str, key: str) -> None:
    """Raises `DataError` for what is no list of messages with at least one in it."""
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{place}: `{key}` takes a list of messages with at least one in it.")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or "role" not in message:
            raise DataError(f"{place}: message {number} of `{key}` is no object with `role` and `content`.")
        if message["role"] not in ROLES:
            raise DataError(
                f"{place}: message {number} has the role {message['role']!r}; roles are {', '.join(ROLES)}."
            )
        if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
            raise DataError(f"{place}: message {number} has no text as its `content`.")


def require_answer(messages: list[Message], place: str, key: str) -> None:
    """Raises `DataError` when no message is the assistant's."""
    if not any(message["role"] == "assistant" for message in messages):
        raise DataError(
            f"{place}: no message of `{key}` is the assistant's; there is nothing to learn from it."
        )


def check_tools(tools: Any, place: str) -> None:
    """Raises `DataError` for tools that are no list of schemas, nor one as JSON text."""
    try:
        tools = json.loads(tools) if isinstance(tools, str) else tools
    except (ValueError, RecursionError):
        tools = None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError(f"{place}: `tools` takes a list of JSON schemas, or such a list as a JSON text.")
