"""Whatever a file contains, it is read as rows or refused."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmstune.config.schema.data import MAPPED_COLUMNS
from fmstune.data.rows.reader import load_rows
from fmstune.errors import DataError

SUFFIXES = (
    *(".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".jsonl.gz", ".csv.gz"),
    *(".jsonl.bz2", ".json.xz", ".jsonl.zst", ".parquet.gz", ".arrow.xz"),
)


@given(st.sampled_from(SUFFIXES), st.binary(max_size=200))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_as_rows_or_refused(tmp_path: Path, suffix: str, data: bytes) -> None:
    read_or_refused(tmp_path / f"x{suffix}", data)


@given(
    st.sampled_from((".jsonl", ".json", ".csv", ".tsv")),
    st.lists(
        st.sampled_from(
            ['{"text": ', '"a"', "}", "[", "]", ",", "\n", "\r", "\t", '"', "text", "messages", "\x00", ":"]
        ),
        max_size=20,
    ),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_anything_similar_to_rows_is_read_as_rows_or_refused(
    tmp_path: Path, suffix: str, pieces: list[str]
) -> None:
    read_or_refused(tmp_path / f"x{suffix}", "".join(pieces).encode())


roles = st.sampled_from(("user", "assistant", "gpt", "human", "function_call", '[{"role": 1}]'))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(("role", "content", "from", "value")), inner | roles)
    ),
    max_leaves=6,
)


@given(
    st.lists(
        st.dictionaries(st.sampled_from((*MAPPED_COLUMNS, "attention_mask")), json_values | roles),
        min_size=1,
        max_size=3,
    )
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_objects_are_read_as_rows_or_refused(tmp_path: Path, rows: list[Any]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    read_or_refused(tmp_path / "x.jsonl", text.encode())


def read_or_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with contextlib.suppress(DataError):
        assert load_rows(str(path)).rows
