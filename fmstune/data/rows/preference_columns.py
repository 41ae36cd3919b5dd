"""The columns of preference rows, determined from the first row."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from fmstune.config.methods.known import METHODS, methods_for
from fmstune.data.columns import (
    ANSWERS,
    BY_HANDLER,
    CONVERSATIONS,
    LIKE_QUESTIONS,
    QUESTIONS,
    Row,
    about_rivals,
    as_message_list,
    columns_in_words,
    first_present,
    has_value,
    like,
)
from fmstune.data.rows.conversations import BESIDE_CHATS
from fmstune.data.rows.questions import OF_CHATS, context_columns
from fmstune.data.rows.shapes import ends_with_question
from fmstune.errors import DataError

Kind = Literal["chosen/rejected", "prompt/completion/label"]
PAIRS: Kind = "chosen/rejected"
LABELLED: Kind = "prompt/completion/label"
_LIKE_CHOSEN = ("chosen", "good", "better", "best", "preferred", "accepted", "winner", "positive", "correct")
_LIKE_REJECTED = ("rejected", "bad", "worse", "worst", "dispreferred", "loser", "negative", "incorrect")


@dataclass(frozen=True, slots=True)
class PreferenceColumns:
    """The columns of a source: the question and its context, or a conversation that ends with it; and the
    answer, if rows have one. `as_chat`: whether texts become messages, which needs a model that supports
    them (`chat`)."""

    kind: Kind
    method: str
    question: str | None
    conversation: str | None
    answer: str | None
    as_chat: bool
    chat: bool

    @property
    def judges(self) -> bool:
        """Whether whole conversations are compared instead of answers."""
        return METHODS[self.method].form == "judged pair"

    @property
    def contexts(self) -> tuple[str, ...]:
        """Columns that are a part of the question."""
        return context_columns(self.question, self.answer or "") if self.question else ()

    def require_question(self, row: Row, made: Row, where: str) -> None:
        """Raise `DataError` for a pair without a question (`made`) that has a column for it: an empty one, or
        one that is not read, since the first row has none there or repeats an answer in it."""
        asked = made["prompt"]
        if asked if isinstance(asked, list) else asked.strip():
            return
        if isinstance(asked, list) and made["chosen"][0]["role"] != "assistant":
            return  # a reward model judges whole conversations
        for name in (*QUESTIONS, *CONVERSATIONS):
            if name in row and name not in self.used():
                there = f"its `{name}` is {'not read as one' if has_value(row[name]) else 'empty'}"
                raise DataError(
                    f"{where}: its answers follow no question, and {there}; put the question into "
                    "`prompt`, in every row."
                )

    def used(self) -> frozenset[str]:
        """All columns that are read."""
        answers = ("chosen", "rejected") if self.kind == PAIRS else (self.answer, "label")
        margin = ("margin",) if self.judges else ()
        named = (
            self.question,
            self.conversation,
            *self.contexts,
            *answers,
            *OF_CHATS,
            *BESIDE_CHATS,
            *margin,
        )
        return frozenset(name for name in named if name)


def find_columns(row: Row, where: str, method: str, *, chat: bool) -> PreferenceColumns:
    """The columns of a source, from its first row. Raises `DataError` with the existing ones."""

    def has(*names: str | None) -> bool:
        return all(name is not None and row.get(name) is not None for name in names)

    form = METHODS[method].form
    question = first_present(row, ("prompt", *QUESTIONS))
    answer = first_present(row, ("completion", *ANSWERS))
    if question == answer or (answer == "completion" and question != "prompt"):
        question = next((name for name in ("prompt", *QUESTIONS) if has(name) and name != answer), None)
    conversation = next((name for name in CONVERSATIONS if as_message_list(row.get(name))), None)
    judged = has("label") and (has(question, answer) or conversation is not None)
    if has("chosen", "rejected") and (form != "labelled" or not judged):
        if question is not None or (conversation and not ends_with_question(row[conversation])):
            conversation = None  # it repeats an answer, as UltraFeedback's `messages` do
        extra = any(name in row for name in OF_CHATS) or question not in ("prompt", None)
        return PreferenceColumns(PAIRS, method, question, conversation, None, chat and extra, chat)
    if judged and form == "labelled":
        if has(question, answer):
            extra = any(name in row for name in OF_CHATS) or (question, answer) != ("prompt", "completion")
            return PreferenceColumns(LABELLED, method, question, None, answer, chat and extra, chat)
        return PreferenceColumns(LABELLED, method, None, conversation, None, True, chat)
    if form != "labelled" and (advice := _pair_in_other_columns(row, answer)):
        other = advice
    elif judged:
        other = f" Such rows are for --method {methods_for('labelled')}."
    elif conversation or has("completion") or has("text") or has(question, answer):
        other = f" Such rows are for --method {methods_for('tokens')}."
    else:
        other = "" if has("chosen") or has("rejected") else BY_HANDLER
    raise DataError(
        f"{where}: --method {method} {METHODS[method].needs}; the columns are {columns_in_words(row)}.{other}"
    )


def _pair_in_other_columns(row: Row, answer: str | None) -> str | None:
    """What to do with a row whose two answers are elsewhere. `answer` is its column of answers, if any."""
    texts = row.get(answer) if answer else None
    if isinstance(texts, list) and len(texts) == 2 and all(isinstance(each, str) for each in texts):
        return (
            f" If the two texts in `{answer}` are its answers, put the better one into `chosen`, and the "
            "other into `rejected`."
        )
    names = [name for name, value in row.items() if isinstance(name, str) and isinstance(value, str)]
    rejected = like(names, _LIKE_REJECTED)  # first: "incorrect" is also like "correct"
    chosen = like([name for name in names if name != rejected], _LIKE_CHOSEN)
    if chosen is None or rejected is None:
        return about_rivals(names)
    question = like([name for name in names if name not in (chosen, rejected)], LIKE_QUESTIONS)
    asked = {}
    if question is not None:  # a question is a chat if the model has a template, a `prompt` a text as it is
        key = question if question in QUESTIONS else "question"
        asked = {key: question} | {name: name for name in context_columns(key) if name in names}
    named = asked | {"chosen": chosen, "rejected": rejected}
    listed = ", ".join(f"{key}={json.dumps(name)}" for key, name in named.items())
    return f" To use other columns, name them with data.columns, as in --set 'data.columns={{{listed}}}'."
