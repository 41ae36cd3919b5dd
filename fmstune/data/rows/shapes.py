"""The shapes of rows: recognised from the first one, and converted to the few that are rendered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from fmstune.config.methods.known import methods_for
from fmstune.data.cells import kind_in_words, loaded, parsed
from fmstune.data.columns import (
    ANSWERS,
    CONVERSATIONS,
    QUESTIONS,
    SPEAKERS,
    Row,
    as_list,
    as_message_list,
    first_present,
    has_value,
    is_message,
    is_segments,
    is_verdict,
    require_text,
    unknown_shape,
)
from fmstune.data.rows.conversations import (
    BESIDE_CHATS,
    require_answer,
    template_inputs,
    with_system,
)
from fmstune.data.rows.masks import read_segments
from fmstune.data.rows.messages import read_messages
from fmstune.data.rows.questions import OF_CHATS, context_columns, question_rows
from fmstune.data.rows.recognised import PREFERENCES, Recognised, Shape
from fmstune.data.rows.repeated import split_off_prompt
from fmstune.data.rows.unused import Unused
from fmstune.errors import DataError
from fmstune.text import counted

__all__ = ["PREFERENCES", "Recognised", "Shape", "recognise"]


def recognise(row: Row, place: str, *, chat: bool = True) -> Recognised:
    """The shape of a row. `chat`: whether the model supports conversations.

    Raises `DataError` with the existing columns.
    """

    def has(*keys: str) -> bool:
        return all(row.get(key) is not None for key in keys)

    key = first_present(row, CONVERSATIONS)
    pair = has("chosen", "rejected")
    if key and not (pair and ends_with_question(row[key])):
        return _judged_or(row, _conversation(row, key), (key,))
    answer = first_present(row, ANSWERS)
    question = next((name for name in QUESTIONS if has(name) and name != answer), None)
    if pair:
        answers = as_message_list(row["chosen"])
        named = [question, *_contexts(row, question)] if question else []
        asked = "".join(f'{name} = "{name}", ' for name in named)
        asked = asked or (f'prompt = "{key}", ' if key else "")
        whole = answers is not None and (not asked or len(answers) > 1)
        kept = "messages" if whole else "completion" if asked else "text"
        given = asked if kept == "completion" else ""
        as_examples = f'{given}{kept} = "chosen"'
        return Recognised("preference", "chosen/rejected", _as_it_is, frozenset(row), as_examples)
    if has("prompt", "completion"):
        learnt = ("prompt", *_contexts(row, "prompt", "completion"), "completion")
        return _judged_or(row, _prompted(row, chat=chat), learnt)
    if has("input_ids"):
        name = "input_ids/labels" if has("labels") else "input_ids"
        read = _labelled_tokens if has("labels") else _tokens
        return Recognised("tokens", name, read, frozenset(("input_ids", "labels", "attention_mask")))
    if question and answer and _may_be_text(row[question]) and _may_be_text(row[answer]):
        learnt = (question, *_contexts(row, question, answer), answer)
        return _judged_or(row, question_rows(row, question, answer, chat=chat), learnt)
    if has("text", "message_id", "role") and "parent_id" in row:  # OASST's
        raise DataError(
            f"{place}: it is one message of a tree (`parent_id`): make each path through the tree a row with "
            '`messages`, or set data.columns = {text = "text"} to learn each message as a text of its own.'
        )
    if is_segments(parsed(row.get("segments"))):
        return Recognised("segments", "segments", _segments, frozenset(("segments",)))
    if has("text"):
        return Recognised("text", "text", _text, frozenset(("text",)))
    raise unknown_shape(row, place)


def _may_be_text(value: Any) -> bool:
    # A list is refused with its location, as in later rows; an object (SQuAD's answers) is something
    # unknown.
    return not isinstance(value, (bool, dict))


def _as_it_is(row: Row, place: str, unused: Unused) -> Row:
    return row


def _contexts(row: Row, question: str, answer: str = "") -> list[str]:
    return [name for name in context_columns(question, answer) if name in row]


def _judged_or(row: Row, found: Recognised, learnt: Sequence[str]) -> Recognised:
    """`found`, or, if a label marks answers as good or bad, rows for kto: bad answers must not be learnt as
    examples, whichever row has the label first."""
    as_examples = ", ".join(f'{name} = "{name}"' for name in learnt)
    if label := _verdict(row):
        return Recognised("labelled", f"{found.name}/{label}", _as_it_is, frozenset(row), as_examples)

    def read(row: Row, place: str, unused: Unused) -> Row:
        if label := _verdict(row):
            raise DataError(
                f"{place}: its `{label}` marks the answer as good or bad, but the first row has none. "
                f"Such rows are for --method {methods_for('labelled')}; to learn all answers, set "
                f"data.columns = {{{as_examples}}}."
            )
        return found.read(row, place, unused)

    return replace(found, read=read)


def _verdict(row: Row) -> str | None:
    """The column that marks the answer as good or bad, as in TRL or in LLaMA-Factory."""
    return next((name for name in ("label", "kto_tag") if is_verdict(row.get(name))), None)


def _conversation(row: Row, key: str) -> Recognised:
    messages = as_list(parsed(row[key]))
    first = messages[0] if isinstance(messages, list) and messages else None
    spoken = " (from/value)" if isinstance(first, dict) and "from" in first and "role" not in first else ""

    def read(row: Row, place: str, unused: Unused) -> Row:
        given = row.get(key)
        if given is None:
            raise DataError(f"{place}: there is no `{key}`; the first row has it, and so must all.")
        turns = _turns(parsed(loaded(given, f"{place}: `{key}`")), place, key)
        messages = read_messages(turns, place, key, unused)
        require_answer(messages, place, key)
        return template_inputs(row, place, unused) | {"messages": with_system(messages, row, place, unused)}

    return Recognised("messages", f"{key}{spoken}", read, frozenset((key, *BESIDE_CHATS)))


_TURNS = (("input", "output"), ("human", "assistant"), ("user", "assistant"))
"""The two sides of a turn, in Capybara and XTuner, in Firefly, and in others."""


def _turns(messages: Any, place: str, key: str) -> Any:
    """Turns of {input, output} or {human, assistant} as messages, perhaps with a `system` (XTuner); and texts
    by turns, as in LIMA. Anything else unchanged. Raises `DataError` for an odd number of texts."""
    if not isinstance(messages, list) or not messages:
        return messages
    if key != "messages" and all(isinstance(each, str) for each in messages):
        if len(messages) % 2:
            raise DataError(
                f"{place}: `{key}` has {counted(len(messages), 'text')}, which are question and answer by "
                "turns; the last one has no answer: remove it, or skip such rows with --skip-bad-rows."
            )
        roles = ("user", "assistant")
        return [{"role": roles[at % 2], "content": text} for at, text in enumerate(messages)]
    for asks, answers in _TURNS:
        if all(
            isinstance(turn, dict) and {asks, answers} <= turn.keys() and not is_message(turn)
            for turn in messages
        ):
            return [message for turn in messages for message in _of_turn(turn, asks, answers)]
    return messages


def _of_turn(turn: Row, asks: str, answers: str) -> Iterator[dict[str, Any]]:
    if has_value(turn.get("system")):
        yield {"role": "system", "content": turn["system"]}
    yield {"role": "user", "content": turn[asks]}
    # A turn's other fields (its weight, its reasoning) belong to its answer.
    others = {name: value for name, value in turn.items() if name not in ("system", asks, answers)}
    yield {**others, "role": "assistant", "content": turn[answers]}


def ends_with_question(messages: Any) -> bool:
    """Whether the last message is not an answer: the answer is then in another column."""
    messages = as_list(parsed(messages))
    last = messages[-1] if isinstance(messages, list) and messages else None
    if not isinstance(last, dict) or not is_message(last):
        return False
    return SPEAKERS.get(str(last.get("role", last.get("from"))).strip().lower()) != "assistant"


def _prompted(row: Row, *, chat: bool) -> Recognised:
    """A prompt and its completion: messages, or texts, which are learnt unchanged, as in TRL. Columns that
    only a conversation has make them one."""
    name: Shape = "prompt/completion"
    if any(as_message_list(row[key]) for key in ("prompt", "completion")):
        columns = frozenset(("prompt", "completion", *BESIDE_CHATS))
        return Recognised("prompt/completion as messages", f"{name} as messages", _prompted_chat, columns)
    if any(key in row for key in (*OF_CHATS, "context")):
        return question_rows(row, "prompt", "completion", chat=chat)
    return Recognised(name, name, _prompted_text, frozenset(("prompt", "completion", *OF_CHATS)))


def _prompted_text(row: Row, place: str, unused: Unused) -> Row:
    for name in OF_CHATS:
        if has_value(row.get(name)):
            raise DataError(
                f"{place}: it has a `{name}`, but the first row has no such column; add it to all rows, "
                "empty where there is none, and they are learnt as conversations."
            )
    return {key: require_text(row, key, place) for key in ("prompt", "completion")}


def _prompted_chat(row: Row, place: str, unused: Unused) -> Row:
    sides = {}
    cells = isinstance(row.get("prompt"), str)
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        if row.get(key) is None:
            raise DataError(f"{place}: there is no `{key}`; the first row has it, and so must all.")
        given = as_message_list(row[key], cell=cells)
        # A prompt that starts like a list of objects was truncated, if rows contain messages.
        whole = key == "completion" or not str(row[key]).lstrip().startswith("[{")
        if given is None and isinstance(row[key], str) and whole:
            given = [{"role": role, "content": row[key]}]
        if given is not None:
            loaded(row[key], f"{place}: `{key}`")  # refuses a text with a duplicate key
        sides[key] = read_messages(row[key] if given is None else given, place, key, unused)
    require_answer(sides["completion"], place, "completion")
    prompt, completion = split_off_prompt(sides["prompt"], sides["completion"], place, "completion") or (
        sides["prompt"],
        sides["completion"],
    )
    prompt = with_system(prompt, row, place, unused)
    return template_inputs(row, place, unused) | {"prompt": prompt, "completion": completion}


def _text(row: Row, place: str, unused: Unused) -> Row:
    return {"text": require_text(row, "text", place)}


def _segments(row: Row, place: str, unused: Unused) -> Row:
    given = parsed(row.get("segments"))
    if not is_segments(given):
        raise DataError(
            f"{place}: `segments` takes a list of {{label, text}}; the label is true if its text is learnt."
        )
    text, learnt = read_segments(given)
    return {"text": text, "learnt": learnt}


def _labelled_tokens(row: Row, place: str, unused: Unused) -> Row:
    if row.get("labels") is None:
        raise DataError(
            f"{place}: it has no `labels`, but the first row has; without them all its tokens would be "
            "trained, so add them to all rows."
        )
    return _tokens(row, place, unused)


def _tokens(row: Row, place: str, unused: Unused) -> Row:
    ids = _numbers(row, "input_ids", place)
    labels = _numbers(row, "labels", place) if row.get("labels") is not None else list(ids)
    if len(ids) != len(labels):
        raise DataError(f"{place}: there are {len(ids)} `input_ids` and {len(labels)} `labels`.")
    mask = ids if row.get("attention_mask") is None else _numbers(row, "attention_mask", place)
    if len(mask) != len(ids):
        raise DataError(f"{place}: there are {len(ids)} `input_ids` and {len(mask)} of `attention_mask`.")
    if mask is not ids and not all(mask):
        kept = [index for index, seen in enumerate(mask) if seen]  # batching adds the padding
        ids, labels = [ids[index] for index in kept], [labels[index] for index in kept]
    return {"input_ids": ids, "labels": labels}


def _numbers(row: Row, key: str, place: str) -> list[int]:
    value = parsed(row.get(key))
    if not isinstance(value, list) or not value:
        what = kind_in_words(value) if not isinstance(value, list) else "empty"
        raise DataError(f"{place}: `{key}` is {what}, where a list of token ids is needed.")
    for item in value:
        if type(item) is not int:
            raise DataError(f"{place}: `{key}` contains {item!r}, which is not a token id.")
    return value
