"""An event that a tracker refuses, or dies of, blocks no others and is reported: real processes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fmstune.delivery.ledger import load_ledger
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.report import report
from fmstune.delivery.shippers import Fleet
from fmstune.delivery.shipping.crashes import after_death
from fmstune.delivery.shipping.process import ShipperProcess
from fmstune.delivery.sync import sync
from fmstune.report.replay import replay
from tests.sample_trackers import collected
from tests.support.journals import journal_path
from tests.support.shipping import CAUSES, COLLECTOR, job, record_steps, steps_in
from tests.support.waiting import wait_for


def test_damaged_and_reordered_journal_lines_are_never_lost_in_silence(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    record_steps(recorder, 1, 9)
    recorder.close("finished")
    recorder.journal.close()
    path = journal_path(run_directory)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2], lines[5] = lines[5], lines[2]
    lines[7] = b"#" * (len(lines[7]) - 1) + b"\n"
    path.write_bytes(b"".join(lines))
    options = {"collector": {"path": str(tmp_path / "c")}}
    (line,) = sync(run_directory, "collector", options, lambda _: COLLECTOR)
    assert sorted(steps_in(tmp_path / "c")) == [1, 2, 3, 4, 5, 6, 8, 9]
    assert (line.state, line.delivered, line.total) == ("failed", 9, 10)
    assert line.error == "event 7 is damaged or missing in the journal"


@pytest.mark.parametrize(
    ("end", "said"),
    [
        pytest.param(b"\0" * 90, "a damaged line", id="without its end"),
        pytest.param(b"#" * 50 + b"\n", "a damaged line", id="a line"),
        pytest.param(b'{"seq":9\n\n\0\n{"se', "3 damaged lines", id="lines"),
    ],
)
def test_a_damaged_end_of_a_journal_is_said_though_no_number_is_missing(
    end: bytes, said: str, recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    record_steps(recorder, 1, 9)
    path, options = journal_path(run_directory), {"collector": {"path": str(tmp_path / "c")}}
    (line,) = report(run_directory, ["collector"])
    assert line.note is None
    recorder.journal.close()
    path.write_bytes(path.read_bytes()[:-120] + end)
    kept = replay(path).step
    assert kept in (7, 8)
    assert replay(path).damaged == (3 if said.startswith("3") else 1)
    (line,) = sync(run_directory, "collector", options, lambda _: COLLECTOR)
    assert steps_in(tmp_path / "c") == list(range(1, kept + 1))
    assert f"the journal ends with {said}" in line.line()


def test_a_permanently_refused_event_does_not_block_the_others(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    fleet = Fleet([job(tmp_path / "c", fault="raise", at="set_params")], check_within=None, close_timeout=300)
    fleet.start_delivery(run_directory)
    recorder.set_params({"odd": 1}, "params")
    record_steps(recorder, 1, 3)
    wait_for(lambda: len(steps_in(tmp_path / "c")) == 3)
    recorder.close("finished")
    fleet.finish()
    (line,) = report(run_directory, ["collector"])
    assert (line.delivered, line.total, line.state) == (4, 5, "failed")
    assert line.error is not None
    assert "on fire" in line.error


@pytest.mark.parametrize("fault", CAUSES)
def test_an_event_that_always_kills_the_trackers_process_is_skipped_reported_and_retried_by_sync(
    fault: str, recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    record_steps(recorder, 1, 6)
    recorder.close("finished")
    recorder.journal.close()
    well = tmp_path / "well"
    options = {"path": str(tmp_path / "c"), "fault": fault, "only_step": 4, "until": str(well)}
    (line,) = sync(run_directory, "collector", {"collector": options}, lambda _: COLLECTOR)
    for _ in range(2):
        assert (line.state, line.delivered, line.total) == ("failed", 6, 7)
        assert line.error == f"event 4 was refused: {CAUSES[fault]}"
        assert steps_in(tmp_path / "c") == [1, 2, 3, 5, 6]
        assert collected(tmp_path / "c")[-1]["status"] == "finished"
        opened = len(collected(tmp_path / "c"))
        (line,) = sync(run_directory, None, {}, str)
        assert len(collected(tmp_path / "c")) > opened
    well.touch()
    (line,) = sync(run_directory, None, {}, str)
    assert (line.state, line.delivered, line.error) == ("complete", 7, None)
    assert steps_in(tmp_path / "c") == [1, 2, 3, 5, 6, 4]
    statuses = {call["status"] for call in collected(tmp_path / "c") if call["call"] == "close"}
    assert statuses == {"finished"}


def test_an_event_that_kills_the_trackers_process_does_not_block_a_live_run(
    recorder: Recorder, run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmstune.delivery.shippers._LONGEST_PAUSE", 0.1)
    made = job(tmp_path / "c", fault="segv", only_step=2)
    fleet = Fleet([made], check_within=None, close_timeout=300)
    fleet.start_delivery(run_directory)
    record_steps(recorder, 1, 3)
    wait_for(lambda: steps_in(tmp_path / "c") == [1, 3])
    record_steps(recorder, 4, 5)
    recorder.close("finished")
    fleet.finish()
    assert steps_in(tmp_path / "c") == [1, 3, 4, 5]
    (line,) = report(run_directory, ["collector"])
    assert (line.delivered, line.total, line.state) == (5, 6, "failed")
    assert line.error == "event 2 was refused: its process died of SIGSEGV"


def test_one_refused_event_does_not_keep_sync_from_later_events(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    record_steps(recorder, 1, 3)
    made = job(tmp_path / "c", fault="raise", only_step=1)
    for _ in range(3):
        shipper = ShipperProcess(made, check_within=None)
        shipper.ship(run_directory, follow=False, close_timeout=0)
        shipper.wait(300)
    assert steps_in(tmp_path / "c") == [2, 3]
    record_steps(recorder, 4, 6)
    recorder.close("finished")
    recorder.journal.close()
    (line,) = sync(run_directory, None, {}, str)
    assert (line.state, line.delivered, line.total) == ("failed", 6, 7)
    assert steps_in(tmp_path / "c") == [2, 3, 4, 5, 6]
    assert collected(tmp_path / "c")[-1]["status"] == "finished"


def test_an_event_blamed_for_crashes_is_delivered_in_order_once_the_tracker_works(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    record_steps(recorder, 1, 1)
    made = job(tmp_path / "c")
    shipper = ShipperProcess(made, check_within=None)
    shipper.ship(run_directory, follow=False, close_timeout=0)
    shipper.wait(300)
    ledger = load_ledger(run_directory, "collector")
    assert ledger is not None
    died = "its process died of SIGKILL"  # three times; the trainer ends before the fourth try
    ledger = dataclasses.replace(ledger, trying=2)
    for _ in range(3):
        ledger = after_death(ledger, died, last=2)
    ledger.save(run_directory)
    record_steps(recorder, 2, 4)
    recorder.close("finished")
    recorder.journal.close()
    (line,) = sync(run_directory, None, {}, str)
    assert (line.state, line.delivered, line.error) == ("complete", 5, None)
    assert steps_in(tmp_path / "c") == [1, 2, 3, 4]


def test_events_that_a_service_would_drop_silently_are_reported_as_missing(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    record_steps(recorder, 1, 4)
    recorder.close("finished")
    recorder.journal.close()
    well = tmp_path / "well"
    made = dataclasses.replace(
        job(tmp_path / "c", fault="raise", only_step=2, until=str(well)),
        reference="tests.sample_trackers:InOrder",
    )
    for _ in range(3):
        shipper = ShipperProcess(made, check_within=None)
        shipper.ship(run_directory, follow=False, close_timeout=0)
        shipper.wait(300)
    assert steps_in(tmp_path / "c") == [1, 3, 4]
    well.touch()
    (line,) = sync(run_directory, None, {}, str)
    assert (line.state, line.delivered, line.total) == ("failed", 4, 5)
    assert line.error == "event 2 was refused: RuntimeError: the service is on fire"
    assert steps_in(tmp_path / "c") == [1, 3, 4]
