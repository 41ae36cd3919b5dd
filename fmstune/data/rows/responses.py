"""Convert items of OpenAI's responses (messages, calls, their results, reasoning) to messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fmstune.data.rows.fields import Fields, Lost

_KINDS = ("function_call", "function_call_output", "reasoning")


def as_messages(items: Sequence[Any], name: str, lost: Lost) -> list[Any]:
    """Items of a field called `name` in chat form: consecutive calls belong to one message, which has the
    preceding reasoning. Any other item stays unchanged, and so do unread fields; those of reasoning, such as
    encrypted ones, go to `lost`."""
    made: list[Any] = []
    thoughts: list[Any] = []
    for item in items:
        kind = item.get("type") if isinstance(item, Mapping) and not item.keys() & {"role", "from"} else None
        if kind not in _KINDS:
            own = isinstance(item, Mapping) and item.get("role") == "assistant"
            if thoughts and not own:
                made.append(_thinking({"role": "assistant", "content": ""}, thoughts))
            made.append(_thinking(item, thoughts) if thoughts and own else item)
            thoughts = []
            continue
        others = {key: value for key, value in item.items() if key != "type"}
        if kind == "reasoning":
            fields = Fields(item, f"{name}.reasoning", lost)
            thought = fields.first("content", "summary", "text")
            thoughts += [thought] if thought else []
            for known in ("type", "id", "status"):
                fields.get(known)
            fields.lose_rest()
        elif kind == "function_call_output":
            given = {"role": "tool", "tool_call_id": others.pop("call_id", None)}
            given["content"] = others.pop("output", None)
            made.append({**others, **given})
        else:
            call = {**others, "id": others.get("call_id") or others.get("id")}
            call.pop("call_id", None)
            before = made[-1] if made and isinstance(made[-1], Mapping) else {}
            if before.get("role") == "assistant" and not thoughts:
                made[-1] = {**before, "tool_calls": [*(before.get("tool_calls") or ()), call]}
            else:
                message = {"role": "assistant", "content": None, "tool_calls": [call]}
                made.append(_thinking(message, thoughts))
            thoughts = []
    return [*made, _thinking({"role": "assistant", "content": ""}, thoughts)] if thoughts else made


def _thinking(message: Mapping[str, Any], thoughts: list[Any]) -> dict[str, Any]:
    parts = [part for thought in thoughts for part in (thought if isinstance(thought, list) else [thought])]
    return {**message, "reasoning_content": parts} if parts else dict(message)
