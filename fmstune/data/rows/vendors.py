"""Rows in the formats of other tools, with our columns; and rows that are not of texts alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fmstune.config.methods.known import METHODS
from fmstune.data.cells import parsed
from fmstune.data.columns import ANSWERS, CONVERSATIONS, Row, first_present, has_value, is_message
from fmstune.errors import DataError

_PAIRS = (
    {"messages": "chosen", "rejected_messages": "rejected"},
    {"chosen_conversations": "chosen", "rejected_conversations": "rejected"},
    {"chosen_messages": "chosen", "rejected_messages": "rejected"},
)
"""The columns of pairs elsewhere, and ours."""
_SYSTEM = ("systemInstruction", "system_instruction")
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
_PLACES = ("<image>", "<video>", "<audio>")


def with_our_columns(row: Row, method: str) -> Row:
    """A row of Gemini (`contents`), of xLAM (calls in `answers`), or, for a method that compares answers, of
    ms-swift (`rejected_response`, `rejected_messages`), torchtune (`chosen_conversations`) or LLaMA-Factory
    (`chosen_messages`, `kto_tag`), with our columns. Any other row unchanged."""
    form = METHODS[method].form
    if form in ("pair", "judged pair"):
        for names in _PAIRS:
            row = _renamed(row, names)
        return _swift_pair(row)
    if form == "labelled":
        row = _renamed(row, {"kto_tag": "label"})
    return _gemini_chat(row) or _xlam_chat(row) or row


def require_texts(row: Row, place: str) -> None:
    """Raise `DataError` for a row with an image, audio or video: data or a list of paths, or a single path
    with its place in a text. A path alone may be anything, and is reported as not used."""
    for name in _MEDIA:
        value = row.get(name)
        if not has_value(value):
            continue
        if not isinstance(value, str) or any(mark in repr(row) for mark in _PLACES):
            raise DataError(
                f"{place}: it has media in the column `{name}`, and fmstune only trains on text: remove such "
                "rows, skip them with --skip-bad-rows, or, if their texts make sense alone, name the columns "
                "to use with data.columns."
            )


def _gemini_chat(row: Row) -> Row | None:
    contents = parsed(row.get("contents"))
    if not isinstance(contents, list) or first_present(row, CONVERSATIONS):
        return None
    if not contents or not all(is_message(each) and isinstance(each.get("parts"), list) for each in contents):
        return None
    name = first_present(row, _SYSTEM)
    others = {key: value for key, value in row.items() if key not in ("contents", name)}
    given = row[name] if name else None
    said = given if isinstance(given, Mapping) else {"content": given}
    begin = [{**said, "role": "system"}] if has_value(given) else []
    return {**others, "messages": [*begin, *contents]}


def _xlam_chat(row: Row) -> Row | None:
    calls = parsed(row.get("answers"))
    if not isinstance(row.get("query"), str) or not has_value(row.get("tools")):
        return None
    if not _is_calls(calls):
        return None
    others = {name: value for name, value in row.items() if name not in ("query", "answers")}
    asked = {"role": "user", "content": row["query"]}
    return {**others, "messages": [asked, {"role": "assistant", "content": "", "tool_calls": calls}]}


def _is_calls(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, dict) and each.keys() == {"name", "arguments"} for each in value)
    )


def _renamed(row: Row, names: Mapping[str, str]) -> Row:
    """A row with our names for another tool's columns, if it has them all and none of ours."""
    if not all(has_value(row.get(name)) for name in names):
        return row
    if any(has_value(row.get(ours)) for ours in names.values()):
        return row
    return {names.get(name, name): value for name, value in row.items()}


def _swift_pair(row: Row) -> Row:
    rejected = row.get("rejected_response")
    if not isinstance(rejected, str) or row.get("chosen") is not None or row.get("rejected") is not None:
        return row
    others = {name: value for name, value in row.items() if name != "rejected_response"}
    conversation = first_present(row, CONVERSATIONS)
    if conversation is None:
        answer = first_present(row, ANSWERS)
        renamed = {("chosen" if name == answer else name): value for name, value in others.items()}
        return {**renamed, "rejected": rejected} if answer else row
    messages = parsed(row[conversation])
    if not isinstance(messages, Sequence) or len(messages) < 2 or not all(map(is_message, messages)):
        return row
    del others[conversation]
    pair = {"chosen": [messages[-1]], "rejected": [{"role": "assistant", "content": rejected}]}
    return {**others, "prompt": list(messages[:-1]), **pair}
