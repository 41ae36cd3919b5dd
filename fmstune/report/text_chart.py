"""Plain-text charts: a single line as Braille dots, several as symbols, which need no colours."""

from __future__ import annotations

import bisect
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence

from fmstune.report.charts import Chart, Line
from fmstune.report.columns import ends
from fmstune.report.words import cell, printable
from fmstune.text import counted

_SYMBOLS = "*+xo#@%&"
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bits of a Braille character: four rows of two dots."""
_BLANK = 0x2800
_NARROWEST, _WIDEST = 20, 160

Cell = tuple[int, int]


def text_chart(chart: Chart, width: int = 80, height: int = 12) -> list[str]:
    """The lines of a chart, `width` columns wide; `height` is that of the plot itself."""
    drawn = [line for line in chart.lines if line.xs]
    head = [printable(chart.key), *_legend(chart)]
    if not drawn:
        return [*head, "no value can be drawn"]
    low, high = _range([end for line in drawn for end in ends(line.ys)])
    first, last = _range([end for line in drawn for end in ends(line.xs)])
    labels = [cell(float(value)) for value in (high, low / 2 + high / 2, low)]
    margin = max(map(len, labels)) + 1
    columns = max(_NARROWEST, min(width, _WIDEST) - margin - 1)
    alone = len(chart.lines) == 1
    grain = (2, 4) if alone else (1, 1)
    across, down = columns * grain[0], height * grain[1]
    marks: list[set[Cell]] = []
    for line in chart.lines:
        places = [
            (_place(x, first, last, across), down - 1 - _place(y, low, high, down))
            for x, y in _extremes(line, lambda x: _place(x, first, last, across), across)
        ]
        marks.append(set(_drawn(places)))
    rows = _braille(marks[0], columns, height) if alone else _symbols(marks, columns, height)
    at = {0: labels[0], height // 2: labels[1], height - 1: labels[2]}
    plot = [f"{at.get(number, ''):>{margin - 1}} ┤{row}".rstrip() for number, row in enumerate(rows)]
    begin, end = cell(first), cell(last)
    room = columns - len(begin) - len(end)
    name = (chart.x if len(chart.x) + 2 <= room else "").center(max(1, room))
    end = end if room > 0 else ""
    return [*head, *plot, f"{'':{margin}}└{'─' * columns}", f"{'':{margin + 1}}{begin}{name}{end}".rstrip()]


def _extremes(line: Line, column: Callable[[float], int], across: int) -> Iterator[tuple[float, float]]:
    """The points of a line; for a long one, only those that give the same drawing: in each column the first,
    the lowest, the highest and the last."""
    if len(line.xs) <= 8 * across:
        yield from zip(line.xs, line.ys, strict=True)
        return
    begin = 0
    while begin < len(line.xs):
        here = column(line.xs[begin])
        end = bisect.bisect_right(line.xs, here, begin, key=column)
        x, ys = line.xs[begin], line.ys[begin:end]
        yield from ((x, ys[0]), (x, min(ys)), (x, max(ys)), (x, ys[-1]))
        begin = end


def _legend(chart: Chart) -> Iterator[str]:
    for number, line in enumerate(chart.lines):
        mark = f"{_SYMBOLS[number % len(_SYMBOLS)]} " if len(chart.lines) > 1 else ""
        left_out = f" ({counted(line.left_out, 'value')} cannot be drawn)" if line.left_out else ""
        yield f"{mark}{printable(line.label)}{left_out}"


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:  # a line in the middle
        room = abs(low) / 2 or 1.0
        return max(low - room, -sys.float_info.max), min(high + room, sys.float_info.max)
    return low, high


def _place(value: float, low: float, high: float, size: int) -> int:
    span = high - low
    # The difference of two finite floats may overflow, and half of the smallest one is zero.
    share = (value - low) / span if math.isfinite(span) else (value / 2 - low / 2) / (high / 2 - low / 2)
    return min(max(round(share * (size - 1)), 0), size - 1)


def _drawn(places: Sequence[Cell]) -> Iterator[Cell]:
    """The cells of a line through some points."""
    yield from places[:1]
    for (x0, y0), (x1, y1) in itertools.pairwise(places):
        steps = max(abs(x1 - x0), abs(y1 - y0))
        for step in range(1, steps + 1):
            yield x0 + round((x1 - x0) * step / steps), y0 + round((y1 - y0) * step / steps)


def _braille(dots: set[Cell], columns: int, height: int) -> list[str]:
    rows = [[0] * columns for _ in range(height)]
    for x, y in dots:
        rows[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
    return ["".join(chr(_BLANK + bits) if bits else " " for bits in row) for row in rows]


def _symbols(marks: Sequence[set[Cell]], columns: int, height: int) -> list[str]:
    rows = [[" "] * columns for _ in range(height)]
    for number, line in enumerate(marks):
        for x, y in line:
            rows[y][x] = _SYMBOLS[number % len(_SYMBOLS)]
    return ["".join(row) for row in rows]
