"""Reading rows from files, and recognising their shape. A damaged row is named by its file and line."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from fmstune import demo
from fmstune.tuning.errors import DataError

Shape = Literal["messages", "prompt/completion", "prompt/completion as messages", "text"]
Row = Mapping[str, Any]

_ROLES = ("system", "user", "assistant", "tool", "developer")
_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
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
    found, sha256 = read_rows(source, split, most)
    rows, places = [row for _, row in found], [place for place, _ in found]
    shape = _shape(rows[0], f"{source} {places[0]}")
    for row, place in zip(rows, places, strict=True):
        _check(row, shape, f"{source} {place}")
    return Rows(source, shape, rows, places, sha256)


def read_rows(
    source: str, split: Literal["train", "eval"] = "train", most: int | None = None
) -> tuple[list[tuple[str, Row]], str | None]:
    """The rows of a source as (place, row), whatever is in them, and the file's SHA-256."""
    sha256 = None
    if source == "demo" or _exists(source):
        path = demo.data_file(split) if source == "demo" else Path(source)
        found = list(islice(_read_file(path, source), most))
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    elif Path(source.removesuffix(".gz")).suffix.lower() in _SUFFIXES or source.startswith((".", "/", "~")):
        raise DataError(f"{source}: there is no such file (looked for from {Path.cwd()}).")
    else:
        found = list(islice(_read_hub(source, split), most))
    if not found:
        raise DataError(f"{source} has no rows.")
    return found, sha256


def _exists(source: str) -> bool:
    try:
        return Path(source).exists()
    except (OSError, ValueError):  # a name too long, with a NUL, or in a folder that may not be looked into
        return False


def _read_file(path: Path, source: str) -> Iterator[tuple[str, Row]]:
    if path.is_dir():
        raise DataError(f"{source} is a directory; give a file.")
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
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
            f"{source} is of a kind that cannot be read ({suffix or 'no suffix'}); give a file of the kind "
            f"{', '.join(_SUFFIXES)}."
        )


def _read_text(path: Path, source: str) -> str:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{source} line {line}: this is not UTF-8 text; save the file as UTF-8.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{source} cannot be read: {error}.") from None


def _read_json_lines(text: str, source: str) -> Iterator[tuple[str, Row]]:
    # Not `splitlines`: JSON texts may hold other line ends, such as U+2028, within a line.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{source} line {number}: this is not valid JSON ({error}); each line holds one row."
            ) from None
        yield f"line {number}", _object(row, f"{source} line {number}")


def _read_json(text: str, source: str) -> Iterator[tuple[str, Row]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source} is not valid JSON ({error}); it begins as an array of rows.") from None
    for number, row in enumerate(rows, 1):
        yield f"row {number}", _object(row, f"{source} row {number}")


def _read_csv(text: str, source: str, delimiter: str) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(1 << 30)  # the default of 128 KiB is less than one long document
    # Strict: without it a quotation mark that is never closed swallows the rest of the file as one cell.
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
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
        raise DataError(
            f"{source} line {reader.line_num}: {error}; a cell with quotation marks is put in such marks, "
            "and those in it are doubled."
        ) from None


def _read_parquet(path: Path, source: str) -> Iterator[tuple[str, Row]]:
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", _without_empty_fields(row)
    except (OSError, pyarrow.ArrowException, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DataError(f"{source} is not a parquet file that can be read: {reason}") from None


def _read_hub(source: str, split: str) -> Iterator[tuple[str, Row]]:
    import datasets

    name = "train" if split == "train" else "validation"
    try:
        loaded = datasets.load_dataset(source, split=name)
    except Exception as error:  # the hub's client raises whatever its layers raise
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DataError(
            f"{source} is no file here, and cannot be fetched from the hub (split {name}): {first}"
        ) from error
    for number, row in enumerate(loaded, 1):
        yield f"row {number}", _without_empty_fields(row)


def _without_empty_fields(value: Any) -> Any:
    """A value of a table without the fields that are there only since another row has them.

    A chat template that asks whether a message has `tool_calls` would find them, and fail at their `None`.
    """
    if isinstance(value, list):
        return [_without_empty_fields(item) for item in value]
    if isinstance(value, dict):
        return {
            key: _without_empty_fields(item)
            for key, item in value.items()
            if item is not None or key == "content"
        }
    return value


def _object(row: Any, place: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"{place}: a row is a JSON object, this is {_kind(row)}; {_SHAPES}.")
    return row


def _shape(row: Row, place: str) -> Shape:
    if row.get("messages") is not None:
        return "messages"
    if row.get("prompt") is not None and row.get("completion") is not None:
        return "prompt/completion as messages" if isinstance(row["prompt"], list) else "prompt/completion"
    if row.get("text") is not None:
        return "text"
    columns = ", ".join(str(key) for key, value in row.items() if value is not None) or "none"
    pairs = row.get("chosen") is not None and row.get("rejected") is not None
    other = " From pairs of answers learn --method dpo, kto and reward." if pairs else ""
    raise DataError(f"{place}: the columns are {columns}; {_SHAPES}.{other}")


def _check(row: Row, shape: Shape, place: str) -> None:
    keys = (shape,) if shape in ("messages", "text") else ("prompt", "completion")
    for key in keys:
        value = row.get(key)
        if value is None:
            raise DataError(f"{place}: there is no `{key}`; the first row has it, and so must all.")
        if shape in ("text", "prompt/completion"):
            if not isinstance(value, str):
                raise DataError(
                    f"{place}: `{key}` is {_kind(value)}, where a text is needed as in the first row."
                )
        else:
            _check_messages(value, place, key)
    if shape in ("text", "prompt/completion"):
        return
    if row.get("tools"):
        _check_tools(row["tools"], place)
    if not any(message["role"] == "assistant" for message in row[keys[-1]]):
        raise DataError(
            f"{place}: no message of `{keys[-1]}` is the assistant's; there is nothing to learn from it."
        )


def _kind(value: Any) -> str:
    return {list: "a list", dict: "an object", bool: "a truth value"}.get(type(value), "a number")


def _check_tools(tools: Any, place: str) -> None:
    try:
        tools = json.loads(tools) if isinstance(tools, str) else tools
    except (ValueError, RecursionError):
        tools = None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError(f"{place}: `tools` takes a list of JSON schemas, or such a list as a JSON text.")


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
