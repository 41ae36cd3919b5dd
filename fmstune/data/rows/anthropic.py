"""Convert messages whose contents have tool calls and results as parts (Anthropic's, and calls also
LLaMA-Factory's) to OpenAI's form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fmstune.data.rows.calls import Call, read_calls
from fmstune.data.rows.fields import Fields, Lost

TEXT_AFTER_CALL = "words after a call of a tool in the same message are put before it"
TEXT_BEFORE_RESULT = "words before a result of a tool in the same message are put after it"
_CALL, _RESULT = "tool_use", "tool_result"


def with_own_results(given: Any, name: str, lost: Lost) -> Iterator[Any]:
    """A message; its parts that are tool results become separate messages, in order, before its text: a
    result follows its call. Unread fields go to `lost`."""
    content = given.get("content") if isinstance(given, Mapping) else None
    if not isinstance(content, (list, tuple)) or not any(_is(part, _RESULT) for part in content):
        yield given
        return
    results = [part for part in content if _is(part, _RESULT)]
    said = [part for part in content if not _is(part, _RESULT)]
    if any(_is(part, _RESULT) for part in content[len(results) :]):
        lost.remarks[TEXT_BEFORE_RESULT] = None
    others = {key: value for key, value in given.items() if key not in ("role", "content")}
    for part in results:
        fields = Fields(part, name, lost)
        fields.get("type")
        result = {"role": "tool", "content": fields.get("content") or ""}
        if fields.has("tool_use_id"):
            result["tool_call_id"] = fields.get("tool_use_id")
        fields.lose_rest()
        yield others | result
        others = {}
    if said:
        yield {**others, "role": given.get("role"), "content": said}


def calls_in_parts(content: Any, where: str, name: str, lost: Lost) -> tuple[list[Call], Any]:
    """The calls among a content's parts, and the content without them. Raises `DataError`."""
    if not isinstance(content, (list, tuple)) or not any(_is(part, _CALL) for part in content):
        return [], content
    first = next(number for number, part in enumerate(content) if _is(part, _CALL))
    if any(not _is(part, _CALL) for part in content[first:]):
        lost.remarks[TEXT_AFTER_CALL] = None
    called = [part["value"] if _is_factory_call(part) else part for part in content if _is(part, _CALL)]
    calls = read_calls(called, where, name, lost)
    return calls, [part for part in content if not _is(part, _CALL)] or None


def _is(part: Any, kind: str) -> bool:
    return (isinstance(part, Mapping) and part.get("type") == kind) or (
        kind == _CALL and _is_factory_call(part)
    )


def _is_factory_call(part: Any) -> bool:
    """Whether a part is a call as LLaMA-Factory writes it, with the call as the JSON of its `value`."""
    return isinstance(part, Mapping) and part.get("type") == "tool_call" and part.keys() == {"type", "value"}
