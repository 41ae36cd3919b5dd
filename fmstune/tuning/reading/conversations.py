"""Conversations as lists of {role, content}: brought into that form, and checked."""

from __future__ import annotations

import json
from typing import Any

from fmstune.tuning.errors import DataError
from fmstune.tuning.reading.formats import Row, kind_in_words

Message = dict[str, Any]

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


def with_system(messages: list[Message], row: Row) -> list[Message]:
    """The messages after the row's own `system` text, if it has one and they do not begin with one."""
    system = row.get("system")
    if not isinstance(system, str) or not system.strip() or messages[0]["role"] in ("system", "developer"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def parsed(value: Any) -> Any:
    """A list that is written as JSON, as tables without lists hold it; any other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


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


def require_text(row: Row, key: str, place: str) -> str:
    """The text of a column. Raises `DataError` when it is missing or no text."""
    value = row.get(key)
    if value is None:
        raise DataError(f"{place}: there is no `{key}`; the first row has it, and so must all.")
    if not isinstance(value, str):
        raise DataError(
            f"{place}: `{key}` is {kind_in_words(value)}, where a text is needed as in the first row."
        )
    return value
