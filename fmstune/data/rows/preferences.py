"""Preference rows: pairs (`chosen` and `rejected`) or single answers with a `label`, in one form.

Published data differ: the prompt is a column, or repeated in both answers, or only their common beginning;
answers are texts or messages. All of it becomes `prompt`, `chosen`, `rejected`, or `prompt`, `completion`,
`label`; `answers` tokenises them.
"""

from __future__ import annotations

import json
from typing import Any, cast

from fmstune.data.cells import as_boolean, kind_in_words, loaded
from fmstune.data.columns import (
    HISTORY,
    TEMPLATE_KWARGS,
    Row,
    as_message_list,
    context_of,
    has_value,
    history_of,
    require_text,
    system_of,
)
from fmstune.data.rows.conversations import template_inputs, with_system
from fmstune.data.rows.messages import read_messages
from fmstune.data.rows.preference_columns import PAIRS, PreferenceColumns, find_columns
from fmstune.data.rows.questions import plain_prompt, with_context, with_leading_space
from fmstune.data.rows.recognised import Recognised, Shape
from fmstune.data.rows.repeated import split_off_prompt
from fmstune.data.rows.unused import Unused
from fmstune.errors import DataError
from fmstune.text import counted

_NOT_LEARNT = "the weight of a message of the prompt is not used: only the answers of preferences are learnt"

REPEATED = "an answer begins with its prompt, which is learnt again as a part of it"

Answer = str | list[dict[str, Any]]


def recognise_preferences(row: Row, place: str, method: str, *, chat: bool = True) -> Recognised:
    """The shape of a source's rows, from its first one. `method` is what they are needed for, `chat`
    whether the model supports conversations.

    Raises `DataError` with the existing columns, or for an error in this row.
    """
    columns = find_columns(row, place, method, chat=chat)
    first = _formed(row, place, columns, Unused(""))
    is_chat, margin = _is_chat(first), "margin" in first

    def read(row: Row, place: str, unused: Unused) -> Row:
        made = _formed(row, place, columns, unused)
        if _is_chat(made) != is_chat:
            words = ("texts", "messages")
            raise DataError(
                f"{place}: its answers are {words[not is_chat]}, those of the first row {words[is_chat]}; "
                "make them all the same."
            )
        if ("margin" in made) != margin:
            there = "it has a `margin`, but the first row has none" if not margin else "it has no `margin`"
            raise DataError(f"{place}: {there}; give it to all rows or to none.")
        return made

    kind = columns.kind
    shape: Shape = "preference with margin" if margin else "preference" if kind == PAIRS else "labelled"
    return Recognised(shape, f"{kind}{' as messages' if is_chat else ''}", read, columns.used())


def demo_pair(row: Row) -> Row:
    """A conversation of the demo as a pair: the answer, and its words in the wrong order."""
    *prompt, answer = row["messages"]
    backwards = {**answer, "content": " ".join(reversed(answer["content"].split()))}
    return {"prompt": prompt, "chosen": [answer], "rejected": [backwards]}


def _formed(row: Row, place: str, columns: PreferenceColumns, unused: Unused) -> dict[str, Any]:
    made = (_pair if columns.kind == PAIRS else _labelled)(row, place, columns, unused)
    _require_characters(made, place)
    return made


def _pair(row: Row, where: str, columns: PreferenceColumns, unused: Unused) -> dict[str, Any]:
    chosen, rejected = (_answer(row, key, where, unused) for key in ("chosen", "rejected"))
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise DataError(f"{where}: one of `chosen` and `rejected` is a text, the other messages.")
    prompt = _prompt(row, where, columns, unused)
    _report_repeated(prompt, (chosen, rejected), where, unused)
    if columns.as_chat or isinstance(prompt, list):
        chosen, rejected = _said(chosen), _said(rejected)
    if isinstance(chosen, list) and isinstance(rejected, list):
        if isinstance(prompt, str) and any(answer[0]["role"] != "assistant" for answer in (chosen, rejected)):
            # The answers are whole conversations, which contain the question.
            if not any(prompt.strip() in str(message.get("content")) for message in chosen):
                unused.add(
                    f"the column `{columns.question}` is not used: `chosen` and `rejected` are whole "
                    "conversations, and do not contain it",
                    where,
                )
            prompt = None
        begins = _as_messages(prompt) if prompt is not None else []
        made = _chat_pair(begins, chosen, rejected, where, whole=columns.judges)
        made["prompt"] = _beginning(row, made["prompt"], made["chosen"], where, unused)
    elif prompt is None:
        cut = _shared_text(cast(str, chosen), cast(str, rejected))
        begun = _plain(row, cast(str, chosen)[:cut], columns, where)
        made = {"prompt": begun, "chosen": chosen[cut:], "rejected": rejected[cut:]}
    else:
        begun = _plain(row, cast(str, prompt), columns, where)
        both = {"chosen": cast(str, chosen), "rejected": cast(str, rejected)}
        made = {"prompt": begun} | {key: _after(columns, begun, text) for key, text in both.items()}
    columns.require_question(row, made, where)
    return made | _extras(row, made, where, unused, margin=columns.judges)


def _chat_pair(
    begins: list[dict[str, Any]],
    chosen: list[dict[str, Any]],
    rejected: list[dict[str, Any]],
    where: str,
    *,
    whole: bool,
) -> dict[str, Any]:
    """`whole` allows pairs that diverge at a question: a reward model judges conversations."""
    # Each keeps at least one message: an answer is needed even if one continues the other.
    wholes = [
        split_off_prompt(begins, answer, where, key)
        for key, answer in (("chosen", chosen), ("rejected", rejected))
    ]
    if begins and any(whole is not None for whole in wholes):
        chosen, rejected = (
            begins + answer if whole is None else whole[0] + whole[1]
            for answer, whole in zip((chosen, rejected), wholes, strict=True)
        )
        begins = []
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if not begins:
        begins, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    for key, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer or answer[-1]["role"] != "assistant":
            raise DataError(f"{where}: `{key}` does not end with a message of the assistant.")
        if not whole and answer[0]["role"] != "assistant":
            raise DataError(
                f"{where}: `chosen` and `rejected` diverge at message {len(begins) + 1}, which is not the "
                "assistant's in both; they must be answers to the same prompt."
            )
    return {"prompt": begins, "chosen": chosen, "rejected": rejected}


def _beginning(
    row: Row, prompt: list[dict[str, Any]], answer: list[dict[str, Any]], where: str, unused: Unused
) -> list[dict[str, Any]]:
    """The prompt after the row's history and system text."""
    given = history_of(row, where)
    history = read_messages(given, where, HISTORY, unused) if given else []
    begun = [*history, *prompt]
    if any(message.get("weight") for message in begun):
        unused.add(_NOT_LEARNT, where)
    if not begun and answer[0]["role"] == "system":
        with_system(answer, row, where, unused)  # reports a second one
        return begun
    return with_system(begun, row, where, unused)


def _plain(row: Row, prompt: str, columns: PreferenceColumns, where: str) -> str:
    """A prompt that is not a conversation, in the same wording as for sft (see `questions`)."""
    kept = HISTORY if history_of(row, where) else "system" if system_of(row, where) else None
    if kept and columns.question and (columns.chat or kept == HISTORY):
        raise DataError(
            f"{where}: it has a `{kept}`, which makes it a conversation, but "
            + ("the first row has none: add the column to all rows." if columns.chat else "the model has no")
            + ("" if columns.chat else " chat template; set one by name (model.chat_template = chatml).")
        )
    return plain_prompt(
        columns.question or "prompt", prompt, context_of(row, columns.contexts, where), system_of(row, where)
    )


def _after(columns: PreferenceColumns, prompt: str, answer: str) -> str:
    return answer if columns.question == "prompt" else with_leading_space(prompt, answer)


def _labelled(row: Row, where: str, columns: PreferenceColumns, unused: Unused) -> dict[str, Any]:
    label = _label(_there(row, "label", where), where)
    prompt: Answer | None
    if columns.answer is None:  # a conversation whose last message is judged
        assert columns.conversation is not None
        *prompt, last = _messages(
            _there(row, columns.conversation, where), where, columns.conversation, unused
        )
        completion: Answer = [last]
    else:
        completion = _answer(row, columns.answer, where, unused)
        prompt = _prompt(row, where, columns, unused)
        _report_repeated(prompt, (completion,), where, unused)
    assert prompt is not None
    if columns.as_chat or isinstance(completion, list) or isinstance(prompt, list):
        prompt, completion = _as_messages(prompt), _said(completion)
        if whole := split_off_prompt(prompt, completion, where, columns.answer or ""):
            prompt, completion = whole
        spoken = next((at for at, each in enumerate(completion) if each["role"] == "assistant"), 0)
        prompt, completion = [*prompt, *completion[:spoken]], completion[spoken:]
        if not completion or completion[-1]["role"] != "assistant":
            name = columns.answer or columns.conversation
            raise DataError(f"{where}: `{name}` does not end with a message of the assistant.")
        prompt = _beginning(row, prompt, completion, where, unused)
    else:
        prompt = _plain(row, prompt, columns, where)
        completion = _after(columns, prompt, completion)
    made = {"prompt": prompt, "completion": completion, "label": label}
    return made | _extras(row, made, where, unused, margin=False)


def _extras(row: Row, made: Row, where: str, unused: Unused, *, margin: bool) -> dict[str, Any]:
    """What is read in addition to the answers: what the chat template is given besides a conversation, and a
    reward's `margin`. Texts are learnt unchanged, so tools next to them are not used."""
    found = template_inputs(row, where, unused) if _is_chat(made) else {}
    for name in () if _is_chat(made) else ("tools", "functions", TEMPLATE_KWARGS):
        if has_value(row.get(name)):
            unused.column(name, where)
    if margin and row.get("margin") is not None:
        try:
            found["margin"] = float(row["margin"])
        except (TypeError, ValueError):
            raise DataError(f"{where}: `margin` takes a number: how much better `chosen` is.") from None
    return found


def _there(row: Row, key: str, where: str) -> Any:
    value = row.get(key)
    if value is None:
        raise DataError(f"{where}: there is no `{key}`; the first row has it, and so must all.")
    return value


def _answer(row: Row, key: str, where: str, unused: Unused) -> Answer:
    value = _there(row, key, where)
    prompt = row.get("prompt")
    cell = key != "prompt" and isinstance(prompt, str) and as_message_list(prompt) is not None
    messages = as_message_list(value, cell=cell)
    if messages is not None:
        loaded(value, f"{where}: `{key}`")  # refuses a text with a duplicate key
        return _messages(messages, where, key, unused)
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        raise DataError(
            f"{where}: `{key}` is a list of {counted(len(value), 'string')}; it takes a single "
            "one: make each a row."
        )
    if isinstance(value, list):
        return _messages(value, where, key, unused)
    if isinstance(value, (dict, bool)):
        raise DataError(
            f"{where}: `{key}` is {kind_in_words(value)}; it takes a string, or a list of messages."
        )
    return require_text(row, key, where)


def _messages(value: Any, where: str, key: str, unused: Unused) -> list[dict[str, Any]]:
    messages = read_messages(value, where, key, unused)
    # Nothing is learnt of messages that are not answers: some files say so with a weight of 0.
    usual = {"assistant": (1.0,)}
    if any(
        message.get("weight", 1.0) not in usual.get(message["role"], (0.0, 1.0)) or "masked" in message
        for message in messages
    ):
        raise DataError(
            f"{where}: a message of `{key}`, or a part of it, has a weight, which only sft has; remove it."
        )
    return messages


def _prompt(row: Row, where: str, columns: PreferenceColumns, unused: Unused) -> Answer | None:
    """The prompt to answer; as messages if the row's columns make it a conversation."""
    if columns.conversation is not None:
        return _messages(_there(row, columns.conversation, where), where, columns.conversation, unused)
    if columns.question is None:
        return None
    asked = _answer(row, columns.question, where, unused)
    if isinstance(asked, str):
        return with_context(asked, context_of(row, columns.contexts, where)) if columns.as_chat else asked
    for name in columns.contexts:
        if has_value(row.get(name)):  # a conversation has its own
            unused.column(name, where)
    return asked


def _report_repeated(prompt: Answer | None, answers: tuple[Answer, ...], where: str, unused: Unused) -> None:
    """Report texts that contain their prompt, as whole texts do beside a column of prompts. They are learnt
    unchanged: an answer may well begin with the words of a short prompt."""
    asked = prompt.strip() if isinstance(prompt, str) else ""
    texts = (each.lstrip() for each in answers if isinstance(each, str))
    if len(asked.split()) > 1 and any(text.startswith(asked) for text in texts):
        unused.add(REPEATED, where)


def _label(value: Any, where: str) -> bool:
    label = as_boolean(value)
    if label is None:
        raise DataError(f"{where}: `label` is {value!r}; use true for a good answer, false for a bad one.")
    return label


def _as_messages(prompt: Answer) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _said(answer: Answer) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer


def _shared_text(chosen: str, rejected: str) -> int:
    """The length of the common prompt of two texts: up to the word where they diverge, since a word that is
    cut would have other tokens than the whole word."""
    most = min(len(chosen), len(rejected)) - 1  # each keeps a remainder
    length = 0
    while length < most and chosen[length] == rejected[length]:
        length += 1
    word = max(chosen.rfind("\n", 0, length) + 1, chosen.rfind(" ", 0, length))
    return word if word > 0 else max(length, 0)


def _is_chat(row: Row) -> bool:
    return not isinstance(row["prompt"], str)


def _require_characters(row: Row, where: str) -> None:
    """Raise for texts that were cut in the middle of an emoji: tables cannot store the remaining half."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: it contains an unpaired surrogate ({error.object[error.start]!a}), like texts "
            "that were cut in the middle of an emoji; remove it."
        ) from None
