"""A single JSON object with rows inside: in a list, by splits, by columns, or in pandas' formats."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from fmstune.config.paths.splits import split_named
from fmstune.data.columns import (
    CONVERSATIONS,
    SPEAKERS,
    SYSTEMS,
    has_value,
    is_message,
    is_segments,
    looks_like_a_row,
)
from fmstune.data.files.splits import Wanted
from fmstune.errors import DataError
from fmstune.text import listed

_LISTS = (
    "data", "rows", "examples", "instances", "items", "records", "samples", "entries", "dataset",
    "conversations", "results", "train", "training",
)  # fmt: skip
"""Common names of a list of rows."""
_OF_THE_FORM = ("version", "columns", "index", "schema", "features", "num_rows_total", "num_rows_per_page")
"""Metadata that SQuAD's files, pandas and the hub's viewer write around rows; not training data."""
_TOOLS = ("tools", "functions")
_SPEAKS = ("from", "speaker", "author", "sender")
_NUMBERS = ("input_ids", "labels", "attention_mask")


class NotFound(Exception):
    """The object contains no rows: it is a row itself."""


def rows_inside(value: dict[str, Any], wanted: Wanted, name: str, say: Callable[[str], None]) -> list[Any]:
    """The rows in an object of a file called `name`; `say` receives messages about its other contents.

    Raises `NotFound` when it is a row itself, and `DataError` when it has several lists of rows.
    """
    if not value:
        raise NotFound
    if found := _by_columns(value):
        if _is_split_table(value):
            report_other_contents(value, ("columns", "data"), name, say)
        return found
    if (
        holds_rows(value)
        or is_segments(value.get("segments"))
        or (wanted.columns and wanted.columns <= value.keys())
    ):
        raise NotFound
    by_split = {key: inner for key, inner in value.items() if split_named(key) and _is_table(inner)}
    if by_split or (wanted.chosen and _is_table(value.get(wanted.split))):
        splits = {key: inner for key, inner in value.items() if _is_table(inner)}
        taken = wanted.choose(splits, name)
        others = () if wanted.chosen else [key for key in splits if split_named(key)]
        wanted.report_others([key for key in others if key != taken and splits[key]], name, say)
        report_other_contents(value, (taken, *(splits if wanted.chosen else others)), name, say)
        return _table(splits[taken], wanted, name, say)
    numbered = all(key.isdigit() and isinstance(inner, dict) for key, inner in value.items())
    if numbered or all(map(looks_like_a_row, value.values())):
        return list(value.values())  # by their ids; pandas' orient="index"
    lists = [
        key
        for key, inner in value.items()
        if _is_list_of_objects(inner)
        and (key not in (*CONVERSATIONS, *SYSTEMS, *_TOOLS) or is_list_of_rows(key, inner[0]))
    ]
    if len(lists) > 1:
        lists = [key for key in lists if key.lower() in _LISTS or looks_like_a_row(value[key][0])] or lists
    if len(lists) > 1:
        raise DataError(
            f"{name} holds several lists of rows, {' and '.join(lists)}; choose one with "
            f"split under [[{wanted.table}]]."
        )
    if lists:
        report_other_contents(value, lists, name, say)
        return list(value[lists[0]])
    tables = [key for key, inner in value.items() if isinstance(inner, dict) and key.lower() in _LISTS]
    if len(tables) == 1:
        report_other_contents(value, tables, name, say)
        return _table(value[tables[0]], wanted, name, say)
    raise NotFound


def holds_rows(value: dict[str, Any]) -> bool:
    """Whether an object is a row by its columns, and so not a container of rows."""
    return looks_like_a_row(
        {key: inner for key, inner in value.items() if not is_list_of_rows(key, _first(inner))}
    )


def is_list_of_rows(key: str, first: Any) -> bool:
    """Whether a list under this key that starts with this item is a list of rows."""
    if not isinstance(first, dict) or is_message(first):
        return False
    if key in CONVERSATIONS and {"input", "output"} <= first.keys() and not _has_question_column(first):
        return False  # the turns of one conversation
    if key in (*SYSTEMS, *_TOOLS):
        return False  # Anthropic's blocks of text, and what a conversation may call
    if key in CONVERSATIONS and any(str(first.get(name)).lower() in SPEAKERS for name in _SPEAKS):
        return False  # its messages, in an unsupported form, which the row reports
    known = key.lower() in _LISTS or split_named(key) is not None
    return looks_like_a_row(first) or (known and key != "conversations")


def _has_question_column(value: dict[str, Any]) -> bool:
    """Whether an object with `input` and `output` is a row by another of its columns."""
    return looks_like_a_row({key: inner for key, inner in value.items() if key not in ("input", "output")})


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else None


def _is_list_of_objects(value: Any) -> bool:
    objects = isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)
    return objects and not is_message(value[0])


def _is_table(value: Any) -> bool:
    """Whether a value can be the rows of a split."""
    return value == [] or _is_list_of_objects(value) or (isinstance(value, dict) and bool(_by_columns(value)))


def _table(value: Any, wanted: Wanted, name: str, say: Callable[[str], None]) -> list[Any]:
    if isinstance(value, list):
        return value
    try:
        return rows_inside(value, wanted, name, say)
    except NotFound:
        return [value]


def report_other_contents(
    value: Mapping[str, Any], taken: Collection[str], name: str, say: Callable[[str], None]
) -> None:
    """Report what an object contains other than the rows taken from it."""
    others = [key for key, inner in value.items() if key not in taken and key not in _OF_THE_FORM]
    found = [
        f"`{key}`" + (f" (a list of {len(value[key]):,})" if isinstance(value[key], list) else "")
        for key in others
        if has_value(value[key]) and value[key] is not False
    ]
    if found:
        verb = "is" if len(found) == 1 else "are"
        say(f"{name}: {listed(found)} next to the rows {verb} not used; put what a row needs into the row")


def unwrapped(item: Any) -> tuple[Any, list[str]]:
    """The row itself, if it is wrapped with its number, as in the hub's viewer; and which of its cells the
    viewer has truncated."""
    if not isinstance(item, dict) or not isinstance(item.get("row"), dict) or "row_idx" not in item:
        return item, []
    if item.keys() - {"row_idx", "row", "truncated_cells"}:
        return item, []
    return item["row"], list(item.get("truncated_cells") or ())


def _by_columns(value: dict[str, Any]) -> list[Any]:
    """The rows of a table that is written by columns; empty for any other."""
    if _is_split_table(value):
        return [dict(zip(value["columns"], row, strict=True)) for row in value["data"]]
    columns = list(value.values())
    if any(map(is_message, columns)):
        return []  # the fields of messages, each as a list
    if all(isinstance(column, dict) and column for column in columns):  # orient="columns"
        keys = columns[0].keys()
        numbered = all(str(key).lstrip("-").isdigit() for key in keys)
        if any(column.keys() != keys for column in columns) or not (numbered or looks_like_a_row(value)):
            return []
        return [{name: column[key] for name, column in value.items()} for key in keys]
    if all(isinstance(column, list) and column for column in columns):  # orient="list"
        if len({len(column) for column in columns}) > 1 or any(map(_is_one_value, value, columns)):
            return []
        return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
    return []


def _is_split_table(value: dict[str, Any]) -> bool:
    """Whether it is pandas' orient="split"."""
    names, rows = value.get("columns"), value.get("data")
    return (
        isinstance(names, list)
        and isinstance(rows, list)
        and all(isinstance(name, str) for name in names)
        and all(isinstance(row, list) and len(row) == len(names) for row in rows)
    )


def _is_one_value(name: str, column: list[Any]) -> bool:
    """Whether a list is a single row's value of a column: messages, tools, or token ids."""
    if name in _NUMBERS:
        return not isinstance(column[0], list)
    if name in CONVERSATIONS and isinstance(column[0], str):
        return not column[0].lstrip().startswith(("[", "{"))  # texts by turns, not conversations as JSON
    return isinstance(column[0], dict)
