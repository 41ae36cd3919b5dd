"""Several sources as one data set."""

from __future__ import annotations

import random
from collections.abc import Sequence

from fmstune.errors import DataError

_MOST = 100


def rows_of_sources(rows: Sequence[int], weights: Sequence[float]) -> list[int]:
    """How many rows of each source a mixture with these weights has.

    The numbers of rows are proportional to the weights. No row is left out: the source with the most rows
    for its weight is used once, and the others are repeated, so that each has `weight * most` rows for the
    largest `rows / weight` of all. Raises `DataError` when a mixture would be more than a hundred times as
    large as its sources.
    """
    scale = max(count / weight for count, weight in zip(rows, weights, strict=True))
    wanted = [max(count, round(weight * scale)) for count, weight in zip(rows, weights, strict=True)]
    if sum(wanted) > _MOST * sum(rows):
        raise DataError(
            f"these weights would turn {sum(rows)} rows into {sum(wanted)} by repeating the small sources: "
            "use weights that differ less, or set max_rows for the large source."
        )
    return wanted


def numbers_of_mixture(rows: Sequence[int], wanted: Sequence[int], seed: int) -> list[int]:
    """The numbers of the rows of a mixture, where the rows of the sources are numbered consecutively.

    Each source is repeated as often as it fits into its wanted rows; the rest is sampled from it without
    replacement. The order is drawn from `seed`.
    """
    order = random.Random(seed)
    numbers: list[int] = []
    start = 0
    for count, number in zip(rows, wanted, strict=True):
        own = range(start, start + count)
        if count:  # a source without trained rows has nothing to draw
            numbers += list(own) * (number // count) + order.sample(own, number % count)
        start += count
    order.shuffle(numbers)
    return numbers
