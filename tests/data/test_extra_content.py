"""Content of a file other than its rows is reported, or the file is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmstune.config.schema.tables import DataConfig, DataSource
from fmstune.data.files import json_files
from fmstune.data.rows.bad_rows import BadRows
from fmstune.data.rows.reader import Reader
from fmstune.errors import DataError
from tests.support.row_files import ROW, ROWS, refused


def beside(path: Path, content: Any, at_once: int) -> tuple[list[Any], str]:
    """The rows of a file, and what is reported about the rest; for a refused file, the reason."""
    path.write_text(json.dumps(content))
    reader = Reader(DataSource(str(path)), "train", DataConfig(), BadRows())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(json_files, "_AT_ONCE", at_once)
        try:
            rows = [row for _, row in reader]
        except DataError as error:
            return [], str(error)
    return rows, " ".join(each.what for each in reader.unused.entries())


@given(
    st.sampled_from(("data", "rows", "train", "anything", "train_sft")),
    st.dictionaries(
        st.sampled_from(("system", "tools", "more", "extra", "title", "notes", "license", "examples")),
        st.sampled_from(
            (
                "ALWAYS",
                [{"name": "f"}],
                [{"type": "text", "text": "a"}],
                {"a": 1},
                3,
                True,
                ROWS,
                ROWS[:1],
                ["x"],
            )
        ),
        min_size=1,
    ),
    st.booleans(),
    st.sampled_from((1 << 25, 8)),
)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_content_other_than_rows_is_reported_or_the_file_is_refused(
    tmp_path: Path, key: str, others: dict[str, Any], first: bool, at_once: int
) -> None:
    content = {key: ROWS, **others} if first else {**others, key: ROWS}
    rows, said = beside(tmp_path / "x.json", content, at_once)
    if rows:
        assert rows == ROWS
        assert all(f"`{name}`" in said for name in others)
    else:
        assert "several lists of rows" in said or "the columns are" in said


@pytest.mark.parametrize("at_once", [json_files._AT_ONCE, 16])
def test_content_next_to_a_table_or_in_an_inner_object_is_reported(tmp_path: Path, at_once: int) -> None:
    table = {"columns": list(ROW), "index": [0], "data": [list(ROW.values())], "system": "ALWAYS"}
    inner = {"meta": {"n": 2}, "data": {"rows": ROWS, "system": "ALWAYS"}}
    for content, named in ((table, ["system"]), (inner, ["meta", "system"])):
        rows, said = beside(tmp_path / "x.json", content, at_once)
        assert rows[0] == ROW
        assert all(f"`{name}`" in said for name in named)
    quiet = {"train": ROWS, "validation": []}
    assert beside(tmp_path / "x.json", quiet, at_once) == (ROWS, "")


@pytest.mark.parametrize("at_once", [json_files._AT_ONCE, 16])
@pytest.mark.parametrize("form", ["rows", "lines", "array", "one"])
def test_a_row_with_a_cell_truncated_by_the_dataset_viewer_is_refused(
    tmp_path: Path, form: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "_AT_ONCE", at_once)
    packed = [
        {"row_idx": n, "row": ROW, "truncated_cells": cut} for n, cut in enumerate(([], ["completion"]))
    ]
    content = {
        "rows": json.dumps({"features": [{"name": "prompt"}], "rows": packed, "num_rows_total": 2}),
        "lines": "\n".join(map(json.dumps, packed)),
        "array": json.dumps(packed),
        "one": json.dumps(packed[1]),
    }[form]
    path = tmp_path / "x.json"
    assert "the hub's viewer has truncated `completion`" in refused(path, content)
    bad = BadRows(skip=True)
    reader = Reader(DataSource(str(path)), "train", DataConfig(), bad)
    assert [row for _, row in reader] == ([] if form == "one" else [ROW])
    assert (bad.count, reader.unused.entries()) == (1, ())
