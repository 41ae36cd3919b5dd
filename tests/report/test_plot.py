"""`fmstune runs plot` draws the points of the journal, in the terminal and as an image."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import sys
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from fmstune.cli.app import app
from fmstune.delivery.recorder import Recorder
from fmstune.errors import ConfigError
from fmstune.report import columns as stored
from fmstune.report.charts import Chart, Line, charts, smoothed
from fmstune.report.curves import read_run
from fmstune.report.table import columns
from fmstune.report.text_chart import text_chart
from fmstune.trackers.records import MetricPoint
from tests.support.made_runs import end_run, make_run, start_run


def plotted(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, ["runs", "plot", *map(str, arguments)])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", {step: 4.0 / step for step in range(1, 9)}, eval_loss=1.5)


def test_the_points_are_those_of_the_journal_with_the_newest_of_each_step(run: Path) -> None:
    again = start_run(run)
    again.resumed(6)
    for step, loss in ((7, 9.0), (8, math.nan), (9, 3)):
        again.track_point(MetricPoint({"loss": loss}, "train", step))
    again.track("text", "loss", "train", step=10)
    end_run(again)
    (chart,) = json.loads(plotted(run, "--metric", "train/loss", "--json"))
    (line,) = chart["lines"]
    assert line["xs"] == [1, 2, 3, 4, 5, 6, 7, 9]
    assert line["ys"] == [4.0, 2.0, 4 / 3, 1.0, 0.8, 4 / 6, 9.0, 3.0]
    assert line["left_out"] == 2
    assert "(2 values cannot be drawn)" in plotted(run, "--metric", "train/loss")


def test_a_name_without_a_stage_matches_all_stages_and_a_pattern_several(run: Path) -> None:
    keys = [chart["key"] for chart in json.loads(plotted(run, "--json"))]
    assert keys == ["train/loss", "eval/loss"]
    keys = [chart["key"] for chart in json.loads(plotted(run, "--metric", "train/*", "--json"))]
    assert keys == ["train/loss", "train/learning_rate"]


def test_an_unknown_metric_is_an_error_that_suggests_a_close_one(run: Path) -> None:
    done = CliRunner().invoke(app, ["runs", "plot", str(run), "--metric", "los"])
    assert str(done.exception) == "no run here has the metric 'los'. Did you mean loss?"


def test_the_x_axis_is_the_step_or_the_time_since_the_start(run: Path) -> None:
    (chart,) = json.loads(plotted(run, "--metric", "train/loss", "--x", "time", "--json"))
    assert chart["x"] == "seconds"
    assert all(0 <= at < 60 for at in chart["lines"][0]["xs"])
    assert chart["lines"][0]["xs"] == sorted(chart["lines"][0]["xs"])


def test_two_runs_are_two_lines_with_different_symbols(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other\x1b[2J", {1: 1.0, 8: 8.0})
    text = plotted(run, other, "--metric", "train/loss")
    assert f"* {run}" in text
    assert "+ " in text
    assert "\x1b" not in text
    plot = [line for line in text.splitlines() if "┤" in line]
    assert plot[0].endswith("+")
    assert any("*" in line for line in plot)


def test_smoothing_keeps_a_constant_and_has_no_initial_bias() -> None:
    assert list(smoothed([2.0, 2.0, 2.0], 0.9)) == pytest.approx([2.0, 2.0, 2.0])
    assert list(smoothed([1.0, 3.0], 0.5)) == pytest.approx([1.0, (0.25 * 1 + 0.5 * 3) / 0.75])


FLOATS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([sys.float_info.max, -sys.float_info.max, 5e-324, 0.0, 1.5e308]),
)


@given(
    lines=st.lists(st.lists(st.tuples(st.integers(-(10**9), 10**9), FLOATS), max_size=8), max_size=3),
    width=st.integers(1, 300),
)
def test_any_numbers_can_be_drawn_within_the_width(lines: list[list[tuple[int, float]]], width: int) -> None:
    chart = Chart("m", "step", [Line("r", [x for x, _ in line], [y for _, y in line]) for line in lines])
    drawn = text_chart(chart, width)
    assert all(columns(row) <= max(width, 40) for row in drawn)
    if any(lines):
        plot = [row.partition("┤")[2] for row in drawn if "┤" in row]
        assert len(plot) == 12
        assert any(row.strip() for row in plot)


def test_extremes_are_at_the_top_and_at_the_bottom() -> None:
    drawn = text_chart(Chart("m", "step", [Line("r", [0, 1, 2], [5.0, -5.0, 0.0])]), 60)
    plot = [row for row in drawn if "┤" in row]
    assert plot[0].split("┤")[0].strip() == "5"
    assert plot[-1].split("┤")[0].strip() == "-5"
    assert plot[0].split("┤")[1].strip()
    assert plot[-1].split("┤")[1].strip()


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_an_image_has_the_points_of_the_chart(run: Path, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / f"x.{kind}"
    evil = make_run(tmp_path / "$x^$_<script>alert(1)</script>", {1: 1.0, 8: 8.0})
    plotted(run, evil, "--output", picture)
    content = picture.read_bytes()
    if kind == "png":
        assert content.startswith(b"\x89PNG")
        return
    text = content.decode()
    assert "train/loss" in text
    assert "<script>" not in text
    paths = re.findall(r'<path d="(M [^"]*)" clip-path[^>]*style="fill: none; stroke: #1f77b4', text)
    assert len(re.findall(r"[ML] ", paths[0])) == 8


def test_without_matplotlib_the_error_says_what_to_install(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = CliRunner().invoke(app, ["runs", "plot", str(run), "-o", str(tmp_path / "x.png")])
    assert "pip install 'fmstune[plot]'" in str(done.exception)
    assert not (tmp_path / "x.png").exists()


def test_an_image_of_an_unknown_type_is_an_error(run: Path) -> None:
    done = CliRunner().invoke(app, ["runs", "plot", str(run), "-o", "x.bmp"])
    assert "use one of the suffixes .png, .svg, .pdf" in str(done.exception)


def test_the_x_axis_can_be_the_number_of_seen_tokens(tmp_path: Path) -> None:
    recorder = start_run(tmp_path / "run")
    for step in (0, 10, 20):
        recorder.track_point(MetricPoint({"num_tokens": 100 * step, "loss": 1.0}, "train", step, None))
    for step in (5, 17, 21):
        recorder.track_point(MetricPoint({"loss": float(step)}, "eval", step, None))
    end_run(recorder)
    (chart,) = charts([read_run(tmp_path / "run")], ["eval/loss"], x="tokens")
    assert chart.x == "tokens"
    (line,) = chart.lines
    assert (list(line.xs), list(line.ys), line.left_out) == ([500, 1700], [5.0, 17.0], 1)
    make_run(tmp_path / "none")
    with pytest.raises(ConfigError, match="has counted its tokens"):
        charts([read_run(tmp_path / "none")], ["loss"], x="tokens")


def test_duplicate_and_late_lines_add_no_events_and_missing_ones_are_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", dict.fromkeys(range(20), 1.0))
    journal = run / "tracking" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    assert read_run(run).replay.missing == 0
    # Three are lost, two are duplicated, and one is out of order.
    journal.write_text("".join([*lines[:5], lines[6], lines[6], lines[5], *lines[10:], lines[12]]))
    assert read_run(run).replay.missing == 3


@given(st.lists(st.integers(0, 40), min_size=600, max_size=700), st.integers(0, 2**32))
@settings(max_examples=10)
def test_a_long_line_is_drawn_through_each_of_its_points(gaps: list[int], seed: int) -> None:
    xs = list(map(float, itertools.accumulate(gaps)))
    ys = [random.Random(seed + at).gauss(0, 1) for at in range(len(xs))]
    chart = Chart("m", "step", [Line("r", xs, ys)])
    with mock.patch(
        "fmstune.report.text_chart._extremes", lambda line, *_: zip(line.xs, line.ys, strict=True)
    ):
        every = text_chart(chart, 30)
    assert text_chart(chart, 30) == every


@pytest.mark.parametrize("smoothing", [0.0, 0.9])
@pytest.mark.parametrize("most", [0, 1 << 20])
def test_a_long_line_is_drawn_the_same_from_disk(
    most: int, smoothing: float, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "_AT_ONCE", 64)
    monkeypatch.setattr(stored, "_MOST_IN_MEMORY", most)
    values = [math.sin(step / 90) + step % 7 for step in range(1, 3001)]
    for step, value in enumerate(values, 1):
        recorder.track(value, "loss", "train", step=3 * step)
    recorder.close("finished")
    (found,) = charts([read_run(recorder.journal.path.parents[1])], ["loss"], smoothing=smoothing)
    (line,) = found.lines
    expected = list(smoothed(values, smoothing)) if smoothing else values
    assert isinstance(line.xs, stored.Numbers)
    assert (list(line.ys), list(line.ys[100:300]), line.ys[-1]) == (expected, expected[100:300], expected[-1])
    plain = Chart(found.key, found.x, [Line(line.label, list(line.xs), expected)])
    assert text_chart(found) == text_chart(plain)
    assert found.to_json() == plain.to_json()
