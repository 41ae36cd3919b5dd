"""The records that are passed between fmstune and a tracker."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fmstune.trackers.records import MOST_SHOWN, RunStart, Table, TrackerRun
from fmstune.trackers.registry import get_tracker
from fmstune.trackers.swanlab.records import table_item


def test_a_url_or_note_of_a_megabyte_is_truncated_and_says_so() -> None:
    run = TrackerRun("id", url="y" * 1_000_000, note="n" * 1_000_000)
    for text in (run.url, run.note):
        assert text is not None
        assert len(text) < MOST_SHOWN + 50
        assert text.endswith("… (1000000 characters)")
    assert TrackerRun("id", "https://host/run").url == "https://host/run"


def test_a_table_of_many_rows_is_converted_in_a_time_that_grows_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    rows = tuple({"a": number, "b": "x"} for number in range(20_000))
    table = Table("t", (*rows, {"c": 1}), "eval", 1)
    assert table.filled()[-1] == {"a": None, "b": None, "c": 1}
    tracker = get_tracker("trackio")
    tracker.open(RunStart("run", str(tmp_path), run_id="x"))
    tracker.seq = 1
    began = time.thread_time()
    tracker.track_table(table)
    table_item(table)  # of SwanLab
    # With the columns of the table found again for each row, these took minutes.
    assert time.thread_time() - began < 10
