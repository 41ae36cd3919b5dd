"""Whatever the names and values, the tracker `file` writes them so that they can be read back."""

from __future__ import annotations

import csv
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fmstune.trackers.records import MetricPoint, Table
from fmstune.trackers.values.plain import plain
from tests.support.tracked_files import name_of, opened, read_csv, read_json


def test_numpy_and_non_finite_numbers_are_numbers(tmp_path: Path) -> None:
    values = {
        "f": np.float32(0.5), "i": np.int64(3), "b": np.bool_(True), "nan": math.nan, "inf": -math.inf,
        "zero_d": np.array(2.5), "nested": {"f": np.float64(1.5), "nan": math.nan},
    }  # fmt: skip
    for name in ("m.jsonl", "m.csv"):
        tracker = opened(tmp_path / name)
        tracker.track_point(MetricPoint(values))
    (line,) = read_json(tmp_path / "m.jsonl")
    assert line["values"] == {
        "f": 0.5, "i": 3, "b": True, "nan": "NaN", "inf": "-Infinity", "zero_d": 2.5,
        "nested": {"f": 1.5, "nan": "NaN"},
    }  # fmt: skip
    cells = {row["name"]: row["value"] for row in read_csv(tmp_path / "m.csv")}
    assert math.isnan(cells.pop("nan"))
    assert cells == {
        "f": 0.5, "i": 3, "b": True, "inf": -math.inf, "zero_d": 2.5, "nested": {"f": 1.5, "nan": "NaN"},
    }  # fmt: skip


def test_a_cell_longer_than_pythons_reader_allows_is_read_back_and_the_limit_restored(
    tmp_path: Path,
) -> None:
    path = tmp_path / "m.csv"
    limit = csv.field_size_limit()
    for _ in range(2):
        tracker = opened(path)
        tracker.seq = 1
        tracker.set_params({"long": "x" * 200_000}, "p")
        tracker.flush()
    assert [len(row["value"]) for row in read_csv(path)] == [200_000]
    assert csv.field_size_limit() == limit


TEXT = st.text(st.characters() | st.sampled_from('\n\r\0",\u2028\x85\ud800{}[]0N'), max_size=8)
VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXT
    | st.sampled_from(["NaN", "12", "null", '"']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
EVENTS = st.lists(st.tuples(TEXT, st.dictionaries(TEXT, VALUE, max_size=4)), min_size=1, max_size=4)


def journal_value(value: Any) -> Any:
    """A value as the journal returns it."""
    return json.loads(json.dumps(plain(value)))


@settings(max_examples=100)
@given(EVENTS, TEXT.filter(bool), st.data())
def test_any_names_and_values_are_read_back_once_after_a_kill_at_any_byte(
    events: list[tuple[str, Mapping[str, Any]]], run: str, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("m.jsonl", "m.csv"):
            path = Path(folder, name)
            for cut in (True, False):
                tracker = opened(path, name=run)
                for seq, (stage, values) in enumerate(events, 1):
                    tracker.seq = seq
                    tracker.set_params(values, stage)
                    rows = (values,)
                    tracker.seq, tracker.event_time = 1000 + seq, 1e9 + seq
                    tracker.track_table(Table(stage, rows, stage))
                assert tracker._file is not None
                tracker._file.close()  # as the kernel does when a process is killed
                if cut:
                    whole = path.read_bytes()
                    path.write_bytes(whole[: int(len(whole) * data.draw(st.floats(0, 1)))])
        check_json(read_json(Path(folder, "m.jsonl")), events, run)
        check_csv(read_csv(Path(folder, "m.csv")), events, run)


def check_json(rows: list[dict[str, Any]], events: list[tuple[str, Mapping[str, Any]]], run: str) -> None:
    params = [row for row in rows if row["kind"] == "params"]
    assert [row["seq"] for row in params] == list(range(1, len(events) + 1))
    assert {row["run"] for row in rows} == {run}
    assert [(row["stage"], row["values"]) for row in params] == [
        (stage, journal_value(values)) for stage, values in events
    ]


def check_csv(rows: list[dict[str, Any]], events: list[tuple[str, Mapping[str, Any]]], run: str) -> None:
    assert {name_of(row["run"]) for row in rows} == {run}
    for seq, (stage, values) in enumerate(events, 1):
        found = [row for row in rows if row["seq"] == str(seq)]
        assert {name_of(row["stage"]) for row in found} <= {stage}
        assert len(found) == len(values)
        for row, (name, value) in zip(found, values.items(), strict=True):
            assert row["name"] == name
            expected = journal_value(value)
            if isinstance(value, float) and not math.isfinite(value):
                expected = plain(float(row["value"]))
            assert journal_value(row["value"]) == expected
        (table,) = [row for row in rows if row["seq"] == str(1000 + seq)]
        assert (table["name"], table["value"]) == (stage, [journal_value(values)])


POINT = st.builds(
    MetricPoint,
    st.dictionaries(TEXT, st.floats(-9, 9) | VALUE, min_size=1, max_size=3)
    | st.just({"loss": 0.5, '},{"run":"': 2, "n": 3}),
    st.sampled_from(["train", '},{"run":', "ü", None]),
    st.none() | st.integers(0, 9),
    st.none() | st.floats(0, 9),
    st.sampled_from([0.5, 1.5, 2e9]),
)


@settings(max_examples=100)
@given(st.lists(POINT, min_size=1, max_size=5), TEXT.filter(bool), st.floats(0, 1), st.booleans())
def test_points_written_in_a_batch_equal_those_written_one_by_one_even_after_a_kill_at_any_byte(
    points: list[MetricPoint], run: str, cut: float, csv_rows: bool
) -> None:
    points = [point._replace(seq=seq) for seq, point in enumerate(points, 1)]
    with tempfile.TemporaryDirectory() as folder:
        path, alone = (Path(folder, name).with_suffix(".csv" if csv_rows else ".jsonl") for name in "ab")
        for file in (path, alone):
            for again in (False, True):
                tracker = opened(file, name=run)
                tracker.event_time = 3.5
                if file == path:
                    tracker.track_points(iter(points))
                else:
                    for point in points:
                        tracker.seq, tracker.event_time = point.seq, point.time
                        tracker.track_point(point)
                tracker.flush()
                assert tracker.holds(len(points))
                if not again:
                    file.write_bytes(file.read_bytes()[: int(cut * file.stat().st_size)])
                    assert tracker._file is not None
                    tracker._file.close()
        assert path.read_bytes() == alone.read_bytes()
