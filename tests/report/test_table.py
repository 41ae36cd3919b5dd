"""Tables fit the terminal, and values that users paste from them are complete."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmstune.report.table import columns, table
from fmstune.report.words import age, cell, duration

CELLS = st.text(st.sampled_from("ab中é-e\u0301"), max_size=30)


@given(rows=st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=4), width=st.integers(20, 120))
def test_a_table_fits_the_terminal_and_its_first_column_is_never_cut(
    rows: list[tuple[str, str, str]], width: int
) -> None:
    lines = table(("run", "second", "third"), rows, width=width, optional=("third", "second"))
    first = max([3, *(columns(row[0]) for row in rows)])
    assert all(columns(line) <= max(width, first) for line in lines)
    assert all(line.startswith(row[0].rstrip()) for line, row in zip(lines[1:], rows, strict=True))


def test_columns_without_a_value_are_omitted_and_numbers_are_right_aligned() -> None:
    assert table(("a", "b", "n"), [("x", "-", "1"), ("y", "", "10")], right=("n",)) == [
        "a   n",
        "x   1",
        "y  10",
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"), (True, "true"), (3, "3"), (0.12345, "0.1235"), (18163.0, "18163"), (float("nan"), "nan"),
        (1e-5, "1e-05"), (["a", 1], "a, 1"), ({"a": "\x1b"}, '{"a": "\\u001b"}'), ("a\x1b", "a\\x1b"),
        (10**400, "very large"),
    ],
)  # fmt: skip
def test_a_value_is_short_and_printable(value: object, shown: str) -> None:
    assert cell(value) == shown


def test_durations_are_in_common_units() -> None:
    assert [duration(each) for each in (0.04, 2.31, 61, 3725, 100_000)] == [
        "0.0s", "2.3s", "1m01s", "1h02m", "1d03h",
    ]  # fmt: skip
    assert [age(each) for each in (0, 59, 60, 7200, 200_000)] == ["0s", "59s", "1m", "2h", "2d"]
