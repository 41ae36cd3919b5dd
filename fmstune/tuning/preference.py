"""Rows of preferences: pairs (`chosen` and `rejected`) or single answers with a `label`, in one form.

What people publish differs: the prompt is a column, or repeated in both answers, or only the beginning
that they share; answers are texts or messages. All of it becomes `prompt`, `chosen`, `rejected`, or
`prompt`, `completion`, `label`; `answers` makes tokens of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, cast

from fmstune.tuning.errors import DataError
from fmstune.tuning.reading.conversations import check_messages, check_tools
from fmstune.tuning.reading.formats import kind_in_words
from fmstune.tuning.reading.shapes import Recognised, Shape

Kind = Literal["chosen/rejected", "prompt/completion/label"]
Row = Mapping[str, Any]
Answer = str | list[dict[str, Any]]

PAIRS: Kind = "chosen/rejected"
LABELLED: Kind = "prompt/completion/label"

_TRUE_OR_FALSE = {"true": True, "false": False, "1": True, "0": False}
_NEEDS = {
    "dpo": "learns from pairs of answers: rows have `chosen` and `rejected`, and mostly a `prompt`",
    "reward": "learns from pairs of answers: rows have `chosen` and `rejected`, and mostly a `prompt`",
    "kto": "learns from good and bad answers: rows have `prompt`, `completion` and `label` (true or false), "
    "or `chosen` and `rejected`",
}


def recognise_preferences(row: Row, place: str, method: str) -> Recognised:
    """The shape of the rows of a source, by its first one. `method` says what they are needed for.

    Raises `DataError` with the columns that there are, or for what is wrong in this row.
    """
    kind = _recognised(row, place, method)
    first = _formed(row, place, method, kind)
    chat, margin = _is_chat(first), "margin" in first

    def read(row: Row, place: str) -> Row:
        made = _formed(row, place, method, kind)
        if _is_chat(made) != chat:
            words = ("texts", "messages")
            raise DataError(
                f"{place}: its answers are {words[not chat]}, those of the first row {words[chat]}; make "
                "them all the same."
            )
        if ("margin" in made) != margin:
            there = "it has a `margin`, and the first row none" if not margin else "it has no `margin`"
            raise DataError(f"{place}: {there}; give it to all rows or to none.")
        return made

    shape: Shape = "preference with margin" if margin else "preference" if kind == PAIRS else "labelled"
    return Recognised(shape, f"{kind}{' as messages' if chat else ''}", read)


def demo_pair(row: Row) -> Row:
    """A conversation of the demo as a pair: the answer, and its words in the wrong order."""
    *prompt, answer = row["messages"]
    backwards = {**answer, "content": " ".join(reversed(answer["content"].split()))}
    return {"prompt": prompt, "chosen": [answer], "rejected": [backwards]}


def _formed(row: Row, place: str, method: str, kind: Kind) -> dict[str, Any]:
    made = _pair(row, place, method) if kind == PAIRS else _labelled(row, place)
    _require_characters(made, place)
    return made


def _recognised(row: Row, where: str, method: str) -> Kind:
    pair = all(row.get(key) is not None for key in ("chosen", "rejected"))
    labelled = all(row.get(key) is not None for key in ("prompt", "completion", "label"))
    if pair and (method != "kto" or not labelled):
        return PAIRS
    if labelled and method == "kto":
        return LABELLED
    columns = ", ".join(str(key) for key, value in row.items() if value is not None) or "none"
    if labelled:
        other = " Such rows are for --method kto."
    elif any(row.get(key) is not None for key in ("messages", "completion", "text")):
        other = " Such rows are for --method sft."
    else:
        other = ""
    raise DataError(f"{where}: --method {method} {_NEEDS[method]}; the columns are {columns}.{other}")


def _pair(row: Row, where: str, method: str) -> dict[str, Any]:
    chosen, rejected = (_answer(row, key, where) for key in ("chosen", "rejected"))
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise DataError(f"{where}: of `chosen` and `rejected` one is a text, the other messages.")
    prompt = _prompt(row, where)
    if isinstance(chosen, list) and isinstance(rejected, list):
        made = _chat_pair(prompt, chosen, rejected, where, whole=method == "reward")
    elif isinstance(prompt, list):
        made = {"prompt": prompt, "chosen": _said(chosen), "rejected": _said(rejected)}
    elif prompt is None:
        cut = _shared_text(cast(str, chosen), cast(str, rejected))
        made = {"prompt": chosen[:cut], "chosen": chosen[cut:], "rejected": rejected[cut:]}
    else:
        made = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return made | _besides(row, where, method)


def _chat_pair(
    prompt: Answer | None,
    chosen: list[dict[str, Any]],
    rejected: list[dict[str, Any]],
    where: str,
    *,
    whole: bool,
) -> dict[str, Any]:
    """`whole` allows pairs that part at a question: of a reward model the conversations are judged."""
    if isinstance(prompt, str) and any(answer[0]["role"] != "assistant" for answer in (chosen, rejected)):
        prompt = None  # the answers are whole conversations, in which the question is found again
    begins = _as_messages(prompt) if prompt is not None else []
    if begins and all(answer[: len(begins)] == begins for answer in (chosen, rejected)):
        chosen, rejected = chosen[len(begins) :], rejected[len(begins) :]
    elif not begins:
        # Each keeps a message at least: an answer is needed even where one goes on after the other's end.
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        begins, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    for key, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer or answer[-1]["role"] != "assistant":
            raise DataError(f"{where}: `{key}` does not end with a message of the assistant.")
        if not whole and answer[0]["role"] != "assistant":
            raise DataError(
                f"{where}: `chosen` and `rejected` part at message {len(begins) + 1}, which is not the "
                "assistant's in both; they have to be answers to the same prompt."
            )
    return {"prompt": begins, "chosen": chosen, "rejected": rejected}


def _labelled(row: Row, where: str) -> dict[str, Any]:
    for key in ("prompt", "completion", "label"):
        if row.get(key) is None:
            raise DataError(f"{where}: there is no `{key}`; the first row has it, and so must all.")
    completion, prompt = _answer(row, "completion", where), _prompt(row, where)
    assert prompt is not None
    if isinstance(completion, list) or isinstance(prompt, list):
        prompt, completion = _as_messages(prompt), _said(completion)
        if completion[: len(prompt)] == prompt:
            completion = completion[len(prompt) :]
        if not completion or completion[-1]["role"] != "assistant":
            raise DataError(f"{where}: `completion` does not end with a message of the assistant.")
    made = {"prompt": prompt, "completion": completion, "label": _label(row["label"], where)}
    return made | _besides(row, where, "kto")


def _besides(row: Row, where: str, method: str) -> dict[str, Any]:
    """What TRL reads besides the answers: the tools of the conversation, a reward's `margin`."""
    found: dict[str, Any] = {}
    if row.get("tools"):
        check_tools(row["tools"], where)
        found["tools"] = row["tools"]
    if method == "reward" and row.get("margin") is not None:
        try:
            found["margin"] = float(row["margin"])
        except (TypeError, ValueError):
            raise DataError(f"{where}: `margin` takes a number: how much better `chosen` is.") from None
    return found


def _answer(row: Row, key: str, where: str) -> Answer:
    value = row.get(key)
    if value is None:
        raise DataError(f"{where}: there is no `{key}`; the first row has it, and so must all.")
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise DataError(
            f"{where}: `{key}` is {kind_in_words(value)}; it takes a text, or a list of messages."
        )
    check_messages(value, where, key)
    return value


def _prompt(row: Row, where: str) -> Answer | None:
    return None if row.get("prompt") is None else _answer(row, "prompt", where)


def _label(value: Any, where: str) -> bool:
    label = _TRUE_OR_FALSE.get(str(value).strip().lower().removesuffix(".0"))
    if label is None:
        raise DataError(f"{where}: `label` is {value!r}; it is true for a good answer, false for a bad one.")
    return label


def _as_messages(prompt: Answer) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _said(answer: Answer) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer


def _shared_text(chosen: str, rejected: str) -> int:
    """The length of the prompt that two texts share: up to the word at which they part, since a word that
    is cut would be other tokens than the same word in one piece."""
    most = min(len(chosen), len(rejected)) - 1  # each keeps something of its own
    length = 0
    while length < most and chosen[length] == rejected[length]:
        length += 1
    word = max(chosen.rfind("\n", 0, length) + 1, chosen.rfind(" ", 0, length))
    return word if word > 0 else max(length, 0)


def _is_chat(row: Row) -> bool:
    return not isinstance(row["prompt"], str)


def _require_characters(row: Row, where: str) -> None:
    """Texts that were cut in the middle of an emoji hold half a character, which no table can."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: it holds half a character ({error.object[error.start]!a}), as texts do that were cut "
            "in the middle of an emoji; take it out."
        ) from None
