"""Tables as text: CSV and TSV as written by spreadsheets and pandas."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fmstune.data.columns import Row, looks_like_a_row
from fmstune.data.files.encodings import OLDER, decoded, encoding_of, report_old_encoding, wrong_encoding
from fmstune.data.files.opening import opened
from fmstune.errors import DataError
from fmstune.text import counted

Found = tuple[str, Row | DataError]

_DELIMITERS = ",;\t|"
_CALLED = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}
_SAMPLED = 20
"""The number of rows that are examined for the delimiter."""
_PIECE = 1 << 20
_UNDER_HEADER = re.compile(r":?-{2,}:?")
"""A cell of the line that separates a Markdown table's header from its rows, and padding."""
_MARK = "\ufeff"
_NAMED = re.compile(r"sep=(.)\r?\n?")
"""The first line that tells Excel the delimiter."""


def read_csv(path: Path, name: str, usual: str, say: Callable[[str], None]) -> Iterator[Found]:
    """The rows of a file that messages call `name`. `usual` is the delimiter that its suffix promises; `say`
    receives messages about the file. Raises `DataError`."""
    csv.field_size_limit(1 << 30)  # the default of 128 KiB is less than one long document
    encoding = encoding_of(path, name)
    if encoding == OLDER:
        report_old_encoding(name, say)
    elif encoding == "utf-8":
        encoding = "utf-8-sig"
    delimiter, skipped = _delimiter(path, name, encoding, usual)
    with opened(path, name) as file:
        text = decoded(file, encoding)
        for _ in range(skipped):
            text.readline()
        # Strict: without it a quotation mark that is never closed swallows the rest of the file as one cell.
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            yield from _rows(reader, name, skipped, delimiter, say)
        except UnicodeError:
            raise wrong_encoding(name, encoding) from None
        except csv.Error as error:
            raise DataError(
                f"{name} line {skipped + reader.line_num}: {error}; put a cell with quotation marks in "
                "such marks, and double those in it."
            ) from None
        finally:
            text.detach()  # else it would close the file, which it does not own


def _rows(
    reader: Any, name: str, skipped: int, delimiter: str, say: Callable[[str], None]
) -> Iterator[Found]:
    header: list[str] | None = None
    written: list[str] = []
    first = padded = again = False
    for cells in reader:
        if not any(cells):
            continue  # blank, or the empty rows below a spreadsheet's table
        if header is None:
            header, first = _header(cells, name), True
            written = [cell.strip() for cell in cells]
            continue
        if first and all(_UNDER_HEADER.fullmatch(cell.strip()) for cell in cells if cell) and len(cells) > 1:
            padded = True
            continue
        first = False
        if padded:
            cells = [cell.strip() for cell in cells]
        place = f"{name} line {skipped + reader.line_num}"
        if _bare(cells) == written:
            if not again:
                say(f"{place} repeats the header, as in joined files; such lines are skipped")
            again = True
            continue
        if len(cells) == len(header):
            yield place, dict(zip(header, cells, strict=True))
        else:
            columns = counted(len(header), "column")
            what = f"{place}: this row does not have the {columns} of the first line: it has {len(cells)}"
            quoted = f"; put a text with {_CALLED.get(delimiter, delimiter)} in it in quotation marks"
            yield place, DataError(f"{what}{quoted if len(cells) > len(header) else ''}.")


def _bare(cells: list[str]) -> list[str]:
    """The cells of a header line. A byte order mark at the start of the file would otherwise keep the first
    name's quotes from being parsed."""
    first = cells[0]
    if first.startswith(_MARK):
        first = first.removeprefix(_MARK).removeprefix('"').removesuffix('"')
    return [cell.strip() for cell in (first, *cells[1:])]


def _header(cells: list[str], name: str) -> list[str]:
    """The names of the columns. Those without one, like pandas' index, are named by their number."""
    header = [cell.strip() or f"column {number}" for number, cell in enumerate(cells, 1)]
    for column in header:
        if header.count(column) > 1:
            raise DataError(
                f"{name}: the column {column!r} occurs {header.count(column)} times; give each its own "
                "name, or remove one."
            )
    return header


def _delimiter(path: Path, name: str, encoding: str, usual: str) -> tuple[str, int]:
    """The delimiter of the cells, and the number of lines before the header.

    The usual one, unless it leaves the header as one cell, or the rows do not have as many cells as the
    header, and another one fixes both.
    """
    with opened(path, name) as file:
        text = decoded(file, encoding)
        try:
            sample = text.read(_PIECE)
        except UnicodeError:
            raise wrong_encoding(name, encoding) from None
        finally:
            text.detach()
    named = _NAMED.match(sample)
    if named:
        return named[1], 1
    found = [each for each in (usual, *_DELIMITERS) if _fits(sample, each)]
    known = [each for each in found if looks_like_a_row(dict.fromkeys(_first(sample, each)))]
    return next(iter([*known, *found, usual])), 0


def _fits(sample: str, delimiter: str) -> bool:
    """Whether the first rows form a table of more than one column with this delimiter."""
    whole = len(sample) < _PIECE
    rows = csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter, strict=True)
    columns = None
    try:
        for number, cells in enumerate(each for each in rows if any(each)):
            if number == _SAMPLED:
                break
            columns = columns or len(cells)
            if len(cells) != columns:
                return False
    except csv.Error:
        return not whole and (columns or 0) > 1  # a row that continues after the sample
    return (columns or 0) > 1


def _first(sample: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter), [])
    except csv.Error:
        return []
