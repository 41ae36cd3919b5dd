"""The contents of a message: its text, and the reasoning before it, in any published form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from fmstune.data.cells import kind_in_words
from fmstune.data.columns import BY_HANDLER, has_value
from fmstune.data.rows.fields import Fields, Lost
from fmstune.data.rows.masks import Range, is_learnt
from fmstune.errors import DataError

REASONING = ("reasoning_content", "reasoning", "thinking")
NOT_ITS_OWN = "reasoning of messages that are not the assistant's is not used"

_OPEN, _CLOSE = "<think>", "</think>"
_TEXTS = ("text", "input_text", "output_text")
_THOUGHTS = ("thinking", "reasoning")
_THOUGHT_IN = ("thinking", "reasoning", "text", "content", "summary", "value")
_MEDIA = (
    "image", "image_url", "input_image", "audio", "audio_url", "input_audio", "video", "video_url", "file",
    "input_file",
)  # fmt: skip


class Content(NamedTuple):
    """A message's text, the reasoning in its parts, and the characters of the text that are not learnt."""

    text: str
    thought: str = ""
    masked: tuple[Range, ...] = ()


def read_content(value: Any, role: str, where: str, name: str, lost: Lost) -> Content:
    """The content of a message. A tool's result is data of any kind: anything but a text or parts of text
    becomes JSON. Raises `DataError`."""
    if value is None or isinstance(value, str):
        return Content(value or "")
    if isinstance(value, (list, tuple)):
        if role == "tool":
            if value and all(_is_result_part(part) for part in value):
                return _joined(value, role, where, name, lost)
        elif all(
            isinstance(part, str) or (isinstance(part, Mapping) and ("type" in part or "text" in part))
            for part in value
        ):
            return _joined(value, role, where, name, lost)
    if role == "tool":
        return Content(json.dumps(value, ensure_ascii=False))
    raise DataError(f"{where} has no text as its `content`, but {kind_in_words(value)}.{BY_HANDLER}")


def _is_result_part(part: Any) -> bool:
    """Whether an item of a tool's result is a content part or media, and not data."""
    if not isinstance(part, Mapping):
        return False
    kind = part.get("type")
    if kind == "text" and part.keys() == {"type", "value"}:  # LLaMA-Factory's
        return isinstance(part["value"], str)
    return kind in _MEDIA or (kind in _TEXTS and isinstance(part.get("text"), str))


def _joined(parts: Any, role: str, where: str, name: str, lost: Lost) -> Content:
    texts: list[str] = []
    thoughts: list[str] = []
    masked: list[Range] = []
    length = 0
    for part in parts:
        fields = Fields({"text": part} if isinstance(part, str) else part, name, lost)
        kind = fields.get("type") or "text"
        if kind in _THOUGHTS:
            thoughts.append(_thought_of(part, name, lost) or "")
            continue
        text = fields.first("text", "content", "value")  # `value` is LLaMA-Factory's
        if kind not in _TEXTS or not isinstance(text, str):
            raise DataError(
                f"{where} has a part of the type {kind!r}; fmstune only trains on text, so remove such rows, "
                "or skip them with --skip-bad-rows."
            )
        texts.append(text)
        if role == "assistant" and not is_learnt(fields, where) and text:
            masked.append((length, length + len(text)))
        length += len(text)
        fields.lose_rest()
    thought = "\n".join(each for each in thoughts if each.strip())
    return Content("".join(texts), thought, tuple(masked))


def _thought_of(value: Any, name: str, lost: Lost) -> str | None:
    """The text of reasoning: a text, an object with one, or a list of such. `None` if it has none."""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        found = [_thought_of(each, name, lost) for each in value]
        return None if None in found else "\n".join(each for each in found if each and each.strip())
    if not isinstance(value, Mapping):
        return None
    fields = Fields(value, name, lost)
    inner = fields.first(*_THOUGHT_IN)
    thought = None if inner is None else _thought_of(inner, name, lost)
    if thought is not None:
        fields.get("type")
    fields.lose_rest()
    return thought


def read_reasoning(
    fields: Fields, role: str, content: str, thought: str, where: str, lost: Lost
) -> dict[str, Any]:
    """The reasoning of a message: from its fields, its parts (`thought`), or its text. Raises `DataError` for
    several that differ."""
    found = {"a part of its `content`": thought} if thought.strip() else {}
    for key in REASONING:
        if not has_value(fields.given.get(key)):
            fields.get(key)
            continue
        text = _thought_of(fields.given[key], f"{fields.name}.{key}", lost)
        if text is None or not text.strip():
            fields.lose(key)
        else:
            fields.get(key)
            found[f"`{key}`"] = text
    if len({text.strip() for text in found.values()}) > 1:
        raise DataError(f"{where} has reasoning in {' and in '.join(found)}, and they differ; remove one.")
    thought = next(iter(found.values()), "")
    if role != "assistant":
        if thought:
            lost.remarks[NOT_ITS_OWN] = None
        return {}
    inline = _inline(content)
    if not thought or not inline:
        return inline or ({"reasoning_content": thought} if thought else {})
    written = inline["reasoning_content"].strip()
    if written and written != thought.strip():
        raise DataError(
            f"{where} has reasoning in {next(iter(found))} and, between <think> and </think>, in its text, "
            "and they differ; remove one."
        )
    # Once: the text follows the block, which may be empty.
    once = {"content": inline["content"], "reasoning_content": thought}
    return once | ({"inline": content} if written else {})


def _inline(content: str) -> dict[str, Any]:
    if content.count(_CLOSE) != 1:
        return {}
    before, _, after = content.partition(_CLOSE)
    opening, opened, thought = before.rpartition(_OPEN)
    if opening.strip() or (not opened and not before.strip()):
        return {}  # a text about reasoning, not an answer that starts with it
    if not opened and _is_mentioned(before, after):
        return {}
    return {"content": after.lstrip("\n"), "reasoning_content": thought.strip("\n"), "inline": content}


def _is_mentioned(before: str, after: str) -> bool:
    """Whether a text mentions the tag between these words instead of ending its reasoning with it: models
    whose prompt opens the block write it on its own line, or without a blank."""
    if before.endswith("\n") or after.startswith("\n"):
        return False
    return before[-1:] in " `\"'(" or (bool(after) and after[0] in " `\"'),.;:")
