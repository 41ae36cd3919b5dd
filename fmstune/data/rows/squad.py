"""Questions on a text with answers from that text: rows whose `answers` are texts with their positions, as in
SQuAD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fmstune.data.cells import parsed
from fmstune.data.columns import ANSWERS, CONVERSATIONS, QUESTIONS, Row
from fmstune.data.rows.unused import Unused
from fmstune.errors import DataError

SEVERAL = "only the first of several answers to a question is learnt"
PLACES = "answers.answer_start"
"""The column of the answers' positions in their context, which is not learnt."""

_LEARNT = ("input_ids", "chosen", "rejected", *CONVERSATIONS)
"""In rows with one of these, that is learnt: `answers` next to it is an ordinary column."""


def with_one_answer(row: Row, place: str, unused: Unused) -> Row:
    """A row whose `answers` (or `answer`, `output`, …) are SQuAD's, {text: [...], answer_start: [...]} or a
    list of such with one text each, as a row with an `answer`. Any other row unchanged.

    Raises `DataError` if there is no answer.
    """
    if any(row.get(name) is not None for name in _LEARNT):
        return row
    there = {name for name in (*QUESTIONS, *ANSWERS) if row.get(name) is not None}
    asks = not there.isdisjoint(QUESTIONS) and there.isdisjoint(ANSWERS)
    for name in ("answers", *ANSWERS) if asks else ANSWERS:
        ours = "answer" if name == "answers" else name
        if row.get(name) is None or (ours != name and row.get(ours) is not None):
            continue
        texts = _texts(parsed(row[name]), alone=name == "answers")
        if texts is None:
            continue
        if not texts:
            raise DataError(
                f"{place}: its question has no answer in `{name}`; remove such rows, or skip them "
                "with --skip-bad-rows."
            )
        if len(set(texts)) > 1:
            unused.add(SEVERAL, place)
        if _has_places(parsed(row[name])):
            unused.column(PLACES, place)
        return {key: value for key, value in row.items() if key != name} | {ours: texts[0]}
    return row


def _texts(value: Any, *, alone: bool) -> list[str] | None:
    """The texts of answers; `alone` also accepts a list of strings. `None` for anything else."""
    if isinstance(value, Mapping) and {"text", "answer_start"} <= value.keys():
        found = value["text"] if isinstance(value["text"], list) else [value["text"]]
    elif isinstance(value, list) and all(isinstance(each, Mapping) and "text" in each for each in value):
        if not value and not alone:
            return None
        found = [each["text"] for each in value]
    elif alone and isinstance(value, list):
        found = value
    else:
        return None
    return found if all(isinstance(each, str) for each in found) else None


def _has_places(value: Any) -> bool:
    return any("answer_start" in each for each in (value if isinstance(value, list) else [value]))
