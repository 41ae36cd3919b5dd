"""Runs that the tracker `file` wrote: delivering them and reading them back."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fmstune.trackers.file_tracker import FileTracker
from fmstune.trackers.records import MetricPoint, RunStart

ID = "0123456789abcdef0123456789abcdef"
OTHER = "f" * 32


def opened(path: Path, run_id: str = ID, name: str = "run-1") -> FileTracker:
    """A tracker whose run is written to `path`."""
    tracker = FileTracker(tracker_config={"path": str(path)})
    tracker.open(RunStart(name, ".", run_id=run_id))
    return tracker


def deliver(path: Path, upto: int = 3, run_id: str = ID) -> None:
    """Deliver the first events of a run, whichever of them the file has; the fourth is the end of the run."""
    tracker = opened(path, run_id)
    for seq in range(1, upto + 1):
        tracker.seq = seq
        tracker.track_point(MetricPoint({"loss": 1 / seq, "lr": 0.1}, "train", seq, seq / 2, 1.5, seq))
    tracker.seq = upto + 1
    tracker.close("finished")


def read_json(path: Path) -> list[dict[str, Any]]:
    """The lines, each of which must be strict JSON."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


@contextmanager
def any_cell_length() -> Iterator[None]:
    before = csv.field_size_limit(1 << 30)
    yield
    csv.field_size_limit(before)


def read_csv(path: Path) -> list[dict[str, Any]]:
    """The rows, with each value parsed as the docstring of `CsvRows` describes."""
    with path.open(newline="", encoding="utf-8") as file, any_cell_length():
        rows = list(csv.DictReader(file))
    for row in rows:
        assert None not in row
        row["name"], row["value"] = name_of(row["name"]), value_of(row["value"])
    return rows


def name_of(cell: str) -> str:
    return str(json.loads(cell)) if cell.startswith('"') else cell


def value_of(cell: str) -> Any:
    try:
        return json.loads(cell)
    except ValueError:
        return cell
