"""Sets of refused events with real shippers: everything that the tracker accepts is delivered, in a live run
or by one `sync`, and refused events are reported."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fmstune.delivery.ledger import load_ledger
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.report import DeliveryReport, report
from fmstune.delivery.shippers import Fleet
from fmstune.delivery.shipping.process import Job
from fmstune.delivery.sync import sync
from fmstune.trackers.base import Tracker
from fmstune.trackers.records import MetricPoint, RunStart, Status, Table, TrackerRun
from tests.support.waiting import wait_for


class Odd(BaseException):
    """An error that is no `Exception`."""


@dataclass(frozen=True)
class PickyOptions:
    """`faults` maps event numbers, as strings, to what happens at them, until the file `well` exists."""

    path: str = ""
    faults: str = "{}"


class Picky(Tracker):
    """Appends event numbers to `path`, and fails at some of them."""

    Config = PickyOptions
    config: PickyOptions
    broken = False

    def open(self, start: RunStart) -> TrackerRun:
        return TrackerRun(start.tracker_run_id or "one")

    def track_point(self, point: MetricPoint) -> None:
        self._take()

    def track_table(self, table: Table) -> None:
        self._take()

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        self._take()

    def close(self, status: Status, error: str | None = None) -> None:
        self._take()

    def _take(self) -> None:
        fault = json.loads(self.config.faults).get(str(self.seq), "")
        if Path(self.config.path + ".well").exists():
            fault = ""
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "os_exit":
            os._exit(0)
        if fault == "hang":
            time.sleep(3600)
        if fault == "exit":
            sys.exit("good-bye")
        if fault == "base":
            raise Odd("neither this")
        if fault == "outage":
            raise TimeoutError("not in time")
        if fault == "break":
            self.broken = True
        if self.broken or fault == "raise":
            raise ValueError("out of range")
        with Path(self.config.path).open("a") as file:
            file.write(f"{self.seq}\n")


class PickyInOrder(Picky):
    """The same for a service that requires events in order."""

    takes_late = False


class Scenario:
    """A run whose events 1 to 12 are params, points, tables and the status, and its picky tracker."""

    def __init__(self, recorder: Recorder, directory: Path, path: Path) -> None:
        self.recorder, self.directory, self.path = recorder, directory, path

    def job(self, faults: Mapping[int, str], tracker: type[Tracker] = Picky) -> Job:
        options = {
            "path": str(self.path),
            "faults": json.dumps({str(seq): how for seq, how in faults.items()}),
        }
        return Job("picky", f"{__name__}:{tracker.__name__}", options)

    def record(self, first: int, last: int) -> None:
        for seq in range(first, last + 1):
            if seq % 5 == 1:
                self.recorder.set_params({"seq": seq}, f"params {seq}")
            elif seq % 5 == 4:
                self.recorder.track_table(Table("samples", ({"seq": seq},), "eval", seq))
            else:
                self.recorder.track_point(MetricPoint({"loss": 1.0}, "train", seq))

    def end(self) -> None:
        self.recorder.close("finished")
        self.recorder.journal.close()

    def sync(self, made: Job) -> DeliveryReport:
        (line,) = sync(self.directory, "picky", {"picky": made.options}, lambda name: made.reference)
        return line

    @property
    def taken(self) -> list[int]:
        return [int(line) for line in self.path.read_text().split()] if self.path.exists() else []


@pytest.fixture
def scenario(recorder: Recorder, run_directory: Path, tmp_path: Path) -> Scenario:
    return Scenario(recorder, run_directory, tmp_path / "picky")


def refused(scenario: Scenario) -> set[int]:
    ledger = load_ledger(scenario.directory, "picky")
    assert ledger is not None
    assert not ledger.suspicion.suspects
    return set(ledger.suspicion.refused)


@pytest.mark.parametrize(
    ("faults", "tracker"),
    [
        (dict.fromkeys((1, 2, 3, 4, 6, 11), "raise"), Picky),
        ({2: "raise", 3: "kill", 4: "base", 5: "exit", 6: "outage"}, Picky),
        ({1: "break", 2: "break", 7: "os_exit", 8: "kill"}, Picky),
        ({3: "raise", 4: "raise", 5: "kill"}, PickyInOrder),
    ],
    ids=["raises", "all kinds", "breaks the SDK", "in order"],
)
def test_one_sync_delivers_every_accepted_event_and_reports_the_rest(
    faults: dict[int, str], tracker: type[Tracker], scenario: Scenario
) -> None:
    scenario.record(1, 11)
    scenario.end()
    line = scenario.sync(scenario.job(faults, tracker))
    # Closing the run is the only call that may be repeated.
    assert sorted(seq for seq in scenario.taken if seq != 12) == [
        seq for seq in range(1, 12) if seq not in faults
    ]
    assert 12 in scenario.taken
    assert refused(scenario) == set(faults)
    assert (line.state, line.delivered, line.total) == ("failed", 12 - len(faults), 12)
    assert str(line.error).startswith(
        f"{len(faults)} events were refused, the first of them event {min(faults)}: "
    )
    if tracker is Picky:
        scenario.path.with_name("picky.well").touch()
        assert scenario.sync(scenario.job(faults)).state == "complete"
        assert set(scenario.taken) == set(range(1, 13))
        assert len([seq for seq in scenario.taken if seq != 12]) == 11


def test_a_live_run_delivers_every_accepted_event_before_it_ends(scenario: Scenario) -> None:
    faults = {2: "raise", 3: "raise", 5: "kill", 6: "raise", 7: "base"}
    fleet = Fleet([scenario.job(faults)], check_within=None, close_timeout=300)
    fleet.start_delivery(scenario.directory)
    scenario.record(1, 9)
    wait_for(lambda: set(scenario.taken) == {1, 4, 8, 9})
    scenario.record(10, 11)
    scenario.recorder.close("finished")
    fleet.finish()
    assert set(scenario.taken) == {1, 4, 8, 9, 10, 11, 12}
    (line,) = report(scenario.directory, ["picky"])
    assert (line.state, line.delivered, line.total) == ("failed", 7, 12)
    assert line.error == "5 events were refused, the first of them event 2: ValueError: out of range"


def test_an_event_at_which_the_tracker_hangs_is_skipped_in_a_live_run_and_by_sync(
    scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmstune.delivery.shippers._STALLED_SECONDS", 2.0)
    monkeypatch.setattr("fmstune.delivery.shippers._LOOK_SECONDS", 0.2)
    monkeypatch.setattr("fmstune.delivery.sync._STALLED_SECONDS", 3.0)
    fleet = Fleet([scenario.job({3: "hang"})], check_within=None, close_timeout=2)
    fleet.start_delivery(scenario.directory)
    scenario.record(1, 5)
    wait_for(lambda: set(scenario.taken) == {1, 2, 4, 5})
    scenario.end()
    fleet.finish()
    line = scenario.sync(scenario.job({3: "hang"}))
    assert set(scenario.taken) == {1, 2, 4, 5, 6}
    assert (line.state, line.delivered, line.total) == ("failed", 5, 6)
    assert str(line.error).startswith("event 3 was refused: it did not return within ")


def test_a_refused_status_ends_the_attempts_and_is_reported(scenario: Scenario) -> None:
    scenario.record(1, 3)
    scenario.end()
    line = scenario.sync(scenario.job({4: "base"}))
    assert scenario.taken == [1, 2, 3]
    assert (line.state, line.delivered, line.total) == ("behind", 3, 4)
    assert line.error == "Odd: neither this"
