"""`report.html`: a run as a single file for a browser, which works offline and makes no requests.

Everything from data, params and settings is escaped when it is written, so that it is text rather than
markup. The page's content security policy allows only its own two scripts, by their hashes.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmstune._version import __version__
from fmstune.errors import ConfigError
from fmstune.layout import REPORT
from fmstune.report.charts import tokens_by_step
from fmstune.report.curves import TrackedRun, read_run
from fmstune.report.ending import Ending, ending_of
from fmstune.report.html import Markup, element, escaped, join
from fmstune.report.page_charts import PageChart, page_charts
from fmstune.report.page_parts import (
    Size,
    commands,
    delivery,
    figures,
    head,
    rows_of_data,
    settings,
    sizes,
    tables,
    time_and_memory,
)
from fmstune.report.show import RunView, view_of
from fmstune.report.words import strict
from fmstune.secrets.redaction import process_redactor
from fmstune.system.files import replace_text
from fmstune.text import counted

MOST_BYTES = 2_000_000
_BESIDE = 4_000
"""The size of the page without its scripts, style and body, in bytes."""
_TOKEN_POINTS = 500
_LONGEST_TITLE = 200
_SCRIPTS = ("bokeh.min.js", "bokeh-api.min.js")
MISSING = 'bokeh is not installed: pip install "bokeh>=3.6,<4"'


class NoCharts(ConfigError):
    """The library that draws the charts is not installed."""


def write_report(directory: Path, run: TrackedRun | None = None) -> Path:
    """Write the report of the run in a directory, and return its path; `run` is the run, if it is already
    read.

    Raises `NoCharts`, `OSError`, and the errors of `read_run`.
    """
    scripts = _bokeh()
    path = directory / REPORT
    replace_text(path, page(run or read_run(directory), scripts))
    return path


def page(run: TrackedRun, scripts: str) -> str:
    """The report of a run, with the scripts of the chart library."""
    view = view_of(run)
    end = ending_of(run, view)
    own, style = _file("page.js"), _file("page.css")
    room = MOST_BYTES - _BESIDE - sum(len(text.encode()) for text in (scripts, own, style))
    tried = sizes()
    body = next((body for size in tried if _bytes(body := _body(run, view, end, size)) <= room), None)
    if body is None:  # leave out the largest sections
        body = _body(run, view, end, tried[-1], room)
    allowed = f"script-src {_hash(scripts)} {_hash(own)}; style-src 'unsafe-inline'; img-src data: blob:"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; {allowed}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(_title(run))}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n{body}\n<script>{scripts}</script>\n<script>{own}</script>\n</body>\n</html>\n"
    )


def _body(run: TrackedRun, view: RunView, end: Ending, size: Size, room: int | None = None) -> str:
    """The body of a page; with `room`, without the sections that do not fit."""
    drawn, without = page_charts(run, size.points)
    learning = [(number, each) for number, each in enumerate(drawn) if not each.system]
    machine = [(number, each) for number, each in enumerate(drawn) if each.system]
    steps, tokens = tokens_by_step(run)
    every = max(1, len(steps) // _TOKEN_POINTS)
    seen = {"steps": [*steps[::every], *steps[-1:]], "tokens": [*tokens[::every], *tokens[-1:]]}
    choices = _choices(tokens=bool(steps)) if learning else None
    sections = [
        _section("Learning", choices, _charts(learning, size), _left_out(drawn, without)),
        _section("Time and memory", time_and_memory(end, size)),
        _section("Samples and tables", tables(view, size)),
        _section("Data", rows_of_data(view, size)),
        _section("Settings", settings(view, size)),
        _section("Machine", _charts(machine, size)),
        _section("All metrics", figures(view, size)),
        _section("Delivery", delivery(view, end, size)),
        _section("Next", commands(end, size)),
    ]
    numbers = json.dumps(
        strict(_hidden({"charts": [each.to_json(size.text) for each in drawn], "seen": seen}))
    )
    safe = numbers.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    first = head(view, end, size)
    last = element("p", f"Generated from the run's journal by fmstune {__version__}.", cls="quiet")
    while room is not None and sum(map(_bytes, [safe, first.text, *(each.text for each in sections)])) > room:
        widest = max(range(1, len(sections)), key=lambda at: len(sections[at].text))
        said = "This section is left out, since it is too large; see `fmstune runs show`."
        sections[widest] = element("p", said, cls="quiet")
    body = element("main", join([first, *(each for each in sections if each.text), last])).text
    return f'{body}\n<script type="application/json" id="charts">{safe}</script>'


def _bytes(text: str) -> int:
    return len(text.encode("utf-8"))


def _section(title: str, *parts: Markup | None) -> Markup:
    there = [part for part in parts if part is not None and part.text]
    return join([element("h2", title), *there] if there else [])


def _charts(charts: Sequence[tuple[int, PageChart]], size: Size) -> Markup | None:
    if not charts:
        return None
    return element("div", join([_chart(number, each, size) for number, each in charts]), cls="charts")


def _chart(number: int, chart: PageChart, size: Size) -> Markup:
    plot = element("div", "", cls="plot", **{"data-chart": str(number)})
    return element(
        "div",
        join([element("h3", size.cut(chart.title)), plot, element("div", "", cls="legend")]),
        cls="chart",
    )


def _choices(*, tokens: bool) -> Markup:
    names = ("step", "time", *(["tokens"] if tokens else []))
    options = join([element("option", name, value=name) for name in names])
    x = element("label", join([element("span", "x-axis"), element("select", options, id="x")]))
    slider = element("input", None, id="smoothing", type="range", min="0", max="0.99", step="0.01", value="0")
    return element(
        "div", join([x, element("label", join([element("span", "smoothing"), slider]))]), cls="choices"
    )


def _left_out(drawn: Sequence[PageChart], without: Sequence[str]) -> Markup | None:
    tracked = sum(each.tracked for each in drawn)
    shown = sum(len(line.xs) for each in drawn for line in each.lines)
    said = []
    if shown < tracked:
        said.append(
            f"{shown:,} of {counted(tracked, 'point')} are drawn, including the lowest and highest of each "
            "part; `fmstune runs export` has all."
        )
    if without:
        said.append(
            f"{counted(len(without), 'more metric')} without a chart here; `fmstune runs plot` draws them."
        )
    return element("p", " ".join(said), cls="quiet") if said else None


def _title(run: TrackedRun) -> str:
    return str(_hidden(f"{run.replay.header.run} · fmstune"))[:_LONGEST_TITLE]


def _hidden(value: Any) -> Any:
    return process_redactor().value(value, tracked=True)


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


@functools.cache
def _bokeh() -> str:
    """BokehJS from the installed package, without importing it, which would take a second. Raises
    `NoCharts`."""
    spec = importlib.util.find_spec("bokeh")
    if spec is None or spec.origin is None:
        raise NoCharts(f"no {REPORT}: {MISSING}.")
    folder = Path(spec.origin).with_name("server") / "static" / "js"
    try:
        return "\n".join((folder / name).read_text(encoding="utf-8").strip() for name in _SCRIPTS)
    except OSError as error:
        raise NoCharts(f"no {REPORT}: {error.strerror}: {error.filename}; reinstall bokeh.") from error
