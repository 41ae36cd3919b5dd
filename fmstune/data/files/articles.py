"""Articles of paragraphs with questions, as in SQuAD's files, as one row per question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fmstune.data.columns import Row
from fmstune.errors import DataError


def is_article(value: Any) -> bool:
    """Whether an object of a file is an article: {title, paragraphs: [{context, qas: [...]}]}."""
    if not isinstance(value, Mapping) or not isinstance(value.get("paragraphs"), list):
        return False
    return all(
        isinstance(each, Mapping) and isinstance(each.get("qas"), list) for each in value["paragraphs"]
    )


def questions_of(place: str, article: Any) -> Iterator[tuple[str, Row | DataError]]:
    """The questions of an article as rows of {title, context, question, answers}, with their places."""
    beside = {name: value for name, value in article.items() if name != "paragraphs"}
    number = 0
    for paragraph in article["paragraphs"]:
        common = beside | {name: value for name, value in paragraph.items() if name != "qas"}
        for question in paragraph["qas"]:
            number += 1
            where = f"{place}, question {number}"
            if isinstance(question, Mapping):
                yield where, common | dict(question)
            else:
                yield where, DataError(f"{where}: this is not an object with `question` and `answers`.")
