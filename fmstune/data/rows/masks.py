"""Characters of an answer that are not learnt: parts with `train` or `weight`, and axolotl's `train_detail`;
and texts in segments, some of which are learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fmstune.data.cells import as_boolean
from fmstune.data.columns import has_value
from fmstune.data.rows.fields import Fields
from fmstune.errors import DataError

DETAIL = "train_detail"

Range = tuple[int, int]
"""Characters of a message's text, from the first to before the last."""


def is_learnt(part: Fields, where: str) -> bool:
    """Whether a part of an answer is learnt, by its `train` or `weight`. Raises `DataError`."""
    learnt = True
    for name in ("train", "weight"):
        value = part.get(name)
        said = as_boolean(value)
        if said is None and value in (0, 1):
            said = bool(value)
        if said is None and has_value(value):
            raise DataError(
                f"{where} has a part with {value!r} as its `{name}`; it is learnt (true or 1) or not (false "
                "or 0)."
            )
        learnt = learnt and said is not False
    return learnt


def outside_of(details: Any, text: str, where: str) -> tuple[Range, ...]:
    """The characters of an answer's text that are not learnt, by its `train_detail`: a list of {begin_offset,
    end_offset, train}, of which the ends are included. Raises `DataError`."""
    learnt = [False] * len(text)
    for detail in details if isinstance(details, Sequence) else [details]:
        begin, end, train = (
            (detail.get("begin_offset"), detail.get("end_offset"), as_boolean(detail.get("train")))
            if isinstance(detail, Mapping)
            else (None, None, None)
        )
        if type(begin) is not int or type(end) is not int or train is None or not 0 <= begin <= end:
            raise DataError(
                f"{where} has {detail!r} in its `{DETAIL}`; an item is {{begin_offset, end_offset, train}}, "
                "with the numbers of the first and the last character."
            )
        if begin >= len(text) or end > len(text):  # the end may be meant as the one after the last
            raise DataError(
                f"{where} has the characters {begin} to {end} in its `{DETAIL}`, but its text has "
                f"{len(text):,}: correct the offsets."
            )
        for at in range(begin, min(end + 1, len(text))):
            learnt[at] = train
    return masked_ranges(learnt)


def read_segments(value: Sequence[Mapping[str, Any]]) -> tuple[str, list[Range]]:
    """The text of segments, and the characters that are learnt."""
    text, learnt = "", list[Range]()
    for each in value:
        begin, text = len(text), text + each["text"]
        if as_boolean(each["label"]) and each["text"]:
            joins = bool(learnt) and learnt[-1][1] == begin
            learnt[-1:] = [(learnt[-1][0], len(text))] if joins else [*learnt[-1:], (begin, len(text))]
    return text, learnt


def masked_ranges(learnt: Sequence[bool]) -> tuple[Range, ...]:
    """The ranges of characters that are not learnt."""
    found: list[Range] = []
    for at, is_trained in enumerate(learnt):
        if not is_trained and found and found[-1][1] == at:
            found[-1] = (found[-1][0], at + 1)
        elif not is_trained:
            found.append((at, at + 1))
    return tuple(found)
