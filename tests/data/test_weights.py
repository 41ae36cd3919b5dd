"""Loss weights are read as written, in any field, or refused with their location."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fmstune.config.schema.tables import DataConfig, DataSource, ModelConfig
from fmstune.data.prepare import PreparedData, prepare
from fmstune.errors import DataError
from fmstune.models.load import load_tokenizer

DEMO = load_tokenizer(ModelConfig(path="demo"))
in_tmp = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PLACES = ["row", "message", "sharegpt", "csv", "tsv", "parquet", "decimal"]


def prepared(path: Path, **options: Any) -> PreparedData:
    return prepare(DataConfig(train=(DataSource(str(path)),), cache=False, **options), DEMO, None, seed=0)


def file_of(folder: Path, form: str, weight: Any) -> Path:
    """Two rows, the second of which has the weight, in this format."""
    if form in ("row", "message", "sharegpt"):
        path = folder / "rows.jsonl"
        if form == "row":
            plain: dict[str, Any] = {"prompt": "a", "completion": "b"}
            row: dict[str, Any] = plain | {"weight": weight}
        else:
            who, what = ("role", "content") if form == "message" else ("from", "value")
            names = ("user", "assistant") if form == "message" else ("human", "gpt")
            turns = [{who: name, what: name} for name in names]
            plain = {"messages": turns}
            row = {"messages": [turns[0], turns[1] | {"weight": weight}]}
        path.write_text(f"{json.dumps(plain)}\n{json.dumps(row)}\n")
        return path
    if form in ("csv", "tsv"):
        path = folder / f"rows.{form}"
        table = "prompt,completion,weight\na,b,\na,b," + str(weight) + "\n"
        path.write_text(table.replace(",", "\t") if form == "tsv" else table)
        return path
    path = folder / "rows.parquet"
    cells = pa.array([None, Decimal(repr(weight)) if form == "decimal" else weight])
    pq.write_table(pa.table({"prompt": ["a", "a"], "completion": ["b", "b"], "weight": cells}), path)
    return path


def weights_of(data: PreparedData) -> list[float]:
    """The greatest weight of the tokens of each row."""
    return [max(row.get("loss_weights") or [1.0]) for row in data.train]


@pytest.mark.parametrize("form", PLACES)
@given(weight=st.floats(1e-6, 1e6))
@example(weight=0.5)
@example(weight=1e-6)
@example(weight=1e6)
@in_tmp
def test_a_weight_within_the_range_is_used_as_written(tmp_path: Path, form: str, weight: float) -> None:
    assert weights_of(prepared(file_of(tmp_path, form, weight))) == [1, pytest.approx(weight)]


@pytest.mark.parametrize("form", ["row", "message", "sharegpt"])
@given(weight=st.floats(1e-6, 1e6).map(repr) | st.floats(0.001, 1000).map("{: .6f} ".format))
@example(weight="0.5")
@in_tmp
def test_a_weight_in_a_string_is_used_too(tmp_path: Path, form: str, weight: str) -> None:
    data = prepared(file_of(tmp_path, form, weight))
    assert weights_of(data) == [1, pytest.approx(float(weight))]


outside = st.floats().filter(lambda weight: not (weight == 0 or 1e-6 <= weight <= 1e6))
no_number = st.text(max_size=5).filter(lambda text: text.strip() and not any(map(str.isdigit, text)))
NO_WEIGHTS = outside | outside.map(repr) | no_number | st.integers(10**7) | st.integers(max_value=-1)


@pytest.mark.parametrize("form", ["row", "message", "sharegpt"])
@given(weight=NO_WEIGHTS | st.lists(st.integers(), min_size=1, max_size=2))
@example(weight=3e38)
@example(weight=1e-46)
@example(weight=math.nan)
@example(weight="nan")
@example(weight="1_0")
@example(weight=10**400)
@example(weight=-(10**400))
@example(weight="9" * 400)
@in_tmp
def test_an_invalid_or_out_of_range_weight_is_refused_with_its_location(
    tmp_path: Path, form: str, weight: Any
) -> None:
    if isinstance(weight, str) and weight.strip().lower() in ("true", "false"):
        return
    with pytest.raises(DataError, match=r"line 2.*`weight` is .*weight of") as refused:
        prepared(file_of(tmp_path, form, weight))
    assert len(str(refused.value)) < 700


@pytest.mark.parametrize("column", ["weight", "loss_weight", "mine"])
def test_nan_in_parquet_is_an_invalid_weight_and_null_is_none(tmp_path: Path, column: str) -> None:
    path = tmp_path / "rows.parquet"
    names = {"prompt": "prompt", "completion": "completion", "weight": "mine"} if column == "mine" else None
    for cells, fine in (([1.0 if names else None, 0.5], True), ([0.5, math.nan], False)):
        table = {"prompt": ["a", "a"], "completion": ["b", "b"], column: cells}
        pq.write_table(pa.table(table), path)
        if fine:
            assert weights_of(prepared(path, columns=names)) == [1, 0.5]
            continue
        with pytest.raises(DataError, match=r"row 2: `\w+` is NaN"):
            prepared(path, columns=names)


def test_the_data_summary_reports_that_the_loss_is_weighted(tmp_path: Path) -> None:
    """A column `weight` could be in kilograms."""
    (tmp_path / "rows.jsonl").write_text(
        '{"prompt": "a", "completion": "b", "weight": 70.5}\n{"prompt": "a", "completion": "b"}\n'
    )
    told = prepared(tmp_path / "rows.jsonl").summary.unused_lines()
    said = next(line for line in told if line.startswith("weights other than 0 and 1 scale the loss"))
    assert "(1 row; the first is" in said


def written(folder: Path, form: str, rows: list[dict[str, Any]]) -> Path:
    """Rows as a file of this format; a missing column is missing in JSON and an empty cell in a table."""
    path = folder / f"rows.{form}"
    if form == "jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        columns = {name: [row.get(name) for row in rows] for name in rows[0]}
        pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("names", "options"),
    [
        (("q", "a", "w"), {"columns": {"prompt": "q", "completion": "a", "weight": "w"}}),
        (("Prompt", "Completion", "Weight"), {}),
        (("q", "a", "weight"), {"template": "{q} {a}"}),
        (("q", "a", "Loss Weight"), {"template": "{q} {a}"}),
    ],
)
def test_a_weight_column_is_used_under_any_of_its_names_and_may_be_empty(
    tmp_path: Path, form: str, names: tuple[str, str, str], options: dict[str, Any]
) -> None:
    rows = [dict(zip(names, ("a", "b", weight), strict=True)) for weight in (0.5, None, 2.0)]
    del rows[1][names[2]]
    assert weights_of(prepared(written(tmp_path, form, rows), **options)) == [0.5, 1, 2]


def test_a_weight_column_that_a_template_renders_is_no_weight(tmp_path: Path) -> None:
    path = written(tmp_path, "jsonl", [{"q": "How heavy?", "weight": 70.5}])
    data = prepared(path, template="{q} {weight}")
    assert weights_of(data) == [1]
    assert data.summary.unused == ()


def test_a_configured_weight_column_that_no_row_has_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, "jsonl", [{"q": "a", "a": "b"}])
    with pytest.raises(DataError, match="there is no column 'w'"):
        prepared(path, columns={"prompt": "q", "completion": "a", "weight": "w"})
