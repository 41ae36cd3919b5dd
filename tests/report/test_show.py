"""`fmstune runs show` prints what is known of a run, and what is missing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fmstune.cli.app import app
from fmstune.delivery.ledger import Ledger
from fmstune.delivery.recorder import Recorder
from fmstune.layout import CONFIG_NAME
from fmstune.secrets.redaction import Redactor
from fmstune.trackers.records import Table
from tests.support.journals import changed, journal_path, make_later_version, open_journal
from tests.support.made_runs import end_run, make_run, start_run, with_settings


def shown(directory: Path) -> str:
    done = CliRunner().invoke(app, ["runs", "show", str(directory)])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


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


def test_params_in_namespaces_of_the_user_are_shown_too(tmp_path: Path) -> None:
    recorder = start_run(tmp_path / "run")
    for name, values in (("params", {"team": "nlp"}), ("own", {"a": {"b": 1}}), ("packages", {"torch": "2"})):
        recorder.set_params(values, name)
    end_run(recorder)
    (line,) = [line for line in shown(tmp_path / "run").splitlines() if line.startswith("params")]
    assert line.split()[1:] == ["team=nlp", "own.a.b=1"]


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
    lines[3] = changed(lines[3], b'"metrics"', b'"orbital"')
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
    make_later_version(path)
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
