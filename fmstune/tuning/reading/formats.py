"""The formats of files. Each reader gives (place, row), or (place, error) for a row that is damaged where the
file can be read on; a file that cannot raises `DataError`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from fmstune.config.data_files import kind_of
from fmstune.tuning.errors import DataError
from fmstune.tuning.reading.cells import kind_in_words
from fmstune.tuning.reading.columns import A_ROW, Row
from fmstune.tuning.reading.json_array import BadArray, values
from fmstune.tuning.reading.opening import opened

Found = tuple[str, Row | DataError]
"""Where a row is, as `train.jsonl line 17`, and the row, or why it is none."""


def read_file(path: Path, name: str, text_rows: str = "line") -> Iterator[Found]:
    """The rows of a file that messages call `name`."""
    kind = kind_of(path)
    if kind in (".parquet", ".arrow"):
        yield from _read_table(path, name, kind)
        return
    with opened(path, name) as file:
        if kind in (".csv", ".tsv"):
            yield from _read_csv(file, path, name, "," if kind == ".csv" else "\t")
        elif kind == ".txt":
            yield from _read_text(file, path, name, text_rows)
        elif kind == ".json" and _begins_as_array(path, name):
            yield from _read_json(file, path, name)
        else:
            yield from _read_json_lines(file, name)


def _read_json_lines(file: IO[bytes], name: str) -> Iterator[Found]:
    # Lines of bytes: JSON texts may hold other line ends, such as U+2028, within a line.
    for number, line in enumerate(file, 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        place = f"{name} line {number}"
        try:
            text = line.decode()
        except UnicodeDecodeError:
            yield place, _no_utf8(place)
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield place, DataError(f"{place}: this is not valid JSON ({error}); each line holds one row.")
            continue
        yield place, _object(row, place)


def _begins_as_array(path: Path, name: str) -> bool:
    with opened(path, name) as file:
        while piece := file.read(4096).removeprefix(b"\xef\xbb\xbf"):
            if piece.strip():
                return piece.lstrip().startswith(b"[")
    return False


def _read_json(file: IO[bytes], path: Path, name: str) -> Iterator[Found]:
    number = 0
    try:
        for number, row in enumerate(values(file), 1):
            yield f"{name} row {number}", _object(row, f"{name} row {number}")
    except UnicodeDecodeError:
        raise _first_bad_line(path, name) from None
    except BadArray as error:
        after = f" after row {number}" if number else ""
        raise DataError(
            f"{name} is not valid JSON{after} ({error}); it begins as an array of rows."
        ) from None


def _object(row: Any, place: str) -> Row | DataError:
    if not isinstance(row, dict):
        return DataError(f"{place}: a row is a JSON object, this is {kind_in_words(row)}; {A_ROW}.")
    return row


def _read_csv(file: IO[bytes], path: Path, name: str, delimiter: str) -> Iterator[Found]:
    csv.field_size_limit(1 << 30)  # the default of 128 KiB is less than one long document
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    # Strict: without it a quotation mark that is never closed swallows the rest of the file as one cell.
    reader = csv.DictReader(text, delimiter=delimiter, strict=True)
    try:
        for row in reader:
            place = f"{name} line {reader.line_num}"
            if None in row or None in row.values():
                count = len(reader.fieldnames or ())
                yield (
                    place,
                    DataError(f"{place}: this row does not have the {count} columns of the first line."),
                )
            else:
                yield place, row
    except UnicodeDecodeError:
        raise _first_bad_line(path, name) from None
    except csv.Error as error:
        raise DataError(
            f"{name} line {reader.line_num}: {error}; a cell with quotation marks is put in such marks, "
            "and those in it are doubled."
        ) from None
    finally:
        text.detach()  # else it would close the file, which is not its own


def _read_text(file: IO[bytes], path: Path, name: str, rows: str) -> Iterator[Found]:
    """A row is a line, a paragraph (up to a blank line), or the file; blank ones are none."""
    if rows == "file":
        text = _decoded(file, path, name)
        if text.strip():
            yield name, {"text": text}
        return
    begun, paragraph = 0, [""]
    for number, line in enumerate(_lines(file, name), 1):
        if rows == "line":
            if line.strip():
                yield f"{name} line {number}", {"text": line}
        elif line.strip():
            begun = begun or number
            paragraph.append(line)
        elif begun:
            yield f"{name} line {begun}", {"text": "\n".join(paragraph[1:])}
            begun, paragraph = 0, [""]
    if begun:
        yield f"{name} line {begun}", {"text": "\n".join(paragraph[1:])}


def _lines(file: IO[bytes], name: str) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise _no_utf8(f"{name} line {number}") from None


def _decoded(file: IO[bytes], path: Path, name: str) -> str:
    try:
        return file.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _first_bad_line(path, name) from None


def _first_bad_line(path: Path, name: str) -> DataError:
    with opened(path, name) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return _no_utf8(f"{name} line {number}")
    return _no_utf8(name)


def _no_utf8(place: str) -> DataError:
    return DataError(f"{place}: this is not UTF-8 text; save the file as UTF-8.")


def _read_table(path: Path, name: str, kind: str) -> Iterator[Found]:
    import pyarrow

    number = 0
    try:
        for batch in _parquet(path, name) if kind == ".parquet" else _arrow(path, name):
            for row in batch.to_pylist():
                number += 1
                yield f"{name} row {number}", without_empty_fields(row)
    except (OSError, pyarrow.ArrowException, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DataError(f"{name} is no {kind[1:]} file that can be read: {reason}") from None


def _parquet(path: Path, name: str) -> Iterator[Any]:
    import pyarrow.parquet

    with _seekable(path, name) as source, pyarrow.parquet.ParquetFile(source) as file:
        yield from file.iter_batches(batch_size=1024)


def _arrow(path: Path, name: str) -> Iterator[Any]:
    """Batches of either of Arrow's formats: that of a file, or of a stream (which `datasets` writes)."""
    import pyarrow

    with _seekable(path, name) as source:
        try:
            file = pyarrow.ipc.open_file(source)
        except pyarrow.ArrowInvalid:
            source.seek(0)
            yield from pyarrow.ipc.open_stream(source)
            return
        for number in range(file.num_record_batches):
            yield file.get_batch(number)


def _seekable(path: Path, name: str) -> Any:
    """The file for pyarrow, which reads from its end; a packed one is unpacked into memory."""
    import pyarrow

    if kind_of(path) == path.suffix.lower():
        return pyarrow.OSFile(str(path))
    with opened(path, name) as file:
        return pyarrow.BufferReader(file.read())


def numbered(rows: Iterable[Row], name: str) -> Iterator[Found]:
    """Rows of a data set, with their places."""
    for number, row in enumerate(rows, 1):
        yield f"{name} row {number}", without_empty_fields(row)


def without_empty_fields(value: Any) -> Any:
    """A value of a table without the fields that are there only since another row has them.

    A chat template that asks whether a message has `tool_calls` would find them, and fail at their `None`.
    """
    if isinstance(value, list):
        return [without_empty_fields(item) for item in value] if _may_hold_fields(value) else value
    if isinstance(value, dict):
        return {
            key: without_empty_fields(item)
            for key, item in value.items()
            if item is not None or key == "content"
        }
    return value


def _may_hold_fields(items: list[Any]) -> bool:
    return bool(items) and not isinstance(items[0], (int, float, str))  # a million token ids hold none
