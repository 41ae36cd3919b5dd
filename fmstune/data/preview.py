"""A preview of prepared data: a few rows as the model sees them, and the lengths of all rows."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from fmstune.data.tokens.table import IGNORED

_BINS = 8
_BATCHES = 100


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of text, trained or not."""

    text: str
    trained: bool


@dataclass(frozen=True, slots=True)
class RowView:
    """One row, or one of its answers: its tokens, how many of them are trained, and its text in pieces."""

    name: str
    """Counted from 1: `row 1`, `row 1, chosen`."""
    tokens: int
    trained: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Bin:
    """The number of `rows` with `shortest` to `longest` tokens."""

    shortest: int
    longest: int
    rows: int


def view_rows(
    rows: Iterable[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    most: int,
    places: Sequence[str] = (),
) -> list[RowView]:
    """The first rows, at most `most`, as they are tokenised for their method. `places` are their locations,
    so that the rows of one conversation are named as its parts."""
    return [
        RowView(
            f"row {number}{name or _part(places, number - 1)}",
            len(ids),
            sum(label != IGNORED for label in labels),
            tuple(_pieces(ids, labels, tokenizer)),
        )
        for number, row in enumerate(islice(rows, most), 1)
        for name, ids, labels in _sequences(row)
    ]


def _part(places: Sequence[str], index: int) -> str:
    """Which part of a split conversation a row is; its rows are consecutive."""
    if index >= len(places):
        return ""
    first = last = index
    while first and places[first - 1] == places[index]:
        first -= 1
    while last + 1 < len(places) and places[last + 1] == places[index]:
        last += 1
    count = last - first + 1
    return f", part {index - first + 1} of {count} of {places[index]}" if count > 1 else ""


def _sequences(row: dict[str, Any]) -> Iterator[tuple[str, list[int], list[int]]]:
    """The sequences of a row with their names and labels."""
    if "input_ids" in row:
        yield "", row["input_ids"], row["labels"]
        return
    prompt = row.get("prompt_ids", [])
    named = {"chosen_ids": ", chosen", "rejected_ids": ", rejected"}
    named["completion_ids"] = ", a good answer" if row.get("label") else ", a bad answer"
    for column, name in named.items():
        if column in row:
            yield name, [*prompt, *row[column]], [IGNORED] * len(prompt) + row[column]


def _pieces(ids: Sequence[int], labels: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Iterator[Piece]:
    # Decodes prefixes, not the parts: many tokenizers drop a part's leading space.
    shown, end = "", 0
    for ignored, group in groupby(labels, key=lambda label: label == IGNORED):
        end += len(list(group))
        text = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        yield Piece(text[len(shown) :], not ignored)
        shown = text


def histogram(lengths: Sequence[int]) -> list[Bin]:
    """The lengths in bins of equal width."""
    if not lengths:
        return []
    shortest, longest = min(lengths), max(lengths)
    width = max(1, math.ceil((longest - shortest + 1) / _BINS))
    starts = range(shortest, longest + 1, width)
    counts = [0] * len(starts)
    for length in lengths:
        counts[(length - shortest) // width] += 1
    return [
        Bin(start, min(start + width - 1, longest), rows) for start, rows in zip(starts, counts, strict=True)
    ]


def padding_share(lengths: Sequence[int], batch_size: int, seed: int) -> float:
    """The share of padding in padded batches that are drawn at random."""
    order = random.Random(seed)
    drawn = [order.choices(lengths, k=min(batch_size, len(lengths))) for _ in range(_BATCHES)]
    return 1 - sum(map(sum, drawn)) / sum(max(rows) * len(rows) for rows in drawn)
