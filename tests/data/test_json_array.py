"""A JSON array is read value by value, with the same result as `json.loads`."""

from __future__ import annotations

import io
import json
import re
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmstune.data.files.json_array import BadArray, values

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
pieces = st.integers(1, 40)
blanks = st.text(alphabet=" \t\r\n", max_size=3)


@given(st.lists(anything, max_size=6), pieces, blanks, st.booleans(), st.sampled_from([None, 1]))
def test_any_array_has_the_values_that_json_finds(
    rows: list[Any], piece: int, blank: str, ascii_only: bool, indent: int | None
) -> None:
    text = blank + json.dumps(rows, ensure_ascii=ascii_only, indent=indent) + blank
    assert list(values(io.BytesIO(text.encode(errors="surrogatepass")), piece)) == rows


@given(st.lists(anything, min_size=1, max_size=4), st.data(), pieces)
def test_an_error_in_any_damaged_array_is_reported_where_json_reports_it(
    rows: list[Any], data: st.DataObject, piece: int
) -> None:
    text = json.dumps(rows, indent=data.draw(st.sampled_from([None, 1])))
    cut = data.draw(st.integers(0, len(text) - 1))
    text = text[:cut] + data.draw(st.sampled_from(["", "]", ",", "}", "x", '"', "\\"])) + text[cut + 1 :]
    ours = found_by(lambda: list(values(io.BytesIO(text.encode()), piece)))
    theirs = found_by(lambda: json.loads(text))
    if text.lstrip().startswith("[") and "Extra data" not in theirs:
        assert ours == theirs


def found_by(read: Callable[[], Any]) -> str:
    """The values, or the position of the first error."""
    try:
        return repr(read())
    except ValueError as error:
        return re.sub(r" \(char .*", "", str(error))


def test_only_a_small_part_of_a_large_array_is_in_memory() -> None:
    row = json.dumps({"text": "word " * 200})
    file = io.BytesIO(f"[{','.join([row] * 20_000)}]".encode())
    tracemalloc.start()
    assert sum(1 for _ in values(file)) == 20_000
    assert tracemalloc.get_traced_memory()[1] < 8_000_000 < len(file.getvalue())
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}\n {"a": 2}]', "Expecting ',' delimiter: line 2 column 2"),
        ('[{"a": 1},]', "Expecting value|Illegal trailing comma"),
        ('[{"a": 1}', "Expecting ',' delimiter: line 1 column 10"),
        ("[1] [2]", "Extra data: line 1 column 5"),
        ("[" * 100_000, "nested too deeply"),
        ("", "Expecting value: line 1 column 1"),
    ],
)
def test_an_error_is_reported_with_its_line(text: str, message: str) -> None:
    with pytest.raises(BadArray, match=message):
        list(values(io.BytesIO(text.encode()), 4))
