"""What is known of the rows of a source once the first of them has been seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fmstune.data.columns import Row
from fmstune.data.rows.unused import Unused

Shape = Literal[
    "messages",
    "prompt/completion",
    "prompt/completion as messages",
    "text",
    "tokens",
    "preference",
    "preference with margin",
    "labelled",
]
PREFERENCES: tuple[Shape, ...] = ("preference", "preference with margin", "labelled")
"""Shapes that only methods other than sft learn from; `preference` reads and checks them."""

Reading = Callable[[Row, str, Unused], Row]
"""From a row and its place to the row in its shape; what of it is not used is counted. Raises `DataError`."""


@dataclass(frozen=True, slots=True)
class Recognised:
    """What the rows of a source are: the shape that they are rendered in, the `name` of the one they have,
    and the check that brings a row from this into that, which raises `DataError`.

    `columns` are those that the check looks at; any other that holds something is counted as not used.
    `as_examples` are the `data.columns` with which rows of preferences are learnt as examples.
    """

    shape: Shape
    name: str
    read: Reading
    columns: frozenset[str]
    as_examples: str = ""
