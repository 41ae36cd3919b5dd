"""`fmstune runs export` writes the points that were tracked, in each of its formats."""

from __future__ import annotations

import csv
import io
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from fmstune.cli.app import app
from fmstune.delivery.journal.reader import JournalError
from fmstune.report.batches import Batch
from fmstune.report.replay import replay
from fmstune.trackers.records import MetricPoint
from tests.support.journals import journal_path
from tests.support.made_runs import end_run, make_run, start_run
from tests.support.reports import run_json


def test_csv_and_parquet_have_the_points_of_the_json_export(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", {1: 3.0, 2: math.nan, 3: -math.inf, 4: 0.1})
    again = start_run(directory)
    again.resumed(1)
    again.track_point(MetricPoint({"loss": 2.5, "note": 'ü,\n"x\ud800', "long": 2**60 + 1}, "train", 2))
    end_run(again)
    points = [
        (metric["stage"], metric["name"], point["step"], point["value"])
        for metric in run_json("export", str(directory), "--to", "json")["metrics"]
        for point in metric["values"]
    ]
    assert ("train", "loss", 2, 2.5) in points
    text = CliRunner().invoke(app, ["runs", "export", str(directory)]).stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["stage"], row["name"], row["step"]) for row in rows] == [
        (stage, name, str(step)) for stage, name, step, _ in points
    ]
    for row, (*_, value) in zip(rows, points, strict=True):  # 5e-05 and 0.00005 are the same number
        text = str(value).replace("\ud800", "\\ud800")
        assert row["value"] == text or float(row["value"]) == value

    target = tmp_path / "run.parquet"
    assert CliRunner().invoke(app, ["runs", "export", str(directory), "--to", "parquet", "-o", str(target)])
    read = pyarrow.parquet.read_table(target).to_pylist()
    assert [(row["stage"], row["name"], row["step"]) for row in read] == [point[:3] for point in points]
    assert [row["value"] for row in read if row["name"] == "loss"][::3] == [3.0, 0.1]
    assert {row["text"] for row in read} == {None, 'ü,\n"x\\ud800', str(2**60 + 1)}


def test_a_failed_export_keeps_the_existing_file(tmp_path: Path) -> None:
    target = tmp_path / "kept.csv"
    target.write_text("kept")
    done = CliRunner().invoke(app, ["runs", "export", str(tmp_path / "nope"), "-o", str(target)])
    assert done.exit_code != 0
    assert target.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [target]


def test_a_pipe_and_a_link_stay_what_they_are(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", {1: 3.0})
    whole = CliRunner().invoke(app, ["runs", "export", str(directory)]).stdout
    pipe, link, file = tmp_path / "pipe", tmp_path / "link", tmp_path / "file"
    os.mkfifo(pipe)
    link.symlink_to(file)
    with ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_text)
        assert CliRunner().invoke(app, ["runs", "export", str(directory), "-o", str(pipe)]).exit_code == 0
        assert read.result() == whole
    assert pipe.is_fifo()
    assert CliRunner().invoke(app, ["runs", "export", str(directory), "-o", str(link)]).exit_code == 0
    assert link.is_symlink()
    assert file.read_text() == whole
    assert sorted(tmp_path.iterdir()) == sorted([directory, pipe, link, file])


def test_a_journal_that_is_rewritten_meanwhile_is_not_counted_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_run(tmp_path / "run", dict.fromkeys(range(1, 6), 1.0))
    monkeypatch.setattr("fmstune.report.replay._AT_ONCE", 3)
    path = journal_path(directory)

    def rewrite(batch: Batch) -> None:
        if 4 in batch.seqs:
            copy = path.with_name("copy")
            copy.write_bytes(path.read_bytes())
            copy.replace(path)

    with pytest.raises(JournalError, match="rewritten while it was being read"):
        replay(path, also_batch=rewrite)
