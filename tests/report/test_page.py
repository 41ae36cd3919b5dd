"""`report.html`: one file, complete without a network, in which no data is interpreted as markup."""

from __future__ import annotations

import html
import importlib.util
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fmstune.config.inspect.provenance import with_origins, written_origins
from fmstune.report import page as pages
from fmstune.report.console import SummingConsole
from fmstune.report.curves import read_run
from fmstune.report.html import element, escaped
from fmstune.report.page import MOST_BYTES, page, write_report
from fmstune.report.page_charts import page_charts
from fmstune.trackers.records import MetricPoint, Table
from tests.support.browser import CHROMIUM, open_page
from tests.support.commands import fmstune
from tests.support.made_runs import end_run, make_run, start_run, with_settings

EVIL = '"><script>console.error("obeyed")</script><img src=http://127.0.0.1:9/x onerror=f()>\u2028</script>'


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def evil_run(directory: Path, steps: int = 50) -> Path:
    recorder = start_run(directory)
    recorder.set_params({EVIL: EVIL, "team": EVIL}, "params")
    recorder.set_params(with_settings({"model.path": EVIL, "data.train": EVIL}), "config")
    recorder.set_params({"source": EVIL, "unused": [{"column": EVIL}]}, "data")
    for step in range(1, steps + 1):
        values = {"loss": 3 / step, EVIL: 1.0 * step, "grad_norm": float("nan")}
        recorder.track_point(MetricPoint(values, "train", step, None))
    recorder.track_table(Table("samples", ({"question": EVIL, "answer": EVIL, EVIL: EVIL},), "eval", 1, None))
    end_run(recorder, "failed", EVIL)
    Path(directory, "data_rows.json").write_text(
        json.dumps([{"name": EVIL, "tokens": 3, "trained": 1, "pieces": [{"text": EVIL, "trained": True}]}])
    )
    return directory


class Elements(HTMLParser):
    """The elements of a page, and the content of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs


def test_no_text_of_a_run_becomes_markup() -> None:
    text = page(read_run(evil_run(Path("evil"))), "")
    found = Elements(text)
    assert found.names.count("script") == 3  # the data, the library, the page's own
    assert "img" not in found.names
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert not [value for name, value in found.attributes if name in ("src", "href")]
    assert escaped(EVIL) in text


@given(st.text())
def test_text_is_read_back_unchanged_and_as_one_string(text: str) -> None:
    class Content(HTMLParser):
        said = ""

        def handle_data(self, data: str) -> None:
            self.said += data

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            assert tag == "p"

    parser = Content()
    parser.feed(element("p", text).text)
    parser.close()
    assert parser.said == text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=400))
def test_the_drawn_points_are_points_of_the_journal_including_extremes(values: list[float]) -> None:
    from fmstune.report.page_charts import _kept

    kept = _kept(values, 42)
    assert kept == sorted({*kept})
    assert {kept[0], kept[-1]} == {0, len(values) - 1}
    assert {min(values), max(values)} <= {values[at] for at in kept}
    assert len(kept) <= 42


def test_a_run_with_many_points_and_metrics_stays_within_the_size_limit(tmp_path: Path) -> None:
    recorder = start_run(Path("large"))
    for step in range(3000):
        values = {f"metric_{number}": step / 7 + number for number in range(30)}
        recorder.track_point(MetricPoint(values, "train", step, None))
    end_run(recorder)
    run = read_run(Path("large"))
    text = page(run, pages._bokeh())
    assert len(text.encode()) <= MOST_BYTES
    drawn, without = page_charts(run, 12_000)
    assert len(drawn) == 24
    assert len(without) == 6
    assert "6 more metrics without a chart here" in text
    assert " points are drawn, including the lowest and highest of each part" in text


@pytest.mark.skipif(CHROMIUM is None, reason="no browser is installed")
def test_in_a_browser_it_draws_the_points_of_the_journal_and_requests_nothing(tmp_path: Path) -> None:
    path = write_report(evil_run(Path("evil"), steps=30))
    text = path.read_text()
    asks = (  # for all charts, including those out of view
        "addEventListener('load', () => { dispatchEvent(new Event('beforeprint')); "
        "document.documentElement.dataset.drawn = JSON.stringify([...drawn.values()].map("
        "({chart, sources}) => [chart.title, sources.map((s) => [[...s.data.x], [...s.data.y]])])); });"
    )
    own = Path(pages.__file__).with_name("page.js").read_text()
    asking = text.replace(own, own + asks).replace(pages._hash(own), pages._hash(own + asks))
    probe = tmp_path / "probe.html"
    probe.write_text(asking)
    seen = open_page(probe, tmp_path)
    assert not [line for line in seen.console if "[bokeh 3." not in line], seen.console
    assert seen.requests == []
    (found,) = re.findall(r'data-drawn="([^"]*)"', seen.dom)
    charts = dict(json.loads(html.unescape(found)))
    assert charts["loss"] == [[list(range(1, 31)), [3 / step for step in range(1, 31)]]]
    assert charts[EVIL][0][1] == [float(step) for step in range(1, 31)]


def test_a_run_writes_its_report_and_the_command_rewrites_it(
    tmp_path: Path,
) -> None:
    done = fmstune(
        "train", "--max-steps", "2", "--output-dir", "out", "--learning-rate", "0.001",
        "--set", "training.eval_strategy=no", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "report   out/report.html\n" in done.stderr
    text = Path("out/report.html").read_text()
    assert len(text) <= MOST_BYTES
    assert "<td>training.learning_rate</td>\n<td>0.001</td>\n<td>--learning-rate</td>" in text
    assert re.search(r"<mark>Yes, we have|<mark>Sorry, we have|<mark>The ", text)
    assert "learning_rate = 0.001  # from --learning-rate\n" in Path("out/config.toml").read_text()
    Path("out/report.html").unlink()
    again = fmstune("runs", "report", "out", cwd=tmp_path, light=True)
    assert (again.returncode, again.stdout) == (0, "out/report.html\n")
    assert "<td>--learning-rate</td>" in Path("out/report.html").read_text()


def test_without_the_library_it_is_reported_once_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    pages._bokeh.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    screen = io.StringIO()
    SummingConsole(Console(file=screen, width=200)).end(make_run(Path("a")))
    monkeypatch.undo()
    assert screen.getvalue().count('pip install "bokeh>=3.6,<4"') == 1
    assert not Path("a/report.html").exists()


def test_a_report_that_cannot_be_written_fails_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(Path("a"))
    Path("a/report.html").mkdir()
    screen = io.StringIO()
    SummingConsole(Console(file=screen, width=200)).end(Path("a"))
    assert "warning  the report could not be written: " in screen.getvalue()


def test_the_comments_of_a_configuration_name_the_source_of_each_setting(tmp_path: Path) -> None:
    toml = '# head\n\n[run]\nx = "a # from b"\nnames = [\n    "y = 1",\n]\n\n[trackers.aim]\nrepo = "r"\n'
    path = tmp_path / "config.toml"
    origins = {"run.x": "--set", "run.names": "fmstune.toml", "trackers.aim.repo": "--set"}
    path.write_text(with_origins(toml, origins))
    assert written_origins(path) == origins
    import tomli

    assert tomli.loads(path.read_text()) == tomli.loads(toml)


HUGE = '<&">' * 100_000
"""Escaping multiplies its size."""


@pytest.mark.parametrize("kind", ["params", "metrics", "names", "tables", "data", "settings", "error"])
def test_a_page_stays_within_its_size_limit_whatever_a_run_contains(kind: str) -> None:
    recorder = start_run(Path("huge"))
    if kind == "params":
        recorder.set_params({"huge": HUGE, **{f"p{number}": "<" * 500 for number in range(2_000)}}, "params")
    recorder.set_params(with_settings({"model.path": HUGE} if kind == "settings" else {}), "config")
    many = [f"m{number}" for number in range(4_000)]
    names = many if kind == "metrics" else [HUGE, HUGE + "b"] if kind == "names" else ["loss"]
    for step in range(1, 6):
        recorder.track_point(MetricPoint(dict.fromkeys(names, 1.0 * step), "train", step, None))
    if kind == "tables":
        rows = tuple({f"c{column}": "<" * 1_000 for column in range(60)} for _ in range(30))
        for number in range(30):
            recorder.track_table(Table(f"t{number}", rows[:3], "eval", 1, None))
    end_run(recorder, "failed", HUGE if kind == "error" else "no")
    if kind == "data":
        pieces = [{"text": "<" * 2_000, "trained": True}] * 3_000
        row = {"name": "r", "tokens": 3, "trained": 1, "pieces": pieces}
        Path("huge/data_rows.json").write_text(json.dumps([row] * 3))
    size = write_report(Path("huge")).stat().st_size
    assert size <= MOST_BYTES
    text = Path("huge/report.html").read_text()
    assert (
        "; `fmstune runs show` has all" in text
        or "is left out" in text
        or "characters)" in text
        or "a chart here" in text
    )


def test_a_journal_of_an_earlier_version_is_still_shown() -> None:
    make_run(Path("odd"))
    journal = Path("odd/tracking/journal.jsonl")
    lines = [json.loads(line) | {"time": 1e30} for line in journal.read_text().splitlines()]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "finished" in write_report(Path("odd")).read_text()
    for command in (("show", "odd"), ("list",), ("watch", "odd"), ("plot", "odd", "--x", "time")):
        done = fmstune("runs", *command, cwd=Path.cwd(), light=True)
        assert done.returncode == 0, done.stderr
