"""`fmstune runs show` and `export` report exactly what was tracked, whatever that was."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmstune.trackers.records import MetricPoint, Table
from tests.support.journals import journal_path
from tests.support.made_runs import end_run, start_run
from tests.support.reports import run_json

NUMBERS = st.one_of(
    st.floats(width=64), st.integers(-5, 5), st.integers(2**53, 2**70), st.sampled_from([math.nan, math.inf])
)
VALUES = st.one_of(NUMBERS, st.sampled_from(["a text", True, "ü\x1b"]))
STEPS = st.one_of(st.none(), st.integers(0, 6), st.just(2.5))
POINTS = st.tuples(
    st.just("point"),
    st.sampled_from([None, "train", "eval"]),
    STEPS,
    st.dictionaries(st.sampled_from(["loss", "acc"]), VALUES, min_size=1),
)
PARAMS = st.tuples(
    st.just("params"),
    st.sampled_from(["params", "own", "config"]),
    st.dictionaries(
        st.sampled_from("ab"),
        st.one_of(st.integers(), st.none(), st.dictionaries(st.sampled_from("cd"), st.integers())),
        min_size=1,
    ),
)
HAPPENINGS = st.one_of(
    POINTS,
    POINTS,
    POINTS,
    PARAMS,
    st.tuples(st.just("table"), st.sampled_from(["train", "eval"]), STEPS, st.integers(0, 3)),
    st.tuples(st.just("resume"), st.integers(0, 6), st.sampled_from([None, "failed", "interrupted"])),
    st.tuples(st.just("damage"), st.sampled_from([b"\x00\xff\n", b'{"seq":3\n', b"[]\n", b"{}\n", b"\n"])),
)


@dataclass
class Expected:
    """The expected report of a run, from its history."""

    values: dict[tuple[Any, str], dict[Any, tuple[int, list[Any]]]] = field(default_factory=dict)
    """The values of each step, and the session that tracked them: values that a resumed run repeats count."""
    last: dict[tuple[Any, str], tuple[Any, Any]] = field(default_factory=dict)
    tracked: dict[tuple[Any, str], int] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    tables: dict[Any, int] = field(default_factory=dict)
    sessions: int = 1
    damaged: int = 0
    number: int = 0

    def point(self, stage: Any, step: Any, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            self.number += 1
            key = stage, name
            at = ("none", self.number) if step is None else step
            session, values_there = self.values.setdefault(key, {}).get(at, (self.sessions, []))
            kept = values_there if session == self.sessions else []
            self.values[key][at] = self.sessions, [*kept, value]
            self.last[key] = value, step
            self.tracked[key] = self.tracked.get(key, 0) + 1


def added(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            added(into[key], value)
        else:
            into[key] = json.loads(json.dumps(value))


def word(value: Any) -> Any:
    """A value in strict JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value).replace("nan", "NaN").replace("inf", "Infinity")
    return value


def play(directory: Path, happenings: list[Any]) -> Expected:
    recorder, expected = start_run(directory), Expected()
    recorder.track(0, "begun")
    expected.point(None, None, {"begun": 0})
    for kind, *what in happenings:
        if kind == "point":
            stage, step, values = what
            recorder.track_point(MetricPoint(values, stage, step))
            expected.point(stage, step, values)
        elif kind == "params":
            name, values = what
            recorder.set_params(values, name)
            added(expected.params.setdefault(name, {}), values)
        elif kind == "table":
            stage, step, rows = what
            recorder.track_table(Table("samples", ({"q": "x"},) * rows, stage, step))
            expected.number += 1
            expected.tables[stage, ("none", expected.number) if step is None else step] = rows
        elif kind == "resume":
            step, status = what
            end_run(recorder, status)
            recorder = start_run(directory)
            recorder.resumed(step)
            recorder.set_params({"s": expected.sessions}, "config")
            expected.params["config"] = {"s": expected.sessions}
            expected.sessions += 1
        else:
            recorder.journal.close()
            with journal_path(directory).open("ab") as file:
                file.write(what[0])
            expected.damaged += what[0] != b"\n"
            recorder = start_run(directory)
    end_run(recorder)
    return expected


@settings(max_examples=30)  # each example runs two commands
@given(happenings=st.lists(HAPPENINGS, max_size=14))
def test_what_is_shown_and_exported_is_what_was_tracked(
    tmp_path_factory: pytest.TempPathFactory, happenings: list[Any]
) -> None:
    directory = tmp_path_factory.mktemp("shown") / "run"
    expected = play(directory, happenings)
    found, exported = (
        run_json("show", str(directory), "--json"),
        run_json("export", str(directory), "--to", "json"),
    )
    assert (found["status"], len(found["sessions"])) == ("finished", expected.sessions)
    assert found["damaged"] == expected.damaged
    assert found["missing"] == 0
    recorded = expected.params.pop("config", {})
    assert found["params"] == expected.params
    assert found["settings"] == recorded
    assert sorted(len(table["rows"]) for table in found["tables"]) == sorted(expected.tables.values())

    assert {(each["stage"], each["name"]) for each in found["metrics"]} == set(expected.values)
    for each, whole in zip(found["metrics"], exported["metrics"], strict=True):
        key = each["stage"], each["name"]
        values = {step: there for step, (_, there) in expected.values[key].items()}
        every = [value for there in values.values() for value in there]
        assert (each["last"], each["last_step"]) == (word(expected.last[key][0]), expected.last[key][1])
        assert (each["points"], each["tracked"]) == (len(every), expected.tracked[key])
        numbers = [value for value in every if type(value) in (int, float) and value == value]
        assert each["lowest"] == (word(min(numbers)) if numbers else None)
        assert each["highest"] == (word(max(numbers)) if numbers else None)
        steps = sorted(step for step in values if not isinstance(step, tuple))
        inorder = [*steps, *(step for step in values if isinstance(step, tuple))]
        assert [(point["step"], point["value"]) for point in whole["values"]] == [
            (None if isinstance(step, tuple) else step, word(value))
            for step in inorder
            for value in values[step]
        ]
