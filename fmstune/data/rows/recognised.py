"""What is known of a source's rows once the first one has been read."""

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
    "segments",
    "tokens",
    "preference",
    "preference with margin",
    "labelled",
]
PREFERENCES: tuple[Shape, ...] = ("preference", "preference with margin", "labelled")
"""Shapes that only methods other than sft learn from; `preferences` reads and checks them."""

Reading = Callable[[Row, str, Unused], Row]
"""From a row and its location to the row in its shape; counts what is not used. Raises `DataError`."""


@dataclass(frozen=True, slots=True)
class Recognised:
    """The kind of a source's rows: the shape that they are rendered in, the `name` of the original one, and
    the check that converts a row from this to that, which raises `DataError`.

    `columns` are those that the check reads; any other non-empty one is counted as not used. `as_examples`
    are the `data.columns` with which preference rows are learnt as examples.
    """

    shape: Shape
    name: str
    read: Reading
    columns: frozenset[str]
    as_examples: str = ""
