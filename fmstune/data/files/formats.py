"""The formats of files. Each reader yields (place, row), or (place, error) for a damaged row after which
the file can be read on; otherwise it raises `DataError`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from fmstune.config.paths.data import kind_of
from fmstune.data.columns import Row
from fmstune.data.files.csv_files import read_csv
from fmstune.data.files.encodings import TextFile
from fmstune.data.files.json_files import Found, read_json
from fmstune.data.files.json_lines import not_utf8_error
from fmstune.data.files.opening import opened
from fmstune.data.files.splits import Wanted
from fmstune.errors import DataError
from fmstune.text import first_line

_SAMPLED = 32 << 20
"""The number of bytes from which a text's encoding is detected."""

__all__ = ["Found", "numbered", "read_file", "without_empty_fields"]


_TABLES = (".parquet", ".arrow", ".csv", ".tsv")


def read_file(
    path: Path,
    name: str,
    text_rows: str = "line",
    wanted: Wanted | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Found]:
    """The rows of a file that messages call `name`; of a file with several splits, those that are `wanted`.
    `say` receives messages about the file."""
    kind = kind_of(path)
    if wanted is not None and kind in (*_TABLES, ".txt"):
        wanted.require_whole(name)
    if kind in (".parquet", ".arrow"):
        yield from _read_table(path, name, kind)
    elif kind in (".csv", ".tsv"):
        yield from read_csv(path, name, "," if kind == ".csv" else "\t", say)
    elif kind == ".txt":
        text = TextFile.of(path, name, say, most=_SAMPLED)
        with text.opened() as file:
            yield from _read_text(file, text, text_rows)
    else:
        yield from read_json(path, name, wanted or Wanted("train"), say)


def _read_text(file: IO[bytes], of: TextFile, rows: str) -> Iterator[Found]:
    """A row is a line, a paragraph (up to a blank line), or the file; blank ones are skipped."""
    name = of.name
    if rows == "file":
        text = _decoded(file, of)
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
    for number, line in enumerate(_at_line_ends(file), 1):
        try:
            # A byte order mark is not text, also in the middle, where files with one were joined.
            yield line.decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError:
            raise not_utf8_error(f"{name} line {number}") from None


def _at_line_ends(file: IO[bytes]) -> Iterator[bytes]:
    first = file.readline()
    # In a file of a single line, this is the line ending: old Macs write no other.
    yield from first.split(b"\r") if not first.endswith(b"\n") else [first]
    yield from file


def _decoded(file: IO[bytes], of: TextFile) -> str:
    try:
        return file.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _first_bad_line(of) from None


def _first_bad_line(of: TextFile) -> DataError:
    name = of.name
    with of.opened() as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return not_utf8_error(f"{name} line {number}")
    return not_utf8_error(name)


def _read_table(path: Path, name: str, kind: str) -> Iterator[Found]:
    import pyarrow

    number = 0
    try:
        for batch in _parquet(path, name) if kind == ".parquet" else _arrow(path, name):
            names = batch.schema.names
            if len(set(names)) < len(names):
                duplicate_key = next(each for each in names if names.count(each) > 1)
                raise DataError(
                    f"{name}: the column {duplicate_key!r} occurs twice; remove one, or rename it."
                )
            # Without it a column of maps becomes lists of pairs.
            for row in batch.to_pylist(maps_as_pydicts="strict"):
                number += 1
                yield f"{name} row {number}", _row(row)
    except (OSError, pyarrow.ArrowException, ValueError, KeyError) as error:
        reason = first_line(error)
        raise DataError(f"{name} is not a readable {kind[1:]} file: {reason}") from None


def _parquet(path: Path, name: str) -> Iterator[Any]:
    import pyarrow.parquet

    with _seekable(path, name) as source, pyarrow.parquet.ParquetFile(source) as file:
        yield from file.iter_batches(batch_size=1024)


def _arrow(path: Path, name: str) -> Iterator[Any]:
    """Batches of either of Arrow's formats: the file format, or the stream format (which `datasets`
    writes)."""
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
    """The file for pyarrow, which reads from its end; a compressed one is decompressed into memory."""
    import pyarrow

    if kind_of(path) == path.suffix.lower():
        return pyarrow.OSFile(str(path))
    with opened(path, name) as file:
        return pyarrow.BufferReader(file.read())


def numbered(rows: Iterable[Row], name: str) -> Iterator[Found]:
    """Rows of a data set, with their locations."""
    for number, row in enumerate(rows, 1):
        yield f"{name} row {number}", _row(row)


def _row(row: Row) -> Row:
    """The row of a table: empty cells are kept, empty fields of objects in them are not."""
    return {name: without_empty_fields(value) for name, value in row.items()}


def without_empty_fields(value: Any) -> Any:
    """A value of a table without the fields that only exist because another row has them.

    A chat template that tests whether a message has `tool_calls` would find them, and fail on their `None`.
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
    return bool(items) and not isinstance(items[0], (int, float, str))  # a million token ids have no fields
