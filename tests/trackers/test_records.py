"""The records that are passed between fmstune and a tracker."""

from __future__ import annotations

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


def test_the_columns_of_a_table_are_not_found_again_for_each_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []
    columns = Table.columns.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(Table, "columns", property(lambda table: [found.append(1), columns(table)][1]))
    monkeypatch.chdir(tmp_path)
    table = Table("t", (*({"a": number, "b": "x"} for number in range(1000)), {"c": 1}), "eval", 1)
    assert table.filled()[-1] == {"a": None, "b": None, "c": 1}
    tracker = get_tracker("trackio")
    tracker.open(RunStart("run", str(tmp_path), run_id="x"))
    tracker.seq = 1
    tracker.track_table(table)
    table_item(table)  # of SwanLab
    assert len(found) < 10
