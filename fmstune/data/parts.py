"""The rows of a source, in parts: those to train on, and those to evaluate on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fmstune.data.summary import joined
from fmstune.data.tokens.table import Integers, Tokenised
from fmstune.errors import DataError
from fmstune.text import counted


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of a source for training or for evaluation, by their numbers."""

    of: Tokenised
    numbers: Integers

    def kept(self) -> Integers:
        """The numbers of its rows with a token to train on."""
        return self.numbers[self.of.index[self.numbers] >= 0]

    def hashes(self) -> Integers:
        """A hash of the tokens of each of these rows."""
        return self.of.hashes[self.kept()]


def hold_out(parts: list[Part], fraction: float, seed: int) -> tuple[list[Part], list[Part]]:
    """The parts to train on, and those with a fraction of all rows to evaluate on. Raises `DataError` if none
    are left to train on."""
    # Rows from one location stay together: the answers to one prompt.
    groups = [_groups(part.of.places) for part in parts]
    counts = [int(own[-1]) + 1 for own in groups]
    total = sum(counts)
    count = max(1, round(total * fraction))
    if count >= total:
        raise DataError(
            f"{source_of(parts)} has {counted(total, 'row')}: data.eval_fraction = {fraction} leaves none to "
            "train on."
        )
    held = np.zeros(total, dtype=bool)
    held[order_of(total, seed)[:count]] = True
    train, evaluation, start = [], [], 0
    for part, own, number in zip(parts, groups, counts, strict=True):
        out = held[start : start + number][own]
        train.append(replace(part, numbers=part.numbers[~out]))
        evaluation.append(replace(part, numbers=part.numbers[out]))
        start += number
    return train, [part for part in evaluation if len(part.numbers)]


def _groups(places: Sequence[str]) -> Integers:
    """The number of each row's location; rows from the same location are consecutive."""
    changes = [1 if place != before else 0 for place, before in zip(places[1:], places, strict=False)]
    return np.cumsum([0, *changes])


def source_of(parts: Sequence[Part]) -> str:
    """The sources of the parts, on one line."""
    return joined([part.of.source for part in parts])


def order_of(count: int, seed: int) -> list[int]:
    """The numbers of rows in a random order."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def order_within(counts: Sequence[int], seed: int) -> list[int]:
    """An order of rows in which each of the successive groups stays together."""
    starts = [sum(counts[:at]) for at in range(len(counts))]
    return [begin + at for begin, count in zip(starts, counts, strict=True) for at in order_of(count, seed)]
