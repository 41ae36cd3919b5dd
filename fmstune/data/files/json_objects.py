"""One JSON object that holds rows: in a list, by splits, by columns, or as pandas writes its tables."""

from __future__ import annotations

from typing import Any

from fmstune.config.paths.data import split_named
from fmstune.data.columns import CONVERSATIONS, is_message, looks_like_a_row
from fmstune.data.files.splits import Wanted
from fmstune.errors import DataError

_LISTS = (
    "data", "rows", "examples", "instances", "items", "records", "samples", "entries", "dataset",
    "conversations", "results", "train", "training",
)  # fmt: skip
"""What a list of rows is mostly called."""
_NUMBERS = ("input_ids", "labels", "attention_mask")


class NotFound(Exception):
    """There are no rows inside: the object is a row itself."""


def rows_inside(value: dict[str, Any], wanted: Wanted, name: str) -> list[Any]:
    """The rows that an object of a file called `name` holds.

    Raises `NotFound` when it is a row itself, and `DataError` when it holds several lists of rows.
    """
    if not value:
        raise NotFound
    if found := _by_columns(value):
        return found
    if holds_rows(value) or (wanted.columns and wanted.columns <= value.keys()):
        raise NotFound
    by_split = {key: inner for key, inner in value.items() if split_named(key) and _is_table(inner)}
    if by_split or (wanted.chosen and _is_table(value.get(wanted.split))):
        splits = {key: inner for key, inner in value.items() if _is_table(inner)}
        return _table(splits[wanted.among(splits, name)], wanted, name)
    numbered = all(key.isdigit() and isinstance(inner, dict) for key, inner in value.items())
    if numbered or all(map(looks_like_a_row, value.values())):
        return list(value.values())  # by their ids; pandas' orient="index"
    lists = [key for key, inner in value.items() if _is_list_of_objects(inner)]
    if len(lists) > 1:
        lists = [key for key in lists if key.lower() in _LISTS] or lists
    if len(lists) > 1:
        raise DataError(
            f"{name} holds several lists of rows, {' and '.join(lists)}; name the one that is meant with "
            f"split under [[{wanted.table}]]."
        )
    if lists:
        return [unpacked(item) for item in value[lists[0]]]
    tables = [key for key, inner in value.items() if isinstance(inner, dict) and key.lower() in _LISTS]
    if len(tables) == 1:
        return _table(value[tables[0]], wanted, name)
    raise NotFound


def holds_rows(value: dict[str, Any]) -> bool:
    """Whether an object is a row by its columns, and so not what holds rows."""
    return looks_like_a_row(
        {key: inner for key, inner in value.items() if not is_list_of_rows(key, _first(inner))}
    )


def is_list_of_rows(key: str, first: Any) -> bool:
    """Whether a list under this key, which begins with this item, is one of rows."""
    if not isinstance(first, dict) or is_message(first):
        return False
    if key in CONVERSATIONS and {"input", "output"} <= first.keys() and not _asks(first):
        return False  # the turns of one conversation
    known = key.lower() in _LISTS or split_named(key) is not None
    return looks_like_a_row(first) or (known and key != "conversations")


def _asks(value: dict[str, Any]) -> bool:
    """Whether an object with `input` and `output` is a row by another column of its."""
    return looks_like_a_row({key: inner for key, inner in value.items() if key not in ("input", "output")})


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else None


def _is_list_of_objects(value: Any) -> bool:
    objects = isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)
    return objects and not is_message(value[0])


def _is_table(value: Any) -> bool:
    """Whether a value can be the rows of a split."""
    return value == [] or _is_list_of_objects(value) or (isinstance(value, dict) and bool(_by_columns(value)))


def _table(value: Any, wanted: Wanted, name: str) -> list[Any]:
    if isinstance(value, list):
        return [unpacked(item) for item in value]
    try:
        return rows_inside(value, wanted, name)
    except NotFound:
        return [value]


def unpacked(item: Any) -> Any:
    """The row itself, where it stands beside its number: so the hub's viewer gives rows."""
    packed = isinstance(item, dict) and {"row_idx", "row"} <= item.keys() and isinstance(item["row"], dict)
    return item["row"] if packed else item


def _by_columns(value: dict[str, Any]) -> list[Any]:
    """The rows of a table that is written by its columns; none if it is no such table."""
    if value.keys() >= {"columns", "data"} and _is_grid(value["columns"], value["data"]):  # orient="split"
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


def _is_grid(names: Any, rows: Any) -> bool:
    return (
        isinstance(names, list)
        and isinstance(rows, list)
        and all(isinstance(name, str) for name in names)
        and all(isinstance(row, list) and len(row) == len(names) for row in rows)
    )


def _is_one_value(name: str, column: list[Any]) -> bool:
    """Whether a list is what one row has in a column: messages, tools, or the numbers of tokens."""
    if name in _NUMBERS:
        return not isinstance(column[0], list)
    return isinstance(column[0], dict)
