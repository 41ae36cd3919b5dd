"""The content of a ClearML task, from the events and params of its server or of an offline session.

The server keeps the last event of each type, metric, variant, iteration and key.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fmstune.testing.compare import as_single

NONE = -(2**31)
"""The iteration of single values, and of what has no step."""


def held(events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The events that the server keeps, under the ids that it gives them."""
    found: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for event in events:
        names = ("type", "task", "iter", "metric", "variant", "key")
        found[tuple(event.get(name) for name in names)] = event
    return list(found.values())


def session(folder: Path) -> tuple[Path, dict[str, Any], list[Mapping[str, Any]]]:
    """The only offline session in a folder: its path, its task and its events."""
    (place,) = folder.iterdir()
    lines = (place / "metrics.jsonl").read_text().splitlines()
    events = [event for line in lines for event in json.loads(line)]
    return place, json.loads((place / "task.json").read_text()), held(events)


def stored(task: Mapping[str, Any], events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """A run in the shape of `tests.support.stored`."""
    points, tables = [], []
    for event in events:
        step = None if event["iter"] == NONE else event["iter"]
        key = key_of(event["metric"], event["variant"])
        if event["type"] == "training_stats_scalar":
            points.append([key, step, as_single(event["value"])])  # as the server's database stores it
        elif event["type"] == "plot":
            (drawn,) = json.loads(event["plot_str"])["data"]
            if drawn["type"] == "table":
                columns, cells = drawn["header"]["values"], drawn["cells"]["values"]
                rows = [
                    "\n".join(f"{column}: {cell}" for column, cell in zip(columns, row, strict=True))
                    for row in zip(*cells, strict=True)
                ]
                tables.append([key, step, rows])
    sections = {name: items for name, items in task["hyperparams"].items() if name != "properties"}
    params = {
        f"{section}.{name}": item["value"]
        for section, items in sections.items()
        for name, item in items.items()
    }
    words = {"completed": "finished", "failed": "failed", "stopped": "interrupted"}
    status = words.get(task["status"])
    return {"points": points, "params": {"*": params}, "tables": tables, "status": status}


def media(events: Iterable[Mapping[str, Any]], data: Path) -> list[list[Any]]:
    """A run in the shape of `tests.support.media`, whose files are below `data` under their keys."""
    import numpy as np
    from PIL import Image

    found: list[list[Any]] = []
    for event in events:
        step = None if event["iter"] == NONE else event["iter"]
        key = key_of(event["metric"], event["variant"])
        if event["type"] == "plot":
            (drawn,) = json.loads(event["plot_str"])["data"]
            if drawn["type"] == "bar":
                half = drawn["width"] / 2
                ends = (drawn["x"][0] - half, drawn["x"][-1] + half)
                found.append(["histogram", key, step, [drawn["y"], *ends]])
        elif event["type"] == "training_debug_image":
            file = data / event["key"]
            if file.suffix == ".html":
                text = re.fullmatch(r"<meta[^>]*><pre>(.*)</pre>", file.read_text("utf-8"), re.S)
                assert text
                found.append(["text", key, step, html.unescape(text[1])])
            else:
                with Image.open(file) as image:
                    found.append(["image", key, step, [np.asarray(image.convert("RGB")).tolist(), ""]])
    return found


def key_of(title: str, series: str) -> str:
    """The metric with this title and series; further values of a step go to a series of their own."""
    if re.fullmatch(r".* \(\d+\)", series, re.S):
        series = series.rpartition(" (")[0]
    return series if title in ("Summary", "metrics") else f"{title}/{series}"
