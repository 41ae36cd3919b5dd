"""The shapes of rows: recognised from the first one, and brought into the few that are rendered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fmstune.tuning.errors import DataError
from fmstune.tuning.reading.conversations import (
    check_messages,
    check_tools,
    from_sharegpt,
    parsed,
    require_answer,
    require_text,
    with_system,
)
from fmstune.tuning.reading.formats import A_ROW, Row, kind_in_words

Shape = Literal[
    "messages",
    "prompt/completion",
    "prompt/completion as messages",
    "text",
    "tokens",
    "preference",
    "preference with margin",
    "labelled",
]
PREFERENCES: tuple[Shape, ...] = ("preference", "preference with margin", "labelled")
"""Shapes that only methods other than sft learn from; `preference` reads and checks them."""

_ALPACA = (
    "Below is an instruction that describes a task{}. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{}\n\n{}### Response:\n"
)


@dataclass(frozen=True, slots=True)
class Recognised:
    """What the rows of a source are: the shape that they are rendered in, the `name` of the one they have,
    and the check that brings a row from this into that, which raises `DataError`."""

    shape: Shape
    name: str
    read: Callable[[Row, str], Row]


def recognise(row: Row, place: str, *, chat: bool = True) -> Recognised:
    """The shape that a row has. `chat` says whether the model can be given conversations.

    Raises `DataError` with the columns that there are.
    """

    def has(*keys: str) -> bool:
        return all(row.get(key) is not None for key in keys)

    if has("messages"):
        key = "messages"
        spoken = _spoken(row[key])
        return Recognised("messages", f"messages{spoken}", _conversation(key))
    if has("conversations"):
        return Recognised("messages", f"conversations{_spoken(row['conversations'])}", _conversation())
    if has("chosen", "rejected"):
        return Recognised("preference", "chosen/rejected", lambda row, _: row)
    if has("prompt", "completion"):
        return _prompted(row)
    if has("instruction", "output"):
        if chat:
            return Recognised("messages", "instruction/input/output as messages", _alpaca_messages)
        return Recognised("prompt/completion", "instruction/input/output", _alpaca_text)
    if has("input_ids"):
        return Recognised("tokens", "input_ids/labels" if has("labels") else "input_ids", _tokens)
    if has("text"):
        return Recognised("text", "text", _text)
    columns = ", ".join(str(key) for key, value in row.items() if value is not None) or "none"
    raise DataError(f"{place}: the columns are {columns}; {A_ROW}.{_advice(row)}")


def _advice(row: Row) -> str:
    names = [key for key, value in row.items() if isinstance(value, str) and key != "prompt"]
    first, last = (names[0], names[-1]) if len(names) > 1 else ("question", "answer")
    return (
        f' Others are named with data.columns, as in --set \'data.columns={{prompt="{first}", completion='
        f"\"{last}\"}}', or put together with --template '{{{first}}} {{{last}}}'."
    )


def _spoken(messages: Any) -> str:
    messages = parsed(messages)
    first = messages[0] if isinstance(messages, list) and messages else None
    return " (from/value)" if isinstance(first, dict) and "from" in first and "role" not in first else ""


def _conversation(key: str = "conversations") -> Callable[[Row, str], Row]:
    def read(row: Row, place: str) -> Row:
        given = row.get(key)
        if given is None:
            raise DataError(f"{place}: there is no `{key}`; the first row has it, and so must all.")
        messages = from_sharegpt(parsed(given), place, key)
        check_messages(messages, place, key)
        _with_tools(row, place)
        require_answer(messages, place, key)
        return _with_tools(row, place) | {"messages": with_system(messages, row)}

    return read


def _with_tools(row: Row, place: str) -> dict[str, Any]:
    if not row.get("tools"):
        return {}
    check_tools(row["tools"], place)
    return {"tools": row["tools"]}


def _prompted(row: Row) -> Recognised:
    chat = isinstance(row["prompt"], list)
    if isinstance(row.get("label"), bool):
        return Recognised("labelled", "prompt/completion/label", lambda row, _: row)
    if chat:
        return Recognised("prompt/completion as messages", "prompt/completion as messages", _prompted_chat)
    return Recognised("prompt/completion", "prompt/completion", _prompted_text)


def _prompted_text(row: Row, place: str) -> Row:
    return {key: require_text(row, key, place) for key in ("prompt", "completion")}


def _prompted_chat(row: Row, place: str) -> Row:
    for key in ("prompt", "completion"):
        if row.get(key) is None:
            raise DataError(f"{place}: there is no `{key}`; the first row has it, and so must all.")
        check_messages(row[key], place, key)
    require_answer(row["completion"], place, "completion")
    tools = _with_tools(row, place)
    return tools | {"prompt": with_system(row["prompt"], row), "completion": row["completion"]}


def _text(row: Row, place: str) -> Row:
    return {"text": require_text(row, "text", place)}


def _alpaca(row: Row, place: str) -> tuple[str, str, str]:
    given = row.get("input")
    extra = "" if given is None else require_text(row, "input", place)
    return require_text(row, "instruction", place), extra.strip(), require_text(row, "output", place)


def _alpaca_messages(row: Row, place: str) -> Row:
    instruction, extra, output = _alpaca(row, place)
    question = f"{instruction}\n\n{extra}" if extra else instruction
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": output}]
    return _with_tools(row, place) | {"messages": with_system(messages, row)}


def _alpaca_text(row: Row, place: str) -> Row:
    """For a model without a chat template: the prompt that Alpaca's authors published."""
    instruction, extra, output = _alpaca(row, place)
    given = ", paired with an input that provides further context" if extra else ""
    prompt = _ALPACA.format(given, instruction, f"### Input:\n{extra}\n\n" if extra else "")
    return {"prompt": prompt, "completion": output}


def _tokens(row: Row, place: str) -> Row:
    ids = _numbers(row, "input_ids", place)
    labels = _numbers(row, "labels", place) if row.get("labels") is not None else list(ids)
    if len(ids) != len(labels):
        raise DataError(f"{place}: there are {len(ids)} `input_ids` and {len(labels)} `labels`.")
    mask = row.get("attention_mask")
    if isinstance(mask, list) and len(mask) == len(ids) and not all(mask):
        kept = [index for index, seen in enumerate(mask) if seen]  # padding comes with the batch
        ids, labels = [ids[index] for index in kept], [labels[index] for index in kept]
    return {"input_ids": ids, "labels": labels}


def _numbers(row: Row, key: str, place: str) -> list[int]:
    value = parsed(row.get(key))
    if not isinstance(value, list) or not value:
        what = kind_in_words(value) if not isinstance(value, list) else "empty"
        raise DataError(f"{place}: `{key}` is {what}, where a list of token ids is needed.")
    for item in value:
        if type(item) is not int:
            raise DataError(f"{place}: `{key}` has {item!r} in it, which is no token id.")
    return value


def renamed(columns: Mapping[str, str]) -> Callable[[Row, str], Row]:
    """A function that gives a row our names for its columns, and only those if they are a shape."""

    def rename(row: Row, place: str) -> Row:
        for ours, theirs in columns.items():
            if theirs not in row:
                there = ", ".join(map(str, row)) or "none"
                raise DataError(
                    f"{place}: there is no column {theirs!r}, as data.columns says of `{ours}`; the columns "
                    f"are {there}."
                )
        mapped = {ours: row[theirs] for ours, theirs in columns.items()}
        besides = {key: row[key] for key in ("system", "tools") if key in row}
        try:
            recognise(mapped, place)
        except DataError:
            return {**row, **mapped}
        return {**besides, **mapped}

    return rename
