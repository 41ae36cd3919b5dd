"""The charts of a report: group curves into charts, and select the points to draw."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fmstune.report.charts import Line
from fmstune.report.curves import TrackedRun
from fmstune.report.show import RESOURCES

_FIRST = ("loss", "learning_rate", "grad_norm", "mean_token_accuracy", "tokens_per_second", "entropy")
"""The most important metrics; the others follow in the order of their first values."""
_SPEED = ("num_tokens", "runtime", "samples_per_second", "steps_per_second")
"""Metrics about speed rather than learning, shown with those of the machine."""
_MOST_CHARTS = 24
_LEAST_POINTS = 40
_MACHINE = (
    ("CPU, in percent", ("cpu_percent", "process_cpu_percent")),
    ("memory of the machine, in MB", ("memory_available_mb",)),
    ("memory of the run, in MB", ("process_memory_mb",)),
    ("disk, in MB", ("disk_read_mb", "disk_written_mb")),
    ("network, in MB", ("network_sent_mb", "network_received_mb")),
)
_GPU = ("percent", "memory_mb", "power_watts", "temperature_celsius", "clock_mhz")


@dataclass(frozen=True, slots=True)
class PageChart:
    """A chart of the page: `tracked` is the total number of points; `lines` are those drawn."""

    title: str
    system: bool
    lines: Sequence[Line]
    times: Sequence[Sequence[float]]
    tracked: int

    def to_json(self, longest: int = 2_000) -> dict[str, Any]:
        """The data for the page's script, with names shortened to `longest` characters."""
        lines = [
            {"label": line.label[:longest], "x": list(line.xs), "t": list(times), "y": list(line.ys)}
            for line, times in zip(self.lines, self.times, strict=True)
        ]
        return {"title": self.title[:longest], "lines": lines}


def page_charts(run: TrackedRun, most: int) -> tuple[list[PageChart], list[str]]:
    """The charts of a run, with about `most` points in total, and the metrics that do not fit on the page.
    Metrics with only one point have no chart: they are in the tables."""
    drawn: dict[str, _Drawn] = {}
    for curve in run.curves:
        if curve.key not in drawn:
            drawn[curve.key] = _Drawn(*curve.finite())
    groups = _groups(run, drawn)
    chosen, left = groups[:_MOST_CHARTS], groups[_MOST_CHARTS:]
    lines = sum(len(keys) for _, _, keys in chosen)
    each = max(_LEAST_POINTS, most // max(1, lines))
    found = []
    for title, system, keys in chosen:
        shown, times, tracked = [], [], 0
        for key in keys:
            of = drawn[key]
            at = _kept(of.values, each)
            shown.append(Line(key, [of.steps[n] for n in at], [of.values[n] for n in at]))
            times.append([round(of.times[n] - run.replay.header.time, 1) for n in at])
            tracked += len(of.steps)
        found.append(PageChart(title, system, shown, times, tracked))
    return found, [key for _, _, keys in left for key in keys]


@dataclass(slots=True)
class _Drawn:
    """The finite points of a curve that have a step, sorted by step."""

    steps: Sequence[float]
    times: Sequence[float]
    values: Sequence[float]


def _groups(run: TrackedRun, known: dict[str, _Drawn]) -> list[tuple[str, bool, list[str]]]:
    """The title of each chart, whether it is about the machine, and its metrics: the same name in all
    stages."""
    several = {key for key, chart in known.items() if len(chart.steps) > 1}
    names: dict[str, list[str]] = {}
    for curve in run.curves:
        if curve.stage != RESOURCES and curve.key in several:
            names.setdefault(curve.name, []).append(curve.key)
    first = [name for name in _FIRST if name in names]
    found = [(name, name in _SPEED, names[name]) for name in dict.fromkeys((*first, *names))]
    machine = [*_MACHINE]
    for figure in _GPU:
        every = sorted(curve.name for curve in run.curves if _is_of_gpu(curve.name, figure))
        machine.append((f"GPU {figure.replace('_', ' ')}", tuple(every)))
    for title, figures in machine:
        keys = [key for name in figures if (key := f"{RESOURCES}/{name}") in several]
        if keys:
            found.append((title, True, keys))
    return found


def _is_of_gpu(name: str, figure: str) -> bool:
    return name.startswith("gpu_") and name.removeprefix("gpu_").partition("_")[2] == figure


def _kept(values: Sequence[float], most: int) -> list[int]:
    """The indices of about `most` values: the first, the last, and the lowest and highest of each part, so
    that peaks are visible at any width."""
    if len(values) <= most:
        return list(range(len(values)))
    parts = max(1, (most - 2) // 2)
    bounds = [round(part * len(values) / parts) for part in range(parts + 1)]
    kept = {0, len(values) - 1}
    for begin, end in itertools.pairwise(bounds):
        if begin < end:
            part = values[begin:end]
            kept |= {begin + part.index(min(part)), begin + part.index(max(part))}
    return sorted(kept)
