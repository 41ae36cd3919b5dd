"""A row's columns about its part in the loss, in addition to any shape that is learnt as an example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fmstune.data.cells import as_boolean
from fmstune.data.columns import Row, has_value
from fmstune.data.rows.recognised import PREFERENCES, Shape
from fmstune.data.rows.weights import is_nan, weight_of
from fmstune.errors import DataError

WEIGHTS = ("weight", "loss_weight")
LOSS_COLUMNS = (*WEIGHTS, "train_on_input")


def nan_weight(row: Row, columns: Mapping[str, str], place: str) -> None:
    """Raise `DataError` for a weight that is NaN, which in other columns marks a missing value: the row
    would be learnt with a weight of 1. `columns` are those of `data.columns`."""
    for name in WEIGHTS:
        theirs = columns.get(name, name)
        if is_nan(row.get(theirs)):
            raise DataError(
                f"{place}: `{theirs}` is NaN, which is not a weight of the loss; leave it empty (null) for a "
                "weight of 1."
            )


def loss_of(row: Row, place: str, shape: Shape) -> dict[str, Any]:
    """The row's `weight`, and whether it trains on its prompt too (`train_on_input`), if it has these.

    Raises `DataError` for invalid values, and for shapes that are learnt in other ways.
    """
    given = {name: row[name] for name in LOSS_COLUMNS if has_value(row.get(name))}
    if not given:
        return {}
    if shape in PREFERENCES:
        raise DataError(
            f"{place}: it has a `{next(iter(given))}`; only sft supports it, so remove the column."
        )
    if shape == "tokens" and "train_on_input" in given:
        raise DataError(
            f"{place}: it has a `train_on_input`; its labels already decide which tokens are learnt, so "
            "remove the column."
        )
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name != "train_on_input":
            weight = weight_of(value, place, name)
            if found.setdefault("weight", weight) != weight:
                raise DataError(f"{place}: its `weight` and `loss_weight` contradict each other; remove one.")
        elif (said := as_boolean(value)) is not None:
            found[name] = said
        else:
            raise DataError(
                f"{place}: `train_on_input` is {value!r}; it takes true (train on the prompt too) or false."
            )
    return found
