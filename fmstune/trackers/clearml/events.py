"""What ClearML's server calls an event: a scalar, a plot or a debug sample of a task.

The server keeps one event per task, metric, variant and iteration (for debug samples, also per key); the last
one replaces earlier ones. Source: `event_bll.py` of clearml-server.
"""

from __future__ import annotations

import html
import json
import math
import re
from typing import Any

from fmstune.trackers.records import Media, MetricPoint, Table

Event = dict[str, Any]

SUMMARY, NO_ITERATION = "Summary", -(2**31)
"""The title and the iteration of single values, as in `Logger.report_single_value`."""
SINGLE_VALUES = frozenset(
    {"train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos"}
)
"""What transformers' own integration reports as single values."""
_NO_STAGE = "metrics"
_OWN_TITLE = re.compile(rf"{_NO_STAGE}( \(stage\))*")
_OWN_SERIES = re.compile(r".* \(\d+\)", re.S)


def title_of(stage: str | None) -> str:
    """The title of a stage, unique per stage."""
    if stage is None:
        return _NO_STAGE
    return f"{stage} (stage)" if _OWN_TITLE.fullmatch(stage) else stage


def series_of(name: str, repeat: int) -> str:
    """The series of a name, and of its further values at one step, each with a different name: of two with
    the same name, the server would keep the last."""
    return f"{name} ({repeat + 1})" if repeat or _OWN_SERIES.fullmatch(name) else name


def scalars(point: MetricPoint, name: str, value: float, repeat: int, moment: int) -> list[Event]:
    """The events of one value of a point."""
    series, about = series_of(name, repeat), {"type": "training_stats_scalar", "timestamp": moment}
    summary = {**about, "iter": NO_ITERATION, "metric": SUMMARY, "value": value}
    if point.step is None:
        joined = f"{point.stage}/{series}" if point.stage is not None else series
        return [{**summary, "variant": joined}]
    found = [
        {**about, "iter": point.step, "metric": title_of(point.stage), "variant": series, "value": value}
    ]
    if point.stage == "train" and name in SINGLE_VALUES:
        found.append({**summary, "variant": name})
    return found


def table_plot(table: Table) -> dict[str, Any]:
    """A table as `Logger.report_table` draws it."""
    from clearml.utilities.plotly_reporter import create_plotly_table

    columns = list(table.columns)
    rows = [[_cell(row.get(column)) for column in columns] for row in table.rows]
    drawn: dict[str, Any] = create_plotly_table([columns, *rows], title_of(table.stage), table.name)
    return drawn


def histogram_plot(media: Media) -> dict[str, Any]:
    """A histogram as `Logger.report_histogram` draws it, at its bins' centers."""
    width = (media.high - media.low) / len(media.counts)
    centers = [media.low + width * (number + 0.5) for number in range(len(media.counts))]
    bars = {"type": "bar", "x": centers, "y": list(media.counts), "width": width, "name": media.name}
    axis = {"range": [media.low, media.high]}
    return {"data": [bars], "layout": {"title": media.name, "bargap": 0, "xaxis": axis}}


def plot(what: Table | Media, drawn: dict[str, Any], moment: int) -> Event:
    """The event of a plot."""
    return {
        **_where(what, moment), "type": "plot", "plot_str": json.dumps(drawn, ensure_ascii=False),
    }  # fmt: skip


def sample(what: Media, key: str, url: str, moment: int) -> Event:
    """The event of a debug sample, a file."""
    return {**_where(what, moment), "type": "training_debug_image", "key": key, "url": url}


def page_of(text: str) -> bytes:
    """A text as the HTML page that ClearML shows."""
    return f'<meta charset="utf-8"><pre>{html.escape(text)}</pre>'.encode()


def _where(what: Table | Media, moment: int) -> Event:
    step = NO_ITERATION if what.step is None else what.step
    series = series_of(what.name, what.repeats or 0)
    return {"timestamp": moment, "iter": step, "metric": title_of(what.stage), "variant": series}


def _cell(value: Any) -> Any:
    """A cell as valid JSON: Plotly's script would not draw a table with NaN at all."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
