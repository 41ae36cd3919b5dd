"""The lengths of the rows of a tokenised data set, for any method.

A row is one sequence (`input_ids`), or one per answer: the prompt with that answer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fmstune.data.tokens.preferences import ANSWERS
from fmstune.data.tokens.table import IGNORED, Integers


def are_tokenised(rows: Any) -> bool:
    """Whether all rows are tokenised, so that their lengths are known; those of a stream are not."""
    return hasattr(rows, "__len__") and bool(_sequences(rows))


def sequence_lengths(rows: Any, limit: int | None = None) -> Integers:
    """The number of tokens of each sequence, at most `limit`: (rows, sequences)."""
    prompts = _lengths(rows, "prompt_ids") if "prompt_ids" in rows.column_names else 0
    found = np.stack([prompts + _lengths(rows, name) for name in _sequences(rows)], axis=1)
    return found if limit is None else np.minimum(found, limit)


def longest_rows(rows: Any, count: int, limit: int | None = None) -> list[int]:
    """The indices of the rows with the longest sequences, the longest first; at most `count`."""
    lengths = sequence_lengths(rows, limit)
    order = np.lexsort((-lengths.sum(axis=1), -lengths.max(axis=1)))
    return [int(index) for index in order[:count]]


def scored_tokens(rows: Any, limit: int | None = None) -> int:
    """The number of tokens in the loss, over all rows."""
    if "labels" in rows.column_names:
        column = _column(rows, "labels")
        column = column.filter(pc.greater(pc.list_value_length(column), 0))
        counted, firsts = (
            pc.sum(pc.not_equal(labels, IGNORED)).as_py() or 0
            for labels in (pc.list_flatten(column), pc.list_element(column, 0))
        )
        return int(counted - firsts)  # no token before the first of a row predicts it
    lengths = sequence_lengths(rows, limit)
    if "prompt_ids" not in rows.column_names:
        return int(lengths.sum())
    prompts = np.minimum(_lengths(rows, "prompt_ids"), limit if limit is not None else np.inf)
    return int((lengths - prompts[:, None]).sum())


def sequences(row: dict[str, Any]) -> list[list[int]]:
    """The sequences of a row in a batch."""
    names = [name for name in ("input_ids", *ANSWERS) if name in row]
    return [[*row.get("prompt_ids", ()), *row[name]] for name in names]


def _sequences(rows: Any) -> list[str]:
    columns = getattr(rows, "column_names", None) or ()
    return [name for name in ("input_ids", *ANSWERS) if name in columns]


def _lengths(rows: Any, name: str) -> Integers:
    return np.asarray(pc.list_value_length(_column(rows, name)), dtype=np.int64)


def _column(rows: Any, name: str) -> Any:
    """A column of a data set or of an Arrow table."""
    # As Arrow: creating Python lists for 100,000 rows takes seconds. Whoever reads several columns sets the
    # format once: datasets copies the description of all columns for it.
    if not isinstance(rows, pa.Table) and rows.format["type"] != "arrow":
        rows = rows.with_format("arrow")
    return rows[name]
