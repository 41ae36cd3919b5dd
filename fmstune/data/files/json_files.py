"""JSON files in their common forms: lines, arrays, and objects with rows inside, whatever the suffix."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from fmstune.config.paths.splits import split_named
from fmstune.data.cells import kind_in_words
from fmstune.data.columns import A_ROW, Row, is_message
from fmstune.data.files.articles import is_article, questions_of
from fmstune.data.files.encodings import TextFile
from fmstune.data.files.json_array import BadArray, JsonText
from fmstune.data.files.json_lines import Placed, duplicate_key_error, json_lines
from fmstune.data.files.json_objects import (
    NotFound,
    holds_rows,
    is_list_of_rows,
    report_other_contents,
    rows_inside,
    unwrapped,
)
from fmstune.data.files.splits import Wanted
from fmstune.errors import DataError
from fmstune.text import listed

Found = tuple[str, Row | DataError]
"""The location of a row, like `train.jsonl line 17`, and the row, or the error in its place."""

_AT_ONCE = 32 << 20
"""Objects that end within this many bytes are read whole, with or without rows inside."""


def read_json(
    path: Path, name: str, wanted: Wanted, say: Callable[[str], None] = lambda text: None
) -> Iterator[Found]:
    """The rows of a file that messages call `name`; `say` receives messages about it. Raises `DataError` if
    the file cannot be read on."""
    text = TextFile.of(path, name, say, most=_AT_ONCE)
    begins = _beginning(text)
    with text.opened() as file:
        if begins == "[" or (begins == "{" and _is_large_object(text)):
            found = _pieces(file, name, wanted, say)
        else:
            found = _lines(file, name, wanted, say)
        for place, row in found:
            yield from questions_of(place, row) if is_article(row) else [(place, row)]


def _beginning(text: TextFile) -> str:
    with text.opened() as file:
        while piece := file.read(4096).removeprefix(b"\xef\xbb\xbf"):
            if piece.strip():
                return piece.lstrip()[:1].decode("latin-1")
    return ""


def _is_large_object(text: TextFile) -> bool:
    """Whether the first value is an object that continues after the first piece."""
    with text.opened() as file:
        first = file.readline(_AT_ONCE)
        if len(first) == _AT_ONCE:
            return True
        try:
            json.loads(first)
        except json.JSONDecodeError as error:
            damaged = bool(error.doc[error.pos :].strip())
        except (ValueError, RecursionError):
            damaged = True
        else:
            return False
        rest = b"" if damaged else file.read(_AT_ONCE)
    # A truncated line among others that are rows.
    cut = rest.lstrip().startswith(b"{") and not first.rstrip().endswith(b"[")
    return not damaged and not cut and len(first) + len(rest) >= _AT_ONCE


def _lines(file: IO[bytes], name: str, wanted: Wanted, say: Callable[[str], None]) -> Iterator[Found]:
    found = json_lines(file, name)
    first, second = next(found, None), next(found, None)
    alone = first is not None and second is None and isinstance(first[1], dict)
    if first is not None and alone and not is_article(first[1]):
        yield from _alone(first[1], first[0], name, wanted, say)
        return
    wanted.require_whole(name)
    for place, value in chain(*([each] for each in (first, second) if each is not None), found):
        yield from _rows_of((place, value), name)


def _alone(
    value: dict[str, Any], place: str, name: str, wanted: Wanted, say: Callable[[str], None]
) -> Iterator[Found]:
    """The rows of a file with a single object: the object, or the rows inside it."""
    try:
        inside = rows_inside(value, wanted, name, say)
    except NotFound:
        wanted.require_whole(name)
        yield place, _object(value, place)
        return
    for number, row in enumerate(inside, 1):
        yield f"{name} row {number}", _object(row, f"{name} row {number}")


def _rows_of(placed: Placed, name: str) -> Iterator[Found]:
    """The rows of a line: its object, the items of its array, or its array as a conversation."""
    place, value = placed
    if isinstance(value, list) and value and all(map(is_message, value)):
        yield place, {"messages": value}
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        yield from ((place, _object(item, place)) for item in value)
    else:
        yield place, value if isinstance(value, DataError) else _object(value, place)


def _pieces(file: IO[bytes], name: str, wanted: Wanted, say: Callable[[str], None]) -> Iterator[Found]:
    """The rows of consecutive arrays and large objects, a piece of the file at a time."""
    text, number = JsonText(file), 0
    try:
        for row in _values(text, name, wanted, say):
            number += 1
            place = f"{name} row {number}"
            key = text.decoder.duplicate_key()
            yield place, _object(row, place) if key is None else duplicate_key_error(key, place)
    except UnicodeDecodeError:
        raise DataError(f"{name}{_after(number)}: this is not UTF-8 text; save the file as UTF-8.") from None
    except BadArray as error:
        raise DataError(f"{name} is not valid JSON{_after(number)} ({error}).") from None


def _after(number: int) -> str:
    return f" after row {number}" if number else ""


def _values(text: JsonText, name: str, wanted: Wanted, say: Callable[[str], None]) -> Iterator[Any]:
    alone = True
    while begins := text.next():
        if begins == "[":
            wanted.require_whole(name)
            yield from _array(text)
        elif begins == "{":
            yield from _large_object(text, name, wanted, say, alone=alone)
        else:
            yield text.value()
        alone = False
        if text.next() == ",":  # an array without its brackets
            text.take(",")


def _array(text: JsonText) -> Iterator[Any]:
    """The rows of an array; an array of messages is a conversation, and so a single row."""
    items = text.items()
    first = list(islice(items, 1))  # it may be null
    if first and is_message(first[0]):
        yield {"messages": [*first, *items]}
        return
    for item in chain(first, items):
        yield {"messages": item} if _is_conversation(item) else item


def _is_conversation(item: Any) -> bool:
    return isinstance(item, list) and bool(item) and all(map(is_message, item))


def _large_object(
    text: JsonText, name: str, wanted: Wanted, say: Callable[[str], None], *, alone: bool
) -> Iterator[Any]:
    """The rows of an object's list of rows, while they are read; else those of the object as a whole."""
    whole: dict[str, Any] = {}
    given: list[str] = []
    passed_over: list[str] = []
    for key in text.object_keys():
        if text.next() != "[":
            whole[key] = text.value()
            continue
        items = text.items()
        first = list(islice(items, 1))
        if (
            not first
            or not is_list_of_rows(key, first[0])
            or holds_rows(whole)
            or not wanted.columns.isdisjoint((key, *whole))
        ):
            whole[key] = [*first, *items]
        elif wanted.skips(key):
            passed_over.append(key)
            for _ in items:
                pass
        elif given and split_named(given[0]) and not split_named(key):
            whole[key] = [*first, *items]  # listed as not used: another split is selected
        elif given:
            raise DataError(
                f"{name} holds several lists of rows, {given[0]} and {key}; choose one with "
                f"split under [[{wanted.table}]]."
            )
        else:
            given.append(key)
            yield from chain(first, items)
    if given:
        wanted.report_others(passed_over, name, say)
        report_other_contents(whole, given, name, say)
        return
    if passed_over:
        wanted.choose(passed_over, name)  # raises the error, as none of these names is wanted
        raise DataError(
            f"{name} has only {', '.join(passed_over)}; choose it with split under [[{wanted.table}]]."
        )
    try:
        inside = rows_inside(whole, wanted, name, say) if alone and not text.next() else [whole]
    except NotFound:
        inside = [whole]
    yield from inside


def _object(row: Any, place: str) -> Row | DataError:
    if not isinstance(row, dict):
        return DataError(f"{place}: a row is a JSON object, this is {kind_in_words(row)}; {A_ROW}.")
    row, cut = unwrapped(row)
    if cut:
        return DataError(
            f"{place}: the hub's viewer has truncated {listed([f'`{cell}`' for cell in cut])}; load the "
            "data set itself, by its name on the hub, or leave such rows out with --skip-bad-rows."
        )
    found: Row = row
    return found
