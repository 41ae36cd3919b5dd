"""`fmstune runs show` and `export` report exactly what was tracked."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from fmstune.cli.app import app
from fmstune.delivery.journal.reader import JournalError
from fmstune.delivery.ledger import Ledger
from fmstune.delivery.recorder import Recorder
from fmstune.layout import CONFIG_NAME
from fmstune.report.batches import Batch
from fmstune.report.replay import replay
from fmstune.secrets.redaction import Redactor
from fmstune.trackers.records import MetricPoint, Table
from tests.support.journals import journal_path, open_journal
from tests.support.made_runs import end_run, make_run, start_run, with_settings


def run_json(*arguments: str) -> Any:
    done = CliRunner().invoke(app, ["runs", *arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def shown(directory: Path) -> str:
    done = CliRunner().invoke(app, ["runs", "show", str(directory)])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


# -- random tracked events --------------------------------------------------------------------

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


# -- console output ---------------------------------------------------------------------------


def test_a_run_is_shown_with_its_identity_its_changed_settings_and_its_metrics(tmp_path: Path) -> None:
    directory = make_run(
        tmp_path / "run", {1: 3.0, 2: math.nan, 3: 1.0}, params={"team": "nlp"}, settings={"lora.r": 8}
    )
    lines = {line.split()[0]: line for line in shown(directory).splitlines() if line}
    assert lines["status"].split()[1:5] == ["finished", "·", "step", "3"]
    assert "team=nlp" in lines["params"]
    assert "lora.r=8" in lines["settings"]
    assert "dtype" not in lines["settings"]
    assert lines["train/loss"].split()[1:] == ["3", "(1", "not", "finite)", "3", "1", "3", "1", "3"]


def test_adaptations_of_a_tracker_are_shown_and_a_long_name_keeps_its_distance(tmp_path: Path) -> None:
    changes = ("metric loss was not finite at times; those points are in the journal only",)
    changes += tuple(f"a@{number} is called a_{number}" for number in range(9))
    run = make_run(tmp_path / "run")
    Ledger("tensorboard", delivered=2, total=2, changes=changes).save(run)
    lines = CliRunner().invoke(app, ["runs", "show", str(run)]).stdout.splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith("tensorboard  ")]
    assert [line.strip() for line in lines[at + 1 : at + 3]] == [
        f"adapted: {changes[0]}",
        "adapted: 9 names are others there: a@0 (a_0), a@1 (a_1), a@2 (a_2), and 6 more names",
    ]


def test_damage_and_missing_events_are_reported(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", dict.fromkeys(range(1, 6), 1.0))
    path = journal_path(directory)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"damaged\n", *lines[5:]]))
    assert "5 events · 2 events missing · 1 damaged line" in shown(directory)


@pytest.mark.parametrize(
    "command", ["compare", "plot", "report", "export", "export --to json", "export --to parquet -o f.parquet"]
)
def test_results_without_what_could_not_be_read_come_with_a_warning(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    directory = make_run(Path("run"), dict.fromkeys(range(1, 6), 1.0))
    path = journal_path(directory)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b'"metrics"', b'"orbital"')
    path.write_bytes(b"".join([*lines[:4], b"damaged\n", *lines[6:]]))
    named = [str(directory)] * (2 if command == "compare" else 1)
    done = CliRunner().invoke(app, ["runs", *command.split(), *named])
    assert done.exit_code == 0, done.output
    said = (
        "warning  run: its journal has 2 events missing, 1 damaged line, 1 event that this fmstune cannot "
        "read: a later fmstune may know events of the kind orbital; upgrade with `pip install -U fmstune`"
    )
    assert done.stderr.splitlines()[0] == said
    if command == "report":
        assert "1 event that this fmstune cannot read" in (directory / "report.html").read_text()


def test_a_run_of_a_later_version_is_listed_as_one(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run")
    path = journal_path(directory)
    path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":2', 1))
    (run,) = json.loads(CliRunner().invoke(app, ["runs", "list", str(tmp_path), "--json"]).stdout)
    assert run["status"] == "later version"
    assert "was written by a later fmstune" in run["problem"]


def test_terminal_control_characters_are_escaped_everywhere(tmp_path: Path) -> None:
    evil = "\x1b[2J\x1b]0;x\x07\nerror: y\u202e"
    directory = tmp_path / f"run{evil}"
    recorder = start_run(directory)
    recorder.set_params({evil: evil}, "params")
    recorder.set_params(with_settings({f"training.{evil}": evil, "model.path": evil}), "config")
    recorder.track(evil, f"loss{evil}", f"train{evil}", step=1)
    recorder.track_table(Table(evil, ({evil: evil},), evil, 1))
    end_run(recorder, "failed", evil)
    other = make_run(tmp_path / "other")
    for command in (
        ["show", str(directory)],
        ["compare", str(directory), str(other)],
        ["list", str(tmp_path)],
    ):
        output = CliRunner().invoke(app, ["runs", *command]).output
        assert output
        assert all(line.isprintable() for line in output.splitlines()), command
        assert not any(line.startswith("error: y") for line in output.splitlines())


def test_redacted_values_stay_redacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "run"
    journal = open_journal(directory) if (directory / "tracking").mkdir(parents=True) is None else None
    assert journal is not None
    secret = "hf_" + "aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3z"
    recorder = Recorder(journal, Redactor({}))
    recorder.set_params({"api_key": secret, "note": secret}, "params")
    recorder.close("failed", f"refused {secret}")
    journal.close()
    (directory / CONFIG_NAME).write_text(f'[trackers.x]\napi_key = "{secret}"\n')
    for arguments in (
        ["show", str(directory)], ["show", str(directory), "--json"], ["list", str(tmp_path), "--json"],
        ["export", str(directory), "--to", "json"], ["compare", str(directory), str(directory)],
    ):  # fmt: skip
        done = CliRunner().invoke(app, ["runs", *arguments])
        assert done.exit_code == 0
        assert secret not in done.output


@pytest.mark.parametrize("command", ["show", "export", "rm", "compare"])
def test_a_missing_run_suggests_the_nearest(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "baseline")
    named = ["runs/baselin"] * (2 if command == "compare" else 1)
    done = CliRunner().invoke(app, ["runs", command, *named])
    assert "Did you mean runs/baseline?" in str(done.exception)


# -- comparing --------------------------------------------------------------------------------


def test_a_comparison_shows_differing_settings_then_metrics_then_resources(tmp_path: Path) -> None:
    directories = [
        make_run(tmp_path / name, {1: loss}, params={"team": name}, settings={"training.learning_rate": rate})
        for name, loss, rate in (("a", 1.0, 1e-4), ("b", 2.0, 2e-4), ("c", 3.0, 1e-4))
    ]
    again = start_run(directories[1])
    again.track(50.0, "cpu", "system", step=1)
    again.track(0.5, "loss", "eval", step=1)
    end_run(again)
    found = run_json("compare", *map(str, directories), "--json")
    assert found["settings"]["training.learning_rate"] == [1e-4, 2e-4, 1e-4]
    assert found["settings"]["params.team"] == ["a", "b", "c"]
    assert "model.path" not in found["settings"]
    assert [each["last"] for each in found["metrics"]["train/loss"]] == [1.0, 2.0, 3.0]
    assert [each and each["last"] for each in found["metrics"]["eval/loss"]] == [None, 0.5, None]
    assert list(found["resources"]) == ["system/cpu"]
    text = CliRunner().invoke(app, ["runs", "compare", *map(str, directories)]).stdout
    order = [text.index(key) for key in ("training.learning_rate", "status", "train/loss", "system/cpu")]
    assert order == sorted(order)


# -- exports ----------------------------------------------------------------------------------


def test_csv_and_parquet_have_the_points_of_the_json_export(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", {1: 3.0, 2: math.nan, 3: -math.inf, 4: 0.1})
    again = start_run(directory)
    again.resumed(1)
    again.track_point(MetricPoint({"loss": 2.5, "note": 'ü,\n"x\ud800', "long": 2**60 + 1}, "train", 2))
    end_run(again)
    points = [
        (metric["stage"], metric["name"], point["step"], point["value"])
        for metric in run_json("export", str(directory), "--to", "json")["metrics"]
        for point in metric["values"]
    ]
    assert ("train", "loss", 2, 2.5) in points
    text = CliRunner().invoke(app, ["runs", "export", str(directory)]).stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["stage"], row["name"], row["step"]) for row in rows] == [
        (stage, name, str(step)) for stage, name, step, _ in points
    ]
    for row, (*_, value) in zip(rows, points, strict=True):  # 5e-05 and 0.00005 are the same number
        text = str(value).replace("\ud800", "\\ud800")
        assert row["value"] == text or float(row["value"]) == value

    target = tmp_path / "run.parquet"
    assert CliRunner().invoke(app, ["runs", "export", str(directory), "--to", "parquet", "-o", str(target)])
    read = pyarrow.parquet.read_table(target).to_pylist()
    assert [(row["stage"], row["name"], row["step"]) for row in read] == [point[:3] for point in points]
    assert [row["value"] for row in read if row["name"] == "loss"][::3] == [3.0, 0.1]
    assert {row["text"] for row in read} == {None, 'ü,\n"x\\ud800', str(2**60 + 1)}


def test_a_failed_export_keeps_the_existing_file(tmp_path: Path) -> None:
    target = tmp_path / "kept.csv"
    target.write_text("kept")
    done = CliRunner().invoke(app, ["runs", "export", str(tmp_path / "nope"), "-o", str(target)])
    assert done.exit_code != 0
    assert target.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [target]


def test_a_journal_that_is_rewritten_meanwhile_is_not_counted_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_run(tmp_path / "run", dict.fromkeys(range(1, 6), 1.0))
    monkeypatch.setattr("fmstune.report.replay._AT_ONCE", 3)
    path = journal_path(directory)

    def rewrite(batch: Batch) -> None:
        if 4 in batch.seqs:
            copy = path.with_name("copy")
            copy.write_bytes(path.read_bytes())
            copy.replace(path)

    with pytest.raises(JournalError, match="rewritten while it was being read"):
        replay(path, also_batch=rewrite)
