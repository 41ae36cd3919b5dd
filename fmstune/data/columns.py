"""The column names of common data sets, and what a row holds under them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fmstune.data.cells import as_boolean, kind_in_words, parsed
from fmstune.errors import DataError
from fmstune.text import listed

Row = Mapping[str, Any]

A_ROW = (
    "rows have `messages` (a list of {role, content}), or `prompt` and `completion`, or a question and its "
    "answer (`instruction` and `output`, `question` and `answer`), or `text`, `conversations`, `input_ids`"
)

BY_HANDLER = " To convert rows of another form, write a function: data.handler."

CONVERSATIONS = ("messages", "conversations", "conversation")
QUESTIONS = ("instruction", "question", "query", "prompt", "input")
"""Columns with the question, in order of precedence: Alpaca has `input` next to `instruction`."""
ANSWERS = ("output", "response", "answer", "completion")
CONTEXTS = ("input", "context")
"""Columns with the context of a question, which is part of the question."""
SYSTEMS = ("system", "system_prompt")
HISTORY = "history"
TEMPLATE_KWARGS = "chat_template_kwargs"
"""Values for variables of the chat template, as TRL names the column."""

SPEAKERS = {
    "system": "system",
    "developer": "developer",
    "human": "user",
    "user": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "chatbot": "assistant",
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
"""Roles, by the names that OpenAI, ShareGPT, Llama, Gemma and Cohere use; case is ignored."""

_TRANSCRIPT = re.compile(
    r"(?:^|\n)\W*(?:user|human)\s*[:|].*\n\W*(?:assistant|gpt|bot|ai)\s*[:|]", re.I | re.S
)
"""Both sides of a conversation in one text: "USER: … ASSISTANT: …", "[|Human|] … [|AI|] …"."""
_OF_BLOCKS = {"type", "text", "cache_control", "citations"}
_KNOWN = {
    *CONVERSATIONS, *QUESTIONS, *ANSWERS, *CONTEXTS, *SYSTEMS, HISTORY, TEMPLATE_KWARGS,
    "tools", "functions", "text", "chosen", "rejected", "label", "margin", "input_ids", "labels",
    "attention_mask", "weight", "loss_weight", "train_on_input",
}  # fmt: skip
_ALONE = {*CONVERSATIONS, *QUESTIONS, *ANSWERS, "text", "chosen", "input_ids"}
"""Each row of a known shape has one of these."""

# Parts of names by which a column's purpose is guessed, for advice only.
_LIKE_ANSWERS = (
    "answer", "response", "output", "completion", "target", "reply", "solution", "summary", "highlights",
    "translation", "assistant", "generation", "generated", "sql", "code", "reference", "label_text",
)  # fmt: skip
LIKE_QUESTIONS = (
    "question", "prompt", "query", "instruction", "input", "problem", "user", "ask", "request", "source",
    "article", "document", "dialogue", "context", "passage", "title", "nl", "text",
)  # fmt: skip
_LIKE_NEITHER = (
    "id", "uuid", "idx", "index", "key", "hash", "category", "type", "kind", "tag", "tags", "lang",
    "language", "split", "url", "date", "time", "timestamp", "score", "rating", "topic", "label", "model",
    "license", "origin", "dataset", "subset", "name", "file", "path", "author", "level", "difficulty",
    "source",
)  # fmt: skip


def with_known_names(row: Row) -> Row:
    """The row with names such as `Prompt` or `System Prompt` in our spelling, unless it has both."""
    names: dict[Any, Any] = {}
    for name in row:
        if isinstance(name, str) and name not in _KNOWN:
            ours = name.strip().lower().replace(" ", "_").replace("-", "_")
            if ours in _KNOWN and ours not in row and ours not in names.values():
                names[name] = ours
    return {names.get(name, name): value for name, value in row.items()} if names else row


def without_nan(row: Row) -> Row:
    """The row with null in place of NaN, which marks missing values in tables."""
    if not any(isinstance(value, float) and math.isnan(value) for value in row.values()):
        return row
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()
    }


def looks_like_a_row(value: Any) -> bool:
    """Whether an object has a column by which rows are recognised, and is not a message of a conversation."""
    return (
        isinstance(value, dict) and not is_message(value) and not _ALONE.isdisjoint(with_known_names(value))
    )


def is_message(value: Any) -> bool:
    """Whether an object is a message: {role, content}, or {from, value}."""
    return isinstance(value, dict) and ("role" in value or ("from" in value and "value" in value))


def is_segments(value: Any) -> bool:
    """Whether a column holds axolotl's `segments`: a list of {label, text}, the label a boolean."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, Mapping) and each.keys() == {"label", "text"} for each in value)
        and all(as_boolean(each["label"]) is not None and isinstance(each["text"], str) for each in value)
    )


def as_list(value: Any) -> Any:
    """Lists of the fields of messages, {"role": [...], "content": [...]}, as a list of messages: `datasets`
    represents a Sequence of objects like that. Any other value unchanged."""
    if not is_message(value) or not all(isinstance(each, list) for each in value.values()):
        return value
    if len({len(each) for each in value.values()}) > 1:
        return value
    return [dict(zip(value, each, strict=True)) for each in zip(*value.values(), strict=True)]


def has_value(value: Any) -> bool:
    """Whether a value is not empty: tables fill columns that only other rows have with nulls."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return False
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, dict):
        return any(map(has_value, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(has_value, value))
    return True


def first_present(row: Row, names: Sequence[str]) -> str | None:
    """The first of these columns that has a value in the row."""
    return next((name for name in names if row.get(name) is not None), None)


def require_text(row: Row, key: str, place: str) -> str:
    """The text of a column; a number is its own text, as in a table. Raises `DataError` when it is missing or
    not text."""
    value = row.get(key)
    if value is None:
        raise DataError(f"{place}: there is no `{key}`; the first row has it, and so must all.")
    if isinstance(value, (int, float)) and not isinstance(value, bool) and has_value(value):
        return str(value)
    if not isinstance(value, str):
        raise DataError(f"{place}: `{key}` is {kind_in_words(value)}, where a text is needed.{BY_HANDLER}")
    return value


def system_of(row: Row, place: str) -> str:
    """The row's system text, under either name; empty if there is none. Raises `DataError` for two that
    differ."""
    found = {
        _joined_blocks(row[name]) or require_text(row, name, place)
        for name in SYSTEMS
        if has_value(row.get(name))
    }
    if len(found) > 1:
        raise DataError(f"{place}: it has both `system` and `system_prompt`, and they differ; remove one.")
    return found.pop() if found else ""


def _joined_blocks(value: Any) -> str:
    """The text of text blocks, as in Anthropic's `system`; empty for anything else."""
    blocks = parsed(value)
    if not isinstance(blocks, list):
        return ""
    texts = [block.get("text") if isinstance(block, dict) else block for block in blocks]
    known = all(not isinstance(block, dict) or block.keys() <= _OF_BLOCKS for block in blocks)
    # A text that is JSON stays a text, unless it is a list of blocks.
    if not known or (isinstance(value, str) and not all(isinstance(block, dict) for block in blocks)):
        return ""
    return "\n\n".join(map(str, texts)) if all(isinstance(text, str) for text in texts) else ""


def context_of(row: Row, names: Sequence[str], place: str) -> str:
    """The text in the columns of a question's context."""
    found = []
    for name in names:
        value = row.get(name)
        if has_value(value):
            if not isinstance(value, (str, int, float)) or isinstance(value, bool):
                raise DataError(
                    f"{place}: `{name}` is {kind_in_words(value)}, where a text is needed; name the columns "
                    "to use with data.columns to leave it out."
                )
            found.append(str(value).strip())
    return "\n\n".join(found)


def history_of(row: Row, place: str) -> list[dict[str, Any]]:
    """Earlier turns as messages: Alpaca's [question, answer] pairs, or messages. Raises `DataError`."""
    given = parsed(row.get(HISTORY))
    if not has_value(given):
        return []
    turns: list[dict[str, Any]] = []
    for turn in given if isinstance(given, list) else [given]:
        if is_message(turn):
            turns.append(turn)
        elif (
            isinstance(turn, (list, tuple)) and len(turn) == 2 and all(isinstance(text, str) for text in turn)
        ):
            turns.append({"role": "user", "content": turn[0]})
            turns.append({"role": "assistant", "content": turn[1]})
        else:
            raise DataError(
                f"{place}: `{HISTORY}` takes a list of [question, answer] pairs, or of messages; it contains "
                f"{kind_in_words(turn)}."
            )
    return turns


def as_message_list(value: Any, *, cell: bool = False) -> list[Any] | None:
    """The messages in a column, as a list, as one object, or as the text of a list in a table; `None` if it
    contains none. The text of a single object is only parsed with `cell`, if a column next to it contains the
    text of messages too: an answer may be JSON with a `role`, or with `from` and `value`."""
    found = as_list(parsed(value))
    if is_message(found):
        return [found] if not isinstance(value, str) or (cell and _has_known_role(found)) else None
    if isinstance(found, list) and any(map(is_message, found)):
        return found if not isinstance(value, str) or any(map(_has_known_role, found)) else None
    return None


def _has_known_role(value: Any) -> bool:
    """Whether an object is a message with a known role, and not data with such fields."""
    speaker = value.get("role", value.get("from")) if is_message(value) else None
    return isinstance(speaker, str) and speaker.strip().lower() in SPEAKERS


def is_verdict(value: Any) -> bool:
    """Whether a `label` marks an answer as good or bad, as kto needs it, rather than classifying a text."""
    return as_boolean(value) is not None


def unknown_shape(row: Row, place: str) -> DataError:
    """The error for a row of unknown shape, with its columns, and how to name them."""
    return DataError(f"{place}: the columns are {columns_in_words(row)}; {A_ROW}.{_advice(row)}")


def columns_in_words(row: Row) -> str:
    """The columns of a row, and those without a value in it: all rows of a table have the same columns."""
    null = listed([str(key) for key, value in row.items() if value is None])
    columns = listed([str(key) for key, value in row.items() if value is not None]) or "none"
    return f"{columns} (without a value in this row: {null})" if null else columns


def _advice(row: Row) -> str:
    texts = [
        name for name, value in row.items() if isinstance(name, str) and isinstance(value, str) and value
    ]
    for name, value in row.items():
        if isinstance(value, Mapping) and any(as_message_list(value.get(each)) for each in CONVERSATIONS):
            return f" `{name}` contains the messages: move them into a column with a function, data.handler."
    if any(_is_tree(value) for value in row.values()):
        texts = []  # the text is in there
    if advice := about_rivals(texts):
        return advice
    for name in texts:
        if _TRANSCRIPT.search(row[name]):
            return f" `{name}` is a transcript: split it into `messages` with a function, data.handler."
    answer = like(texts, _LIKE_ANSWERS)
    question = like([name for name in texts if name != answer], LIKE_QUESTIONS)
    others = [name for name in texts if name not in (answer, question) and not _is_like(name, _LIKE_NEITHER)]
    # A question and its answer are longer than a number, a date or a category next to them.
    longest = sorted(others, key=lambda name: len(row[name]))[-(answer is None) - (question is None) :]
    others = [name for name in others if name in longest]
    if answer is None and others:
        answer = others.pop()
    if question is None and others:
        question = others.pop(0)
    if answer is None or question is None:
        alone = answer or question
        named = f"text={_quoted(alone)}" if alone else None
        put = f"--template '{{{alone}}}'" if alone else None
    else:
        # As a question and its answer, they are a chat if the model has a template.
        named = f"question={_quoted(question)}, answer={_quoted(answer)}"
        put = f"--template '{{{question}}} {{{answer}}}'"
    if named is None:
        return BY_HANDLER
    return (
        f" To use other columns, name them with data.columns, as in --set 'data.columns={{{named}}}', "
        f"or combine them with {put}."
    )


def about_rivals(texts: Sequence[str]) -> str | None:
    """What to do with a row of `texts`, by their columns, two of which may be answers of which one is better:
    names that differ in the last character, as `response_0` and `response_1`. `None` without such a pair."""
    for name in texts:
        alike = [each for each in texts if each[:-1] == name[:-1]]
        if len(alike) == 2 and len(name) > 3 and not _is_like(name[:-1].rstrip("_"), LIKE_QUESTIONS):
            return (
                f" If `{alike[0]}` and `{alike[1]}` are its answers, put the better one into `chosen`, and "
                "the other into `rejected`, with a function: data.handler."
            )
    return None


def _is_tree(value: Any) -> bool:
    """Whether a value holds objects of objects, as ChatGPT's export and lists of scored answers do."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return bool(inner) and all(isinstance(each, dict) for each in inner)


def _quoted(name: str | None) -> str:
    return json.dumps(name, ensure_ascii=False)


def like(names: Sequence[str], parts: Sequence[str]) -> str | None:
    """The name that best matches one of these: as a whole, then by a part of it."""
    for part in parts:
        for name in names:
            if name.lower() == part:
                return name
    return next((name for part in parts for name in names if _is_like(name, (part,))), None)


def _is_like(name: str, parts: Collection[str]) -> bool:
    words = "".join(letter if letter.isalnum() else " " for letter in name.lower()).split()
    return any(part in words or (len(part) > 4 and part in name.lower()) for part in parts)
