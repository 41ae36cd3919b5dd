"""The tracker `file`: every event where the user says, once."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

from fmstune.trackers.base import MetricPoint, RunStart
from fmstune.trackers.file_tracker import FileTracker


def feed(tracker: FileTracker, first: int = 1, again: str | None = None) -> None:
    opened = tracker.open(RunStart("run-1", ".", tracker_run_id=again))
    for seq in range(first, 4):
        if seq > (opened.delivered_through or 0):
            tracker.seq = seq
            tracker.track_point(MetricPoint({"loss": 1 / seq, "lr": 0.1}, "train", seq, seq / 2, 1.5, seq))


def test_json_lines_hold_every_event(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "m.jsonl"
    tracker = FileTracker(tracker_config={"path": str(path)})
    feed(tracker)
    tracker.seq = 4
    tracker.set_params({"a": {"b": 1}}, "params")
    tracker.close("failed", "ValueError: x")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["metrics"] * 3 + ["params", "status"]
    assert lines[0] == {
        "run": "run-1", "seq": 1, "time": 1.5, "kind": "metrics", "stage": "train", "step": 1, "epoch": 0.5,
        "values": {"loss": 1.0, "lr": 0.1},
    }  # fmt: skip
    assert lines[3]["values"] == {"a": {"b": 1}}
    assert lines[4]["values"] == {"status": "failed", "error": "ValueError: x"}


def test_csv_has_one_value_a_row_so_that_late_metrics_need_no_new_column(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    tracker = FileTracker(tracker_config={"path": str(path)})
    feed(tracker)
    tracker.track(0.5, "late, with a comma", "eval", step=9)
    tracker.close("finished")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 + 1 + 1
    assert {row["name"] for row in rows} == {"loss", "lr", "late, with a comma", "status"}
    assert [row["value"] for row in rows if row["name"] == "loss"] == ["1.0", "0.5", str(1 / 3)]


def test_what_the_file_holds_is_not_written_a_second_time(tmp_path: Path) -> None:
    for name in ("m.jsonl", "m.csv"):
        path = tmp_path / name
        first = FileTracker(tracker_config={"path": str(path)})
        feed(first)
        whole = path.read_bytes()
        path.write_bytes(whole[:-9])  # a kill in the middle of the last line
        feed(FileTracker(tracker_config={"path": str(path)}), again=str(path))
        steps = [row for row in path.read_text().splitlines() if "loss" in row]
        assert len(steps) in (3, 4)  # the torn line, and the same event whole
        assert path.read_bytes().endswith(b"\n")


def test_several_runs_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    for run in ("one", "two"):
        tracker = FileTracker(tracker_config={"path": str(path)})
        assert tracker.open(RunStart(run, ".")).delivered_through is None
        tracker.seq = 1
        tracker.track_point(MetricPoint({"loss": math.pi}, "train", 1))
        tracker.close("finished")
    runs = [json.loads(line)["run"] for line in path.read_text().splitlines()]
    assert runs == ["one", "one", "two", "two"]


def test_a_folder_that_cannot_be_written_to_is_said_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = FileTracker(tracker_config={"path": str(tmp_path / "file" / "m.jsonl")}).check(1)
    assert found.state == "no_permission"
    assert "trackers.file.path" in found.remedy
    assert FileTracker(tracker_config={"path": str(tmp_path / "new" / "m.jsonl")}).check(1).ok
    assert not (tmp_path / "new").exists()
