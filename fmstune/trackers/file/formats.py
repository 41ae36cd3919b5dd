"""An event as lines of a file: JSON lines, or CSV with one value a row."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import itertools
import json
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import orjson

from fmstune.trackers.records import MetricPoint
from fmstune.trackers.values.plain import are_finite, plain

CSV_COLUMNS = ("run", "seq", "time", "kind", "stage", "step", "epoch", "name", "value", "run_id")
"""`run_id` was added last: rows of a file started without it are still valid, and lack it."""
ROWS = ("metrics", "table", "text", "image", "histogram", "artifact")
"""Kinds of events of which there may be millions; the others are params and statuses."""
_VALUES = operator.methodcaller("values")
HEADER_BEFORE = ",".join(CSV_COLUMNS[:-1]).encode()

# What ends a line, for programs or on screen, and what UTF-8 cannot encode.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_CELL = rb'(?:"(?:[^"]|"")*"|[^,"]*)'
_ROW = re.compile(_CELL + rb"(?:," + _CELL + rb"){%d}" % (len(CSV_COLUMNS) - 1))
_ROW_START = re.compile(_CELL + rb",(\d+),([0-9.e+-]+),(\w+),")
_RUN_ID_END = re.compile(rb",[0-9a-f]{32}$")


@dataclass(frozen=True, slots=True)
class Record:
    """One event of a run. `seq` is its number in the run's journal; `time` is Unix seconds, the event's own
    if it is `timed`; `stage` the namespace of params."""

    run: str
    run_id: str
    kind: str
    time: float
    values: Mapping[str, Any]
    seq: int | None = None
    stage: str | None = None
    step: int | None = None
    epoch: float | None = None
    timed: bool = False


class Line(NamedTuple):
    """The event that a line belongs to, and for params and statuses a hash of the contents."""

    seq: int | None
    kind: str
    time: float
    content: int = 0


class Format(Protocol):
    """How records are written. `lines` returns those of one record, always in the same order."""

    header: bytes

    def lines(self, record: Record) -> list[bytes]:
        """The lines of a record, each with its newline."""

    def rows(self, run: str, run_id: str, points: Sequence[MetricPoint]) -> bytes | None:
        """A line for each point, as `lines` returns them, in a fifth of the time; `None` if `lines` must
        be used."""

    def of_run(self, line: bytes, run_id: str) -> Line | None:
        """The event that the line belongs to, if it is one of this run."""

    def is_whole(self, line: bytes) -> bool:
        """Whether a last line without a newline is a complete record."""

    def mismatch(self, first: bytes) -> str | None:
        """Why a file with this first line cannot be appended to."""


class JsonLines:
    """One strict JSON object a line. Non-finite numbers are `"NaN"`, `"Infinity"`, `"-Infinity"`, as
    in the journal."""

    header = b""

    def lines(self, record: Record) -> list[bytes]:
        stem = {"run": record.run, "run_id": record.run_id, "seq": record.seq, "time": record.time}
        stem |= {"kind": record.kind, "stage": record.stage, "step": record.step, "epoch": record.epoch}
        kept = {key: value for key, value in stem.items() if value is not None}
        if record.kind == "metrics" and are_finite(
            (record.time, *record.values.values())
        ):  # nearly all lines, in a tenth of the time
            with contextlib.suppress(TypeError):  # an integer beyond 64 bits, a surrogate
                line = orjson.dumps(kept | {"values": record.values}, option=orjson.OPT_APPEND_NEWLINE)
                if line.isascii():
                    return [line]
        return [json.dumps(plain(kept | {"values": record.values}), allow_nan=False).encode() + b"\n"]

    def rows(self, run: str, run_id: str, points: Sequence[MetricPoint]) -> bytes | None:
        if not points:
            return b""
        every, stages, steps, epochs, moments, _, _ = zip(*points, strict=True)
        known = [epoch for epoch in epochs if epoch is not None] if None in epochs else epochs
        figures = [*itertools.chain.from_iterable(map(_VALUES, every)), *moments, *known]
        if not are_finite(figures) or 0 in moments:
            return None
        records = [
            {
                "run": run, "run_id": run_id, "seq": seq, "time": moment, "kind": "metrics",
                "stage": stage, "step": step, "epoch": epoch, "values": values,
            } for values, stage, step, epoch, moment, seq, _ in points
        ]  # fmt: skip
        if None in stages or None in steps or None in epochs:
            records = [{key: value for key, value in each.items() if value is not None} for each in records]
        try:
            lines = orjson.dumps(records)  # one call takes half the time of one for each
        except TypeError:  # an integer beyond 64 bits, a surrogate
            return None
        # In a string, a quotation mark has a backslash before it, or ends the string, and no `r` follows.
        return lines[1:-1].replace(b'},{"run":', b'}\n{"run":') + b"\n" if lines.isascii() else None

    def of_run(self, line: bytes, run_id: str) -> Line | None:
        if _quoted(run_id) not in line:  # 20 times as fast as parsing every line
            return None
        row = _row_object(line)
        if row is None or row.get("run_id") != run_id:
            return None
        seq, moment = row.get("seq"), row.get("time")
        kind = str(row.get("kind"))
        return Line(
            seq if isinstance(seq, int) else None,
            kind,
            float(moment) if isinstance(moment, (int, float)) else 0.0,
            0 if kind in ROWS else hash(json.dumps([row.get("stage"), row.get("values")], sort_keys=True)),
        )

    def is_whole(self, line: bytes) -> bool:
        return _json_object(line) is not None

    def mismatch(self, first: bytes) -> str | None:
        ours = b'{"run":'
        if first.startswith(ours) or ours.startswith(first) or _json_object(first) is not None:
            return None
        return "its first line is no JSON object"


class CsvRows:
    """One value a row, so that a metric that appears late needs no new column: Lightning's CSVLogger
    rewrites its whole file for one.

    A string is written unchanged, unless it would parse as JSON or contains a line break; then it is JSON, as
    all other values are. So a reader tries JSON, and uses the text if that fails. A name is JSON if it starts
    with a quotation mark. A cell may be as long as its value: for those of more than 131,072 characters
    Python's own reader needs `csv.field_size_limit`.
    """

    header = ",".join(CSV_COLUMNS).encode() + b"\n"

    def lines(self, record: Record) -> list[bytes]:
        start = (record.run, record.seq, record.time, record.kind, record.stage, record.step, record.epoch)
        where = [_name(cell) if isinstance(cell, str) else _number(cell) for cell in start]
        run_id = _name(record.run_id)
        return [_row([*where, _name(str(key)), _value(each), run_id]) for key, each in record.values.items()]

    def rows(self, run: str, run_id: str, points: Sequence[MetricPoint]) -> bytes | None:
        return None

    def of_run(self, line: bytes, run_id: str) -> Line | None:
        if not line.rstrip(b"\r\n").endswith(b"," + _row([_name(run_id)]).rstrip(b"\n")):
            return None
        if not (found := _ROW_START.match(line)):
            return None
        kind = found[3].decode()
        content = 0 if kind in ROWS else hash(line[found.end() :].rstrip(b"\r\n"))
        return Line(int(found[1]), kind, float(found[2]), content)

    def is_whole(self, line: bytes) -> bool:
        return _ROW.fullmatch(line) is not None and _RUN_ID_END.search(line) is not None

    def mismatch(self, first: bytes) -> str | None:
        cut_off = not first.endswith(b"\n") and self.header.startswith(first.rstrip(b"\r"))
        if cut_off or first.rstrip(b"\r\n") in (self.header.rstrip(), HEADER_BEFORE):
            return None
        return f"its columns are others than {','.join(CSV_COLUMNS)}"


def format_of(path: Path) -> Format:
    """The format that a file's name selects."""
    return CsvRows() if path.suffix == ".csv" else JsonLines()


@functools.lru_cache(maxsize=8)
def _quoted(text: str) -> bytes:
    return json.dumps(text).encode()


def _row_object(line: bytes) -> dict[str, Any] | None:
    """The object in a line. Long integers of a row may be read as floats, as its values are not used."""
    try:
        row = orjson.loads(line)
        if row["kind"] in ROWS and type(row["seq"]) is int:
            return dict(row)
    except (ValueError, TypeError, KeyError):  # none, or one that `json` reads differently
        pass
    return _json_object(line)


def _json_object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _row(cells: list[str]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _name(text: str) -> str:
    return json.dumps(text) if text.startswith('"') or _UNPRINTABLE.search(text) else text


def _number(value: Any) -> str:
    return "" if value is None else _value(value)


def _value(value: Any) -> str:
    words = plain(value)
    if isinstance(words, str) and not isinstance(value, str) and words in ("NaN", "Infinity", "-Infinity"):
        return words  # a number: spreadsheets and pandas know these words
    if isinstance(words, str):
        return json.dumps(words) if _UNPRINTABLE.search(words) or _reads_as_json(words) else words
    return json.dumps(words)


def _reads_as_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    except RecursionError:
        return True
    return True
