"""Any rows in any file format are read as they were written."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmstune.config.schema.tables import DataConfig, DataSource
from fmstune.data.files import json_files
from fmstune.data.files.source import Origin
from fmstune.data.rows.bad_rows import BadRows
from fmstune.data.rows.reader import Reader, load_rows
from fmstune.errors import DataError
from tests.support.row_files import read, refused

# No text is blank, because blank lines are not rows.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12).filter(
    lambda text: text.strip() and "\r" not in text
)
tables = st.lists(st.fixed_dictionaries({"prompt": texts, "completion": texts}), min_size=2, max_size=6)


def as_csv(rows: list[Any], dialect: dict[str, Any]) -> str:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), **dialect)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


dialects = st.fixed_dictionaries(
    {
        "delimiter": st.sampled_from(",;\t|"),
        "quoting": st.sampled_from((csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC)),
        "lineterminator": st.sampled_from(("\n", "\r\n")),
    }
)
FORMS: dict[str, Callable[[list[Any], Any], str]] = {
    "lines.jsonl": lambda rows, _: "".join(json.dumps(row) + "\n" for row in rows),
    "lines.json": lambda rows, _: "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
    "commas.jsonl": lambda rows, _: ",\n".join(map(json.dumps, rows)),
    "pretty.jsonl": lambda rows, _: "\n".join(json.dumps(row, indent=2) for row in rows),
    "close.json": lambda rows, _: "".join(json.dumps(row, indent=1) for row in rows),
    "array.json": lambda rows, _: json.dumps(rows, indent=2),
    "array.jsonl": lambda rows, _: json.dumps(rows),
    "arrays.jsonl": lambda rows, _: "\n".join(json.dumps([row]) for row in rows),
    "wrapped.json": lambda rows, _: json.dumps({"version": "1", "data": rows}),
    "wrapped.jsonl": lambda rows, _: json.dumps({"data": rows, "count": len(rows)}, indent=1),
    "splits.json": lambda rows, _: json.dumps({"test": rows[:1], "train": rows}),
    "columns.json": lambda rows, _: pandas.DataFrame(rows).to_json(),
    "split.json": lambda rows, _: pandas.DataFrame(rows).to_json(orient="split"),
    "index.json": lambda rows, _: pandas.DataFrame(rows).to_json(orient="index"),
    "table.json": lambda rows, _: json.dumps({key: [row[key] for row in rows] for key in rows[0]}),
    "x.csv": as_csv,
    "x.tsv": as_csv,
}


@given(st.sampled_from(sorted(FORMS)), tables, dialects, st.sampled_from((1 << 25, 32)))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_table_in_any_format_is_read_as_it_was_written(
    tmp_path: Path, form: str, rows: list[Any], dialect: dict[str, Any], at_once: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(json_files, "_AT_ONCE", at_once)
        assert read(tmp_path / form, FORMS[form](rows, dialect)) == rows


@given(tables)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_table_in_parquet_is_read_as_it_was_written(tmp_path: Path, rows: list[Any]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    assert load_rows(str(tmp_path / "x.parquet")).rows == rows


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def all_found(path: Path) -> Iterator[str]:
    try:
        for _, found in Origin.of(DataSource(str(path)), "train").rows("line", streaming=False):
            if isinstance(found, DataError):
                yield str(found)
    except DataError as error:
        yield str(error)


@given(
    st.lists(values, min_size=1, max_size=4),
    st.sampled_from((None, 1)),
    st.sampled_from(("\n", " ", "\n\n")),
    st.sampled_from((".json", ".jsonl")),
    st.sampled_from((1 << 25, 8)),
)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_valid_json_is_never_reported_as_invalid(
    tmp_path: Path, given: list[Any], indent: int | None, between: str, suffix: str, at_once: int
) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_text(between.join(json.dumps(value, indent=indent) for value in given))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(json_files, "_AT_ONCE", at_once)
        assert not [told for told in all_found(path) if "valid JSON" in told]


MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize("mark", [b"", MARK])
@pytest.mark.parametrize(
    ("name", "first", "second", "column"),
    [
        ("x.csv", b"prompt,completion\na,b\n", b"prompt,completion\nc,d\n", "completion"),
        ("x.csv", b'"prompt","completion"\na,b\n', b'"prompt","completion"\nc,d\n', "completion"),
        ("x.tsv", b"prompt\tcompletion\na\tb\n", b"prompt\tcompletion\nc\td\n", "completion"),
        ("x.txt", b"b\n", b"d\n", "text"),
        ("x.jsonl", b'{"text": "b"}\n', b'{"text": "d"}\n', "text"),
    ],
)
def test_concatenated_files_hold_the_rows_of_all_of_them(
    tmp_path: Path, mark: bytes, name: str, first: bytes, second: bytes, column: str
) -> None:
    path = tmp_path / name
    path.write_bytes(mark + first + mark + second)
    reader = Reader(DataSource(str(path)), "train", DataConfig(), BadRows())
    assert [row[column] for _, row in reader] == ["b", "d"]
    said = [entry.what for entry in reader.unused.entries()]
    again = f"{path} line 3 repeats the header, as in joined files; such lines are skipped"
    assert said == ([again] if name.endswith("sv") else [])


def test_damaged_utf_8_is_reported_as_such(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes("text\na\né é é é\n".encode() + b"\xff\n")
    said = refused(path, path.read_bytes())
    assert "UTF-8- " not in said
    assert "UTF-8" in said
