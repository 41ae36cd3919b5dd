"""Export a run for other programs: one point per row as CSV or Parquet, or the whole run as JSON."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import orjson

from fmstune.report.curves import Block, Curve, read_run
from fmstune.report.replay import Replay, as_step
from fmstune.report.show import ordered, view_of
from fmstune.report.words import strict
from fmstune.secrets.redaction import process_redactor
from fmstune.trackers.records import utf8

COLUMNS = ("stage", "name", "step", "epoch", "time", "value")
"""The columns of CSV; Parquet has an additional column `text` for values that are not numbers."""
_AT_ONCE = 65_536

Cells = tuple[Any, ...]


def write_csv(directory: Path, file: IO[str]) -> Replay:
    """Write each point of each metric as a row of CSV, and return what was read. Non-finite numbers are NaN,
    Infinity and -Infinity, as in spreadsheets and pandas."""
    run = read_run(directory)
    rows = csv.writer(_Lines(file))  # it quotes a string with \r only if \r\n ends lines
    rows.writerow(COLUMNS)
    for curve in ordered(run.curves):
        if (blocks := curve.plain_blocks()) is None:
            for row in _points([curve]):
                rows.writerow([_cell(each) for each in row])
            continue
        named = _named(curve)
        for block in blocks:
            _, epochs, times, _ = block
            if all(map(math.isfinite, times)) and not any(map(math.isinf, epochs)):
                file.write(_lines(named, block, integers=curve.integers))
                continue
            for step, epoch, time, value in zip(*block, strict=True):
                number = int(value) if curve.integers else value
                cells = (as_step(step), None if epoch != epoch else epoch, time, number)
                file.write(",".join([named, *map(str, map(_cell, cells))]) + "\n")
    return run.replay


def _named(curve: Curve) -> str:
    """The first two cells of a curve's rows."""
    found = io.StringIO()
    csv.writer(_Lines(found)).writerow(
        [_cell(each) for each in (curve.stage and _hide(curve.stage), _hide(curve.name))]
    )
    return found.getvalue().removesuffix("\n")


def _lines(named: str, block: Block, *, integers: bool) -> str:
    """Rows of finite numbers, formatted by `orjson` in a tenth of Python's time: the shortest strings that
    round-trip."""
    steps, epochs, times, values = block
    columns = (
        [as_step(step) for step in steps],
        ["" if epoch != epoch else epoch for epoch in epochs],
        times.tolist(),
        list(map(int, values)) if integers else values.tolist(),
    )
    texts = (orjson.dumps(column)[1:-1].decode().replace('""', "").split(",") for column in columns)
    return "\n".join(map(",".join, zip(itertools.repeat(named), *texts, strict=False))) + "\n"


class _Lines:
    """Converts the line ends of `csv.writer` from \\r\\n to \\n."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, row: str) -> int:
        """Write a row."""
        return self._file.write(row.removesuffix("\r\n") + "\n")


def write_json(directory: Path, file: IO[str]) -> Replay:
    """Write a whole run as one JSON object: the output of `runs show --json`, and the points of each metric.
    Returns what was read."""
    run = read_run(directory)
    seen = view_of(run).to_json()
    for metric, curve in zip(seen["metrics"], ordered(run.curves), strict=True):
        metric["values"] = [
            {"step": each.step, "epoch": each.epoch, "time": each.time, "value": each.value}
            for each in curve.points()
        ]
    json.dump(strict(process_redactor().value(seen, tracked=True)), file, indent=1, default=str)
    file.write("\n")
    return run.replay


def write_parquet(directory: Path, path: Path) -> Replay:
    """Write each point of each metric as a row of Parquet, and return what was read."""
    import pyarrow
    import pyarrow.parquet

    number, text = pyarrow.float64(), pyarrow.string()
    schema = pyarrow.schema(
        [
            *(("stage", text), ("name", text), ("step", number), ("epoch", number)),
            *(("time", number), ("value", number), ("text", text)),
        ]
    )
    run = read_run(directory)
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for rows in _batches(_points(ordered(run.curves))):
            columns = [list(each) for each in zip(*(_typed(row) for row in rows), strict=True)]
            writer.write_table(pyarrow.table(columns, schema=schema))
    return run.replay


def _hide(text: str) -> str:
    return utf8(process_redactor().text(text))


def _points(curves: Iterable[Curve]) -> Iterator[Cells]:
    for curve in curves:
        stage, name = curve.stage and _hide(curve.stage), _hide(curve.name)
        for each in curve.points():
            value = _hide(each.value) if isinstance(each.value, str) else each.value
            yield stage, name, each.step, each.epoch, each.time, value


def _batches(rows: Iterator[Cells]) -> Iterator[list[Cells]]:
    batch: list[Cells] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _typed(row: Cells) -> Cells:
    *where, value = row
    stage, name, step, epoch, time = where
    number = _exact(value)
    text = (
        None
        if number is not None or value is None
        else value
        if isinstance(value, str)
        else json.dumps(value)
    )
    return stage, name, _exact(step), _exact(epoch), time, number, text


def _exact(value: Any) -> float | None:
    """The value as a float if that is exact, otherwise `None`: a longer integer is exported as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if float(value) == value or math.isnan(value) else None
    except OverflowError:
        return None


def _cell(value: Any) -> Any:
    if type(value) is int or type(value) is str or (type(value) is float and math.isfinite(value)):
        return value  # the common case, for millions of values
    value = strict(value)
    return "" if value is None else value if isinstance(value, (str, int, float)) else json.dumps(value)
