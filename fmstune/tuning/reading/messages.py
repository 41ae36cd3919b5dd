"""Messages in one form, whatever form they were published in; all that follows reads this form alone.

A canonical message has `role` (one of `ROLES`) and `content` (a text), and where the row says so:
`reasoning_content` (with the content as it was in `inline`, if the reasoning stood there between <think> and
</think>), `tool_calls` (each `{"type", "id", "function": {"name", "arguments"}}`, the arguments as an object
where they are one), `name`, `tool_call_id`, `weight` (of its part of the loss), and in `extra` the fields
that only a chat template may know.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from fmstune.tuning.errors import DataError
from fmstune.tuning.reading.cells import kind_in_words, parsed

Message = dict[str, Any]

ROLES = ("system", "user", "assistant", "tool", "developer")
_SPEAKERS = {
    "system": "system",
    "developer": "developer",
    "human": "user",
    "user": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "ipython": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
"""Who speaks, by the names that OpenAI, ShareGPT, Llama and Gemma have for it; letter case does not count."""

_CALLS = ("function_call", "tool_call")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_TRAINED = ("train", "training")
_KNOWN = {
    *("role", "from", "content", "value", "tool_calls", "function_call", "name", "tool_call_id", "weight"),
    *_REASONING,
    *_TRAINED,
}
_OPEN, _CLOSE = "<think>", "</think>"


def read_messages(value: Any, place: str, key: str) -> list[Message]:
    """The canonical messages of a column: a list, a single message, or either as a JSON text.

    Raises `DataError` for anything else, and for messages with an image, audio or video in them.
    """
    value = parsed(value)
    if isinstance(value, Mapping) and ("role" in value or "from" in value):
        value = [value]
    if not isinstance(value, (list, tuple)) or not value:
        raise DataError(f"{place}: `{key}` takes a list of messages with at least one in it.")
    return [_message(given, f"{place}: message {number} of `{key}`") for number, given in enumerate(value, 1)]


def read_tools(value: Any, place: str) -> list[dict[str, Any]]:
    """Tools as OpenAI writes them today, from a list of schemas, also bare ones, or such a list as JSON.

    Raises `DataError` for anything else.
    """
    try:
        tools = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        tools = None
    if isinstance(tools, Mapping) and ("name" in tools or "function" in tools):
        tools = [tools]
    # Lists of tools that are each a JSON text come from tables, which cannot hold schemas that differ.
    tools = [_parsed_object(tool) for tool in tools] if isinstance(tools, (list, tuple)) else None
    if tools is None or not all(isinstance(tool, dict) for tool in tools):
        raise DataError(f"{place}: `tools` takes a list of JSON schemas, or such a list as a JSON text.")
    return [
        tool if "function" in tool or "name" not in tool else {"type": "function", "function": tool}
        for tool in tools
    ]


def weight_of(value: Any, place: str, key: str) -> float:
    """A weight of the loss. Raises `DataError` for what is no number of at least 0."""
    if isinstance(value, (bool, int, float)) and math.isfinite(value) and value >= 0:
        return float(value)
    raise DataError(f"{place}: `{key}` is {value!r}; it takes 0, 1, or another weight of the loss.")


def says_something(message: Message) -> bool:
    """Whether there is anything in a message that a model could read or write."""
    return bool(
        message["content"].strip()
        or message.get("tool_calls")
        or message.get("reasoning_content", "").strip()
    )


def _message(given: Any, where: str) -> Message:
    if not isinstance(given, Mapping) or not ("role" in given or "from" in given):
        raise DataError(f"{where} is no object with `role` and `content`.")
    speaker = given["role"] if given.get("role") is not None else given.get("from")
    role = _SPEAKERS.get(speaker.strip().lower()) if isinstance(speaker, str) else None
    if role is None:
        raise DataError(f"{where} has the role {speaker!r}; roles are {', '.join(_SPEAKERS)}.")
    value = given["content"] if given.get("content") is not None else given.get("value")
    calls = _calls(given, where)
    if str(speaker).strip().lower() in _CALLS and not calls:
        calls, value = _named_calls(value, where), None
    content, thought = _content(value, role, where)
    if value is None and not calls and role != "assistant":
        raise DataError(f"{where} has no text as its `content`.")
    message: Message = {"role": role, "content": content}
    message |= _reasoning(given, role, content, thought)
    if calls:
        message["tool_calls"] = calls
    message |= {name: given[name] for name in ("name", "tool_call_id") if given.get(name) is not None}
    weight = _weight(given, where)
    if weight is not None:
        message["weight"] = weight
    extra = {name: each for name, each in given.items() if name not in _KNOWN and each is not None}
    return message | ({"extra": extra} if extra else {})


def _content(value: Any, role: str, where: str) -> tuple[str, str]:
    """A message's text, and the reasoning that its parts hold."""
    if value is None or isinstance(value, str):
        return value or "", ""
    if isinstance(value, (list, tuple)) and all(isinstance(part, (str, Mapping)) for part in value):
        typed = [part for part in value if isinstance(part, str) or "type" in part or "text" in part]
        if len(typed) == len(value):
            return _joined(typed, where)
    if role == "tool":
        return json.dumps(value, ensure_ascii=False), ""  # a result is data of any kind
    raise DataError(f"{where} has no text as its `content`, but {kind_in_words(value)}.")


def _joined(parts: list[Any], where: str) -> tuple[str, str]:
    texts, thoughts = [], []
    for part in parts:
        kind = "text" if isinstance(part, str) else part.get("type", "text")
        text = part if isinstance(part, str) else part.get("text")
        if kind in ("thinking", "reasoning"):
            thought = next((part[key] for key in (kind, "text") if isinstance(part.get(key), str)), "")
            thoughts.append(thought)
        elif kind in ("text", "input_text", "output_text") and isinstance(text, str):
            texts.append(text)
        else:
            raise DataError(
                f"{where} has a part of the type {kind!r}; fmstune trains on text alone, so take such rows "
                "out, or leave them out with --skip-bad-rows."
            )
    return "".join(texts), "\n".join(thoughts)


def _reasoning(given: Mapping[str, Any], role: str, content: str, thought: str) -> Message:
    fields = (given[name] for name in _REASONING if isinstance(given.get(name), str) and given[name].strip())
    thought = next(fields, thought)
    if role != "assistant":
        return {}
    if thought.strip():
        return {"reasoning_content": thought}
    if content.count(_CLOSE) != 1:
        return {}
    before, _, after = content.partition(_CLOSE)
    opening, opened, thought = before.rpartition(_OPEN)
    if opening.strip() or (not opened and not before.strip()):
        return {}  # a text about reasoning, not an answer that begins with it
    return {"content": after.lstrip("\n"), "reasoning_content": thought.strip("\n"), "inline": content}


def _calls(given: Mapping[str, Any], where: str) -> list[Message]:
    calls = parsed(given.get("tool_calls"))
    if not calls:
        legacy = given.get("function_call")
        return _named_calls(legacy, where) if legacy else []
    return _named_calls(calls, where)


def _named_calls(value: Any, where: str) -> list[Message]:
    value = _parsed_object(value)
    calls = [_parsed_object(call) for call in (value if isinstance(value, (list, tuple)) else [value])]
    found = []
    for call in calls:
        function = _parsed_object(call.get("function", call)) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError(f"{where} has a call of a tool, and no JSON with a `name`.")
        arguments = function.get("arguments", function.get("parameters"))
        made = {"name": function["name"], "arguments": _arguments(arguments)}
        own = {"id": call["id"]} if call.get("id") is not None else {}
        found.append({"type": "function", **own, "function": made})
    return found


def _arguments(value: Any) -> Any:
    """An object, where they are one or the text of one, however often encoded; any other text as it is."""
    found = value
    while isinstance(found, str):
        try:
            found = json.loads(found)
        except (ValueError, RecursionError):
            return value
    if found is None:
        return {}
    return dict(found) if isinstance(found, Mapping) else value


def _weight(given: Mapping[str, Any], where: str) -> float | None:
    if given.get("weight") is not None:
        return weight_of(given["weight"], where, "weight")
    for name in _TRAINED:
        value = given.get(name)
        if value in (True, False):  # and 1, 0
            return float(value)
        if value is not None:
            raise DataError(f"{where} has {value!r} as its `{name}`; it is true or false.")
    return None


def _parsed_object(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value
