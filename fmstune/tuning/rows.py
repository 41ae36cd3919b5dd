"""Reading rows from files, and recognising their shape. A damaged row is named by its file and line."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fmstune import demo
from fmstune.tuning.errors import DataError

Shape = Literal["messages", "prompt/completion", "text"]
Row = Mapping[str, Any]

_ROLES = ("system", "user", "assistant", "tool", "developer")
_SHAPES = "rows have `messages` (a list of {role, content}), or `prompt` and `completion`, or `text`"


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one source. `places` says where each is, as `line 17`; `sha256` is the file's."""

    source: str
    shape: Shape
    rows: list[Row]
    places: list[str]
    sha256: str | None = None

    def place(self, index: int) -> str:
        """Where a row is: `train.jsonl line 17`."""
        return f"{self.source} {self.places[index]}"


def load_rows(source: str, split: Literal["train", "eval"] = "train", most: int | None = None) -> Rows:
    """The rows of a file, of the demo's data, or of a data set on the hub; at most `most` of them.

    Raises `DataError`.
    """
    sha256 = None
    if source == "demo" or Path(source).exists():
        path = demo.data_file(split) if source == "demo" else Path(source)
        found = list(_read_file(path, source))
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    else:
        found = _read_hub(source, split)
    if not found:
        raise DataError(f"{source} has no rows.")
    rows, places = [row for _, row in found][:most], [place for place, _ in found][:most]
    shape = _shape(rows[0], f"{source} {places[0]}")
    for row, place in zip(rows, places, strict=True):
        _check(row, shape, f"{source} {place}")
    return Rows(source, shape, rows, places, sha256)


def _read_file(path: Path, source: str) -> Iterator[tuple[str, Row]]:
    if path.is_dir():
        raise DataError(f"{source} is a directory; give a file.")
    name = path.name.removesuffix(".gz")
    suffix = Path(name).suffix
    if suffix == ".parquet":
        yield from _read_parquet(path, source)
    elif suffix in (".jsonl", ".json", ".csv", ".tsv"):
        text = _read_text(path, source)
        if suffix in (".csv", ".tsv"):
            yield from _read_csv(text, source, "," if suffix == ".csv" else "\t")
        elif suffix == ".json" and text.lstrip().startswith("["):
            yield from _read_json(text, source)
        else:
            yield from _read_json_lines(text, source)
    else:
        raise DataError(
            f"{source} is of a kind that cannot be read ({suffix or 'no suffix'}); give a .jsonl, .json, "
            ".csv, .tsv or .parquet file."
        )


def _read_text(path: Path, source: str) -> str:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{source} line {line}: this is not UTF-8 text; save the file as UTF-8.") from None
    except (OSError, EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{source} cannot be read: {error}.") from None


def _read_json_lines(text: str, source: str) -> Iterator[tuple[str, Row]]:
    # Not `splitlines`: JSON texts may hold other line ends, such as U+2028, within a line.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{source} line {number}: this is not valid JSON ({error}).") from None
        yield f"line {number}", _object(row, f"{source} line {number}")


def _read_json(text: str, source: str) -> Iterator[tuple[str, Row]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source} is not valid JSON ({error}).") from None
    for number, row in enumerate(rows, 1):
        yield f"row {number}", _object(row, f"{source} row {number}")


def _read_csv(text: str, source: str, delimiter: str) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(1 << 30)  # the default of 128 KiB is less than one long document
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for row in reader:
            place = f"line {reader.line_num}"
            if None in row or None in row.values():
                raise DataError(
                    f"{source} {place}: this row does not have the {len(reader.fieldnames or ())} columns of "
                    "the first line."
                )
            yield place, row
    except csv.Error as error:
        raise DataError(f"{source} line {reader.line_num}: {error}.") from None


def _read_parquet(path: Path, source: str) -> Iterator[tuple[str, Row]]:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise DataError(f"{source} is not a parquet file that can be read: {error}") from None
    for number, row in enumerate(table.to_pylist(), 1):
        yield f"row {number}", row


def _read_hub(source: str, split: str) -> list[tuple[str, Row]]:
    import datasets

    name = "train" if split == "train" else "validation"
    try:
        loaded = datasets.load_dataset(source, split=name)
    except Exception as error:  # the hub's client raises whatever its layers raise
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DataError(
            f"{source} is no file here, and cannot be fetched from the hub (split {name}): {first}"
        ) from error
    return [(f"row {number}", row) for number, row in enumerate(loaded, 1)]


def _object(row: Any, place: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"{place}: a row is a JSON object, this is {type(row).__name__}; {_SHAPES}.")
    return row


def _shape(row: Row, place: str) -> Shape:
    if "messages" in row:
        return "messages"
    if "prompt" in row and "completion" in row:
        return "prompt/completion"
    if "text" in row:
        return "text"
    columns = ", ".join(map(str, row)) or "none"
    raise DataError(f"{place}: the columns are {columns}; {_SHAPES}.")


def _check(row: Row, shape: Shape, place: str) -> None:
    keys = ("prompt", "completion") if shape == "prompt/completion" else (shape,)
    for key in keys:
        if row.get(key) is None:
            raise DataError(f"{place}: there is no `{key}`, as the first row has.")
    if shape == "messages":
        _check_messages(row["messages"], place, "messages")
        if not any(message["role"] == "assistant" for message in row["messages"]):
            raise DataError(f"{place}: no message is the assistant's; there is nothing to learn from it.")
    elif shape == "text":
        _check_text(row["text"], place, "text")
    elif isinstance(row["prompt"], list) or isinstance(row["completion"], list):
        _check_messages(row["prompt"], place, "prompt")
        _check_messages(row["completion"], place, "completion")
    else:
        _check_text(row["prompt"], place, "prompt")
        _check_text(row["completion"], place, "completion")


def _check_text(value: Any, place: str, key: str) -> None:
    if not isinstance(value, str):
        raise DataError(f"{place}: `{key}` is {type(value).__name__}; it takes a text.")


def _check_messages(messages: Any, place: str, key: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{place}: `{key}` takes a list of messages with at least one in it.")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or "role" not in message:
            raise DataError(f"{place}: message {number} of `{key}` is no object with `role` and `content`.")
        if message["role"] not in _ROLES:
            raise DataError(
                f"{place}: message {number} has the role {message['role']!r}; roles are {', '.join(_ROLES)}."
            )
        if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
            raise DataError(f"{place}: message {number} has no text as its `content`.")
