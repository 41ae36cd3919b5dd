"""A check by another way: does the chat template's output contain the words of a row?

Templates render a conversation as they like, and most silently drop what they do not know. So each text is
searched in the rendering, unchanged or as JSON writes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fmstune.data.rendering.thinking import EMPTY_BLOCK
from fmstune.data.rows.messages import Message

_BLANKS = re.compile(r"[\s\\]+")

TAGS = "answers that speak of <think> or </think>, as they are,"
"""Templates split there, as if reasoning ended: comparing words without blanks would not show it."""
_PLAIN = {"role", "content", "weight"}
Missing = tuple[str, str]
"""The kind of missing content, like `calls of tools`, and its words."""


def missing_words(messages: Sequence[Message], tools: Any, texts: Sequence[str]) -> Iterator[Missing]:
    """The content of a conversation that is in none of the texts. `missing_reasoning` checks reasoning, which
    templates remove before an answer."""
    yield from _missing(_words(messages, tools), texts)
    blank = any("inline" in each and not each.get("reasoning_content", "").strip() for each in messages)
    if blank and not any(EMPTY_BLOCK.search(text) for text in texts):
        yield "empty blocks of reasoning", ""


def plainly_written(messages: Sequence[Message], tools: Any, texts: Sequence[str], others: str) -> bool:
    """Whether it is plain that no words are missing or hidden, as in nearly all conversations: there is one
    text, with the words of each message after those of the message before it, and the words of the template
    (`others`) have none of them."""
    if tools or len(texts) != 1:
        return False
    (text,) = texts
    end = 0
    for message in messages:
        if not message.keys() <= _PLAIN or kind_of_words(message) == TAGS:
            return False
        words = message["content"].strip()
        begin = text.find(words, end)
        if begin < 0 or (words and words in others):
            return False
        end = begin + len(words)
    return True


def missing_reasoning(answers: Iterable[Message], texts: Sequence[str]) -> bool:
    """Whether the reasoning of one of these answers is in none of the texts."""
    thoughts = (("reasoning", answer.get("reasoning_content", "").strip()) for answer in answers)
    return any(True for _ in _missing(thoughts, texts))


def _missing(asked: Iterable[Missing], texts: Sequence[str]) -> Iterator[Missing]:
    bare: list[str] = []
    for what, words in asked:
        if not words or any(words in text for text in texts):
            continue
        if what == TAGS:
            yield what, words
            continue
        escaped = json.dumps(words, ensure_ascii=False)[1:-1]
        if any(escaped in text or repr(words)[1:-1] in text for text in texts):  # as Python writes it
            continue
        # Templates trim, indent and escape as they like: only the non-blank characters are compared.
        if not bare:
            bare = [_BLANKS.sub("", text) for text in texts]
        plain = _BLANKS.sub("", words)
        # Some write Python's True for JSON's true.
        if words in ("true", "false") and any(words.title() in text for text in texts):
            continue
        if not any(plain in text for text in bare):
            yield what, words


def kind_of_words(message: Message) -> str:
    """The name of a message's words in remarks."""
    role = message["role"]
    if role == "assistant" and "think>" in message["content"]:
        return TAGS
    return "results of tools" if role == "tool" else f"words of the {role}"


def _words(messages: Sequence[Message], tools: Any) -> Iterator[Missing]:
    for message in messages:
        yield kind_of_words(message), message["content"].strip()
        for call in message.get("tool_calls", ()):
            yield "calls of tools", call["function"]["name"]
            for leaf in _leaves(call["function"]["arguments"]):
                yield "arguments of calls", leaf.strip()
    for tool in tools or ():
        function = tool.get("function", tool)
        yield "tools", str(function.get("name", "")) if isinstance(function, Mapping) else ""


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (bool, int, float)):
        yield json.dumps(value)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _leaves(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _leaves(each)
