"""A run synced from another shell continues in the original location, or reports that the location
differs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fmstune.cli.app import app
from fmstune.delivery.ledger import load_ledger
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.report import DELIVERED_AGAIN, DeliveryReport
from fmstune.delivery.shippers import Fleet
from fmstune.delivery.shipping.process import Job
from fmstune.delivery.sync import sync
from fmstune.trackers.described import described
from fmstune.trackers.records import MetricPoint
from fmstune.trackers.registry import tracker_class

VENDOR = """
import os
from pathlib import Path
from fmstune import Tracker
from fmstune.trackers.records import Limits, TrackerRun
class Vendor(Tracker):
    places = (("store", "VENDOR_STORE"),)
    limits = Limits(infinite=False)
    def open(self, start):
        self.file = Path(self.config.get("store") or os.environ.get("VENDOR_STORE", "default")) / "run"
        if not self.file.parent.is_dir():
            raise ConnectionRefusedError("not now")
        held = self.file.read_text() if self.file.exists() else ""
        if start.tracker_run_id not in held.split():
            self.file.write_text(f"{held}id-{start.new_run_id}\\n")
            return TrackerRun(f"id-{start.new_run_id}")
        return TrackerRun(start.tracker_run_id)
    def holds(self, last):
        return self.file.exists()
    def is_stored(self, start, last):
        file = Path(self.config.get("store") or os.environ.get("VENDOR_STORE", "default")) / "run"
        return file.exists()
    def track_point(self, point):
        if point.step == 2 and not (self.file.parent / "well").exists():
            raise ConnectionRefusedError("not now")
        with self.file.open("a") as file:
            file.write(f"{point.step}\\n")
"""
NAME = "vendor:Vendor"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a vendor's tracker, with two stores; nothing selects one."""
    for folder in ("a", "b", "default"):
        (tmp_path / folder).mkdir()
    (tmp_path / "vendor.py").write_text(VENDOR)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delenv("VENDOR_STORE", raising=False)
    return tmp_path


def tracked(recorder: Recorder, directory: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of two steps, the second of which the store of the variable did not receive."""
    with monkeypatch.context() as shell:
        shell.setenv("VENDOR_STORE", store)
        fleet = Fleet([Job(NAME, NAME)], check_within=None, close_timeout=2)
        fleet.start_delivery(directory)
        for step in (1, 2):
            recorder.track_point(MetricPoint({"loss": 1.0, "worst": float("inf")}, "train", step))
        recorder.close("finished")
        fleet.finish()
    recorder.journal.close()


def synced(directory: Path, **options: Any) -> DeliveryReport:
    (line,) = sync(directory, None, {NAME: options}, str)
    assert line.state == "complete", line
    return line


def steps(folder: Path) -> list[str]:
    path = folder / "run"
    return [line for line in path.read_text().split() if line.isdigit()] if path.exists() else []


def test_a_sync_without_the_variable_continues_in_the_store_where_the_run_started(
    here: Path, recorder: Recorder, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked(recorder, run_directory, str(here / "a"), monkeypatch)
    (here / "a" / "well").touch()
    done = CliRunner().invoke(app, ["trackers", "sync", str(run_directory)])
    assert (done.exit_code, steps(here / "a"), steps(here / "default")) == (0, ["1", "2"], [])
    assert "another place" not in done.stdout
    assert DELIVERED_AGAIN not in done.stdout
    assert "  adapted: metric worst was not finite at times" in done.stdout


def test_a_run_that_its_store_never_received_is_delivered_there(
    here: Path, recorder: Recorder, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked(recorder, run_directory, str(here / "later"), monkeypatch)
    (here / "later").mkdir()
    (here / "later" / "well").touch()
    synced(run_directory)
    assert (steps(here / "later"), steps(here / "default")) == (["1", "2"], [])


@pytest.mark.parametrize("by", ["variable", "option"])
def test_another_store_is_reported_and_the_next_sync_continues_there(
    by: str, here: Path, recorder: Recorder, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked(recorder, run_directory, str(here / "a"), monkeypatch)
    (here / "b" / "well").touch()
    options = {"store": str(here / "b")} if by == "option" else {}
    with monkeypatch.context() as shell:
        if by == "variable":
            shell.setenv("VENDOR_STORE", str(here / "b"))
        note = str(synced(run_directory, **options).note)
    assert note == f"this is another place than before, where VENDOR_STORE was {here / 'a'}"
    assert synced(run_directory).note is None  # it was found there, and nothing was done
    assert (steps(here / "a"), steps(here / "b")) == (["1"], ["1", "2"])


def test_a_secret_in_the_address_is_not_stored_but_asked_for(
    here: Path, recorder: Recorder, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "https://me:hunter2hunter2@example.invalid/a"
    tracked(recorder, run_directory, address, monkeypatch)
    for file in run_directory.rglob("*"):
        assert not file.is_file() or b"hunter2" not in file.read_bytes(), file
    (line,) = sync(run_directory, None, {}, str)
    assert (line.error, line.remedy) == (
        "its variable VENDOR_STORE held a secret, which the ledger does not keep", "set VENDOR_STORE again",
    )  # fmt: skip
    assert not steps(here / "default")


def test_a_run_that_was_redelivered_is_reported_once(
    here: Path, recorder: Recorder, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "a" / "well").touch()
    tracked(recorder, run_directory, str(here / "a"), monkeypatch)
    (here / "a" / "run").unlink()
    assert [synced(run_directory).note for _ in range(2)] == [DELIVERED_AGAIN, None]
    assert steps(here / "a") == ["1", "2"]


@pytest.mark.parametrize("name", ["mlflow", "trackio", "wandb", "tensorboard", "swanlab", "comet", "clearml"])
def test_the_variables_that_determine_the_location_of_a_run_are_recorded(name: str) -> None:
    tracker = tracker_class(name)
    noted = {each for group in tracker.places for each in group}
    named = {each.name: each.variables for each in described(name, tracker).options or ()}
    others = {"run_name", "name", "experiment_name", "task_name", "group", "tags", "notes", "description"}
    others |= {"private"}
    assert {variable for option in named.keys() - others for variable in named[option]} <= noted
    assert named.keys() - others <= noted


def test_a_ledger_without_a_location_is_damaged(run_directory: Path, tmp_path: Path) -> None:
    path = run_directory / "tracking" / "t.json"
    path.write_text(json.dumps({"tracker": "t", "place": {"A": 1}}))
    assert load_ledger(run_directory, "t") is None
