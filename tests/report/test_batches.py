"""A journal that is read in columns gives the same result as reading it line by line, whatever it
contains."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import example, given, settings
from hypothesis import strategies as st

from fmstune.delivery.journal.reader import Event, parse
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.report import columns, replay
from fmstune.report.curves import read_run
from fmstune.report.export import write_csv

HEADER = {"seq": 0, "kind": "header", "version": 1, "run": "run", "id": "id", "time": 1.0, "cwd": "/"}
NUMBERS = st.sampled_from([0.5, 1, 2.0, -3, 1e-7, 1e300, 2**53 + 1, 2**63, 2**64, 10**30, 1e19])
ODD = st.sampled_from(["NaN", "-Infinity", "text", None, True, [1], {"a": 1}]) | NUMBERS
LINES = ["", " ", "{", "[]", "7", '{"seq":3}', '{"kind":"metrics","values":{}}', '{"seq":9,"kind":"metrics"}']
Place = tuple[str | None, int | float | None]


@st.composite
def metrics(draw: st.DrawFn) -> dict[str, Any]:
    """The content of the next line, usually as the training logs it."""
    odd = draw(st.integers(0, 9)) == 0
    names = draw(st.sampled_from([("loss", "lr"), ("loss",), ("cpu",), ("lr", "loss"), ()]))
    line: dict[str, Any] = {"time": draw(st.sampled_from([1.5, 2.5, 3])), "kind": "metrics"}
    line["stage"] = draw(st.sampled_from(["train", "system", None, 7] if odd else ["train", "system"]))
    line["epoch"] = draw(st.sampled_from([0.1, None, 1, "x"]) if odd else st.sampled_from([0.1, 0.2, None]))
    line["step"] = draw(ODD) if odd else draw(st.integers(0, 1))
    line["values"] = {name: draw(ODD if odd else st.sampled_from([0.5, 1.5, 2, 1e-5])) for name in names}
    if odd and draw(st.booleans()):
        line["more"] = 1
    if odd:
        line["time"] = draw(st.sampled_from([1.5, math.inf, "Infinity", 10**400]))
        line["epoch"] = draw(st.sampled_from([line["epoch"], math.inf, -(10**400)]))
    return line


@st.composite
def journals(draw: st.DrawFn) -> list[str]:
    """Lines of a journal; steps mostly increase, and numbers are mostly in order."""
    found, step = list[str](), 0
    for seq in range(1, draw(st.integers(1, 25))):
        kind = draw(st.integers(0, 19))
        if kind == 0:
            found.append(draw(st.sampled_from(LINES)))
            continue
        if kind == 1:
            step = draw(st.integers(0, 5))
            line: dict[str, Any] = {"time": 2.0, "kind": "resume", "step": step, "session": "s"}
        elif kind == 2:
            line = {"time": 2.0, "kind": "status", "status": "finished"}
        else:
            line = draw(metrics())
            if type(line["step"]) is int:
                line["step"] = step = step + line["step"]
        found.append(json.dumps({"seq": max(1, seq + draw(st.sampled_from([0] * 9 + [-1, 2]))), **line}))
    return found


def one_by_one(lines: Sequence[bytes], after: int = 0) -> Iterator[Event | None]:
    """Each line as an event."""
    return map(parse, filter(bytes.strip, lines))


def results(directory: Path) -> list[Any]:
    """Everything that is derived from a run."""
    run, text = read_run(directory), io.StringIO()
    write_csv(directory, text)
    curves = [(curve.key, curve.figures(), list(curve.points()), curve.total()) for curve in run.curves]
    finite = [[list(each) for each in curve.finite()] for curve in run.curves]
    again = [list(curve.by_process()) for curve in run.curves]
    return [dataclasses.asdict(run.replay), curves, finite, again, text.getvalue()]


@given(journals(), st.booleans(), st.integers(1, 4))
@example(
    ['{"seq":1,"time":1,"kind":"metrics","stage":"a","step":null,"epoch":null,"values":{"b":-0.0}}'], True, 1
)
@settings(max_examples=100)
def test_columns_equal_the_lines(lines: list[str], in_file: bool, at_once: int) -> None:
    with tempfile.TemporaryDirectory() as name, mock.patch.object(columns, "_AT_ONCE", at_once):
        path = Path(name) / TRACKING_DIR / JOURNAL_NAME
        path.parent.mkdir()
        path.write_text("\n".join([json.dumps(HEADER), *lines, '{"seq":99,"torn']))
        with mock.patch.object(columns, "_MOST_IN_MEMORY", 0 if in_file else 1 << 20):
            found = results(Path(name))
        with mock.patch.object(replay, "batches", one_by_one):
            assert repr(found) == repr(results(Path(name)))


def test_csv_has_each_number_of_a_point_as_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / TRACKING_DIR / JOURNAL_NAME
    path.parent.mkdir()
    line = '{"seq":%d,"time":%s,"kind":"metrics","stage":"train","step":%d,"epoch":%s,"values":{"loss":0.5}}'
    numbers = [
        ("1.5", "1e999"),
        ("2.5", "null"),
        ('"Infinity"', "0.25"),
        ("1" * 400, "0.5"),
        ("4.5", "1" * 400),
    ]
    lines = [line % (seq, time, seq, epoch) for seq, (time, epoch) in enumerate(numbers, 1)]
    path.write_text("\n".join([json.dumps(HEADER), *lines, ""]))
    text = io.StringIO()
    write_csv(tmp_path, text)
    _, *rows = [row.split(",")[2:] for row in text.getvalue().splitlines()]
    assert rows == [
        ["1", "Infinity", "1.5", "0.5"], ["2", "", "2.5", "0.5"], ["3", "0.25", "Infinity", "0.5"],
        ["5", "Infinity", "4.5", "0.5"],
    ]  # fmt: skip
    assert read_run(tmp_path).replay.damaged == 1  # an out-of-range time makes the line invalid
