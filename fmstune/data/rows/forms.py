"""The user's mapping of columns: their names in `data.columns`, or a template that combines them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from fmstune.config.schema.prompt_template import PromptTemplate
from fmstune.data.cells import kind_in_words
from fmstune.data.columns import (
    CONTEXTS,
    HISTORY,
    SYSTEMS,
    TEMPLATE_KWARGS,
    Row,
    columns_in_words,
    with_known_names,
)
from fmstune.data.rows.loss_columns import LOSS_COLUMNS
from fmstune.data.rows.shapes import recognise
from fmstune.errors import DataError

Form = Callable[[Row, str], tuple[Row, Collection[str]]]
"""From a row and its location to the row with our names, and the columns left out of it."""

_BESIDE = (*SYSTEMS, HISTORY, "tools", "functions", TEMPLATE_KWARGS, *LOSS_COLUMNS)
"""Columns that belong to a shape under their own names, even if others are mapped."""
_OPTIONAL = (*_BESIDE, *CONTEXTS, "margin")
"""Columns that a row may lack, even if the first one has them."""
_NO_VALUE = "has no value; remove the row, or skip such rows with --skip-bad-rows."


def renamed(columns: Mapping[str, str]) -> Form:
    """A form that renames a row's columns to ours, and keeps only those if they are a shape."""

    seen: set[str] = set()

    def rename(row: Row, place: str) -> tuple[Row, Collection[str]]:
        for ours, theirs in columns.items():
            if theirs in row:
                seen.add(theirs)
                if row[theirs] is None and ours not in _OPTIONAL:
                    raise DataError(f"{place}: `{theirs}`, which data.columns maps to `{ours}`, {_NO_VALUE}")
            elif ours not in _OPTIONAL or theirs not in seen:  # the first row shows that it is not a typo
                there = ", ".join(map(str, row)) or "none"
                raise DataError(
                    f"{place}: there is no column {theirs!r}, which data.columns maps to `{ours}`; the "
                    f"columns are {there}."
                )
        mapped = {ours: row.get(theirs) for ours, theirs in columns.items()}
        named = set(columns.values())
        others = {name: value for name, value in row.items() if name not in named and name not in mapped}
        hidden = [name for name in row if name in mapped and name not in named]
        try:
            recognise(mapped, place)
        except DataError:
            return {**others, **mapped}, hidden
        beside = {name: row[name] for name in _called(others, _BESIDE)}
        return {**beside, **mapped}, [*hidden, *(name for name in others if name not in beside)]

    return rename


def filled(template: PromptTemplate) -> Form:
    """A form that makes a prompt and a completion of a row, by a template; its columns about the loss are
    kept."""

    def fill(row: Row, place: str) -> tuple[Row, Collection[str]]:
        values = {}
        for column in template.columns:
            value = row.get(column)
            if value is None and column in row:
                raise DataError(f"{place}: `{column}`, which the template names, {_NO_VALUE}")
            if value is None:
                raise DataError(
                    f"{place}: the template names the column {column!r}; the columns are "
                    f"{columns_in_words(row)}."
                )
            if isinstance(value, bool) or not isinstance(value, (str, int, float)):
                raise DataError(
                    f"{place}: `{column}`, which the template names, is {kind_in_words(value)}, where a text "
                    "is needed."
                )
            values[column] = str(value)
        prompt, completion = template.fill(values)
        beside = [name for name in _called(row, LOSS_COLUMNS) if name not in values]
        made = {name: row[name] for name in beside} | {"prompt": prompt, "completion": completion}
        return made, [name for name in row if name not in values and name not in beside]

    return fill


def _called(row: Row, ours: Collection[str]) -> list[str]:
    """The columns of a row that have these names, ignoring case."""
    return [theirs for name, theirs in with_known_names({name: name for name in row}).items() if name in ours]
