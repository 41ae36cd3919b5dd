"""Weights of the loss, in messages, rows and table cells."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

from fmstune.data.cells import as_boolean
from fmstune.errors import DataError

LEAST, MOST = 1e-6, 1e6
"""The loss is computed in float32. A row's weight times a message's, summed over the tokens of an update,
stays well within its range, and none rounds to 0."""


def weight_of(value: Any, place: str, key: str) -> float:
    """A weight of the loss, also from the text of a number or a decimal. Raises `DataError` for anything
    but 0 and numbers within the range."""
    said = as_boolean(value)
    found = float(said) if said is not None else _number(value)
    if found == 0 or LEAST <= found <= MOST:
        return found
    # Python refuses to print integers with thousands of digits.
    huge = isinstance(value, int) and value.bit_length() > 1000
    given = "an integer of hundreds of digits" if huge else f"{value!r}"
    raise DataError(
        f"{place}: `{key}` is {given}; a weight of the loss is 0, or a number from {LEAST:g} to "
        f"{MOST / 1e6:g} million (1 for a usual row)."
    )


def is_nan(value: Any) -> bool:
    """Whether a value is the number NaN."""
    return isinstance(value, (float, Decimal)) and math.isnan(value)


def _number(value: Any) -> float:
    """The number in a value or its text; NaN if there is none."""
    written = isinstance(value, str) and "_" not in value  # Python would read 1_0 as 10
    if not written and not isinstance(value, (int, float, Decimal)):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):  # not a number, or an integer too large for a float
        return math.nan
