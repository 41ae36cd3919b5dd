"""What training is protected from, and what is delivered nevertheless: real processes."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import resource
import sys
import time
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest

from fmstune.delivery.ledger import Ledger, load_ledger
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.report import report
from fmstune.delivery.shippers import Fleet
from fmstune.delivery.shipping.process import Job
from fmstune.delivery.sync import sync
from fmstune.run.tracking import reports
from tests.sample_trackers import collected
from tests.support.journals import journal_path
from tests.support.shipping import CAUSES, deliver, job, record_steps, steps_in
from tests.support.waiting import wait_for


def test_everything_arrives_once_in_order_with_the_true_status(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    deliver(recorder, run_directory, job(tmp_path / "c"))
    calls = collected(tmp_path / "c")
    assert [call["call"] for call in calls] == ["open", "set_params", *["track"] * 10, "close"]
    assert [call["seq"] for call in calls[1:]] == list(range(1, 13))
    assert calls[-1]["status"] == "finished"
    ledger = load_ledger(run_directory, "collector")
    assert ledger is not None
    assert (ledger.state, ledger.delivered, ledger.closed) == ("complete", 12, True)
    assert ledger.run_id == calls[0]["id"]


def test_no_tracker_runs_in_the_training_process(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    deliver(recorder, run_directory, job(tmp_path / "c"))
    assert os.getpid() not in {call["pid"] for call in collected(tmp_path / "c")}
    assert "tests.sample_trackers" not in {
        name
        for name, module in sys.modules.items()
        if getattr(module, "Collector", None) and name != "tests.sample_trackers"
    }


def test_a_training_with_thousands_of_open_files_is_tracked_like_any_other(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    """`select` refuses descriptors beyond 1,023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    many = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard) if hard >= 0 else 4096, hard))
    try:
        while many[-1] < 1100:
            many.append(os.dup(many[0]))
        made = job(tmp_path / "c")
        fleet = Fleet([made], check_within=300, close_timeout=300)
        assert [check.ok for check in fleet.check().values()] == [True]
        fleet.start_delivery(run_directory)
        record_steps(recorder, 1, 3)
        recorder.close("finished")
        fleet.finish()
    finally:
        for descriptor in many:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert steps_in(tmp_path / "c") == [1, 2, 3]


@pytest.mark.parametrize(
    ("at", "fault"),
    [
        *itertools.product(["open", "set_params", "track", "close"], list(CAUSES)[:-2]),
        *itertools.product(["track"], list(CAUSES)[-2:]),
    ],
)
def test_a_failing_tracker_is_caught_up_by_sync_once_it_works(
    at: str, fault: str, recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    well = tmp_path / "well"
    made = job(tmp_path / "c", fault=fault, at=at, until=str(well))
    told = lambda: str(error_of(run_directory)).endswith(CAUSES[fault])  # noqa: E731
    deliver(recorder, run_directory, made, close_timeout=0.2, before_end=told)
    (line,) = report(run_directory, ["collector"])
    assert line.state in ("behind", "failed")
    # The cause was recorded there; a new process may have started since.
    assert str(line.error).endswith((CAUSES[fault], "not finished in time"))
    assert line.remedy == f"fmstune trackers sync {run_directory}"
    recorder.journal.close()

    well.touch()
    (line,) = sync(run_directory, None, {}, str)
    assert line.state == "complete", line
    # A process that is killed between a call and its ledger entry makes the same call again.
    steps = {call["seq"]: call["step"] for call in collected(tmp_path / "c") if call["call"] == "track"}
    assert sorted(steps.values()) == list(range(1, 11))
    assert {call["status"] for call in collected(tmp_path / "c") if call["call"] == "close"} == {"finished"}
    before = (tmp_path / "c").read_bytes()
    (line,) = sync(run_directory, None, {}, str)
    assert line.state == "complete"
    assert (tmp_path / "c").read_bytes() == before


@pytest.mark.parametrize("what", ["raise RuntimeError", "import os; os.kill(os.getpid(), 9)"])
def test_a_run_whose_disk_had_no_room_for_a_ledger_knows_its_tracker_and_options_in_the_end(
    what: str, recorder: Recorder, run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Event()

    def save(ledger: Ledger, directory: Path) -> None:
        if not full.is_set():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        saved(ledger, directory)

    saved = Ledger.save
    monkeypatch.setattr(Ledger, "save", save)
    (tmp_path / "broken_plugin.py").write_text(what)
    monkeypatch.syspath_prepend(tmp_path)
    made = Job("collector", "broken_plugin:Tracker", {"path": str(tmp_path / "c")})
    deliver(recorder, run_directory, made, close_timeout=0.1, before_end=lambda: full.set() is None)
    ledger = load_ledger(run_directory, "collector")
    assert ledger is not None
    assert (ledger.reference, ledger.options) == (made.reference, made.options)


def test_a_tracker_of_which_nothing_is_recorded_is_in_the_summary(
    recorder: Recorder, run_directory: Path
) -> None:
    Ledger("file").save(run_directory)
    file, unrecorded = reports(run_directory, ["none", "file", "aim"])
    assert (file.tracker, unrecorded.tracker) == ("file", "aim")
    assert unrecorded.line() == (
        f"there is no record of what it received · → fmstune trackers sync {run_directory} --to aim"
    )


@pytest.mark.parametrize("at", ["open", "set_params", "track", "close"])
def test_a_hanging_tracker_is_ended_at_the_deadline(
    at: str, recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    seconds = deliver(recorder, run_directory, job(tmp_path / "c", fault="hang", at=at), close_timeout=1.5)
    assert 1.4 < seconds < 60  # rather than forever
    (line,) = report(run_directory, ["collector"])
    assert line.state == "behind"


def test_a_tracker_that_waits_at_the_end_does_not_keep_another_from_being_restarted(
    recorder: Recorder, run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmstune.delivery.shippers._FIRST_PAUSE", 1000.0)  # restarts are left to the end
    waits = dataclasses.replace(
        job(tmp_path / "a", fault="wait", at="close", until=str(tmp_path / "c.works")), name="waits"
    )
    fails = job(tmp_path / "c", fault="fail_twice", at="close")
    fleet = Fleet([waits, fails], check_within=None, close_timeout=60)
    fleet.start_delivery(run_directory)
    record_steps(recorder, 1, 3)
    recorder.close("finished")
    fleet.finish()
    assert [line.state for line in report(run_directory, ["waits", "collector"])] == ["complete"] * 2


def test_a_check_without_an_answer_names_the_option_for_its_limit_and_claims_nothing_else(
    tmp_path: Path,
) -> None:
    for options, longer in (((), "--timeout SECONDS"), (("--set a=SECONDS",), "--set a=SECONDS")):
        made = job(tmp_path / "c", fault="hang", at="check")
        fleet = Fleet([made], check_within=0.2, close_timeout=0)
        (found,) = fleet.check(*options).values()
        assert found.detail == "no answer within 0.2 s"
        assert found.remedy.endswith(longer)
        assert fleet.repeated_steps() == {}
        fleet.abandon()


def test_the_shipper_catches_up_by_itself_when_the_service_is_back(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    well = tmp_path / "well"
    fleet = Fleet(
        [job(tmp_path / "c", fault="unreachable", from_step=4, until=str(well))],
        check_within=None,
        close_timeout=300,
    )
    fleet.start_delivery(run_directory)
    record_steps(recorder, 1, 6)
    wait_for(lambda: (load_ledger(run_directory, "collector") or 0) and error_of(run_directory))
    assert steps_in(tmp_path / "c") == [1, 2, 3]
    well.touch()
    wait_for(lambda: len(steps_in(tmp_path / "c")) == 6)
    record_steps(recorder, 7, 8)
    recorder.close("finished")
    fleet.finish()
    assert steps_in(tmp_path / "c") == list(range(1, 9))
    opened = [call for call in collected(tmp_path / "c") if call["call"] == "open"]
    assert len({call["id"] for call in opened}) == 1
    (line,) = report(run_directory, ["collector"])
    assert line.state == "complete"
    assert line.error is None


def test_a_tracker_that_hangs_mid_run_is_restarted_and_catches_up(
    recorder: Recorder, run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmstune.delivery.shippers._STALLED_SECONDS", 1.0)
    monkeypatch.setattr("fmstune.delivery.shippers._LOOK_SECONDS", 0.2)
    well = tmp_path / "well"
    made = job(tmp_path / "c", fault="hang", from_step=4, until=str(well))
    fleet = Fleet([made], check_within=None, close_timeout=300)
    fleet.start_delivery(run_directory)
    record_steps(recorder, 1, 6)
    wait_for(lambda: steps_in(tmp_path / "c") == [1, 2, 3])
    well.touch()
    wait_for(lambda: len(steps_in(tmp_path / "c")) == 6)
    recorder.close("finished")
    fleet.finish()
    assert steps_in(tmp_path / "c") == list(range(1, 7))
    assert report(run_directory, ["collector"])[0].state == "complete"


def test_a_training_that_was_stopped_for_a_while_ends_no_tracker_that_works(
    recorder: Recorder, run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmstune.delivery.shippers._LOOK_SECONDS", 0.1)
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=time.sleep)
    monkeypatch.setattr("fmstune.delivery.shippers.time", clock)
    stopped = Event()

    def stop() -> None:
        """What the thread that watches sees of a Ctrl-Z, and of the first step after `fg`."""
        if fleet._ships[0].at == (3, 0) and not stopped.is_set():
            clock.monotonic = lambda: time.monotonic() + 600
            record_steps(recorder, 4, 4)
            stopped.set()

    fleet = Fleet([job(tmp_path / "c")], check_within=None, close_timeout=300)
    fleet.start_delivery(run_directory, tend=stop)
    process = fleet._ships[0].process
    record_steps(recorder, 1, 3)
    wait_for(stopped.is_set)
    wait_for(lambda: steps_in(tmp_path / "c") == [1, 2, 3, 4])
    recorder.close("finished")
    fleet.finish()
    assert fleet._ships[0].process is process
    assert report(run_directory, ["collector"])[0].state == "complete"


def test_a_leaking_tracker_is_restarted_before_it_takes_the_trainings_memory(
    recorder: Recorder, run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 150_000_000
    monkeypatch.setattr("fmstune.delivery.shippers._MOST_MEMORY", most)
    monkeypatch.setattr("fmstune.delivery.shippers._LOOK_SECONDS", 0.1)
    fleet = Fleet([job(tmp_path / "c", fault="leak")], check_within=None, close_timeout=300)
    fleet.start_delivery(run_directory)
    processes = lambda: {call["pid"] for call in collected(tmp_path / "c")}  # noqa: E731
    steps = 0
    while len(processes()) < 3:
        steps += 1
        assert steps < 10
        record_steps(recorder, steps, steps)
        wait_for(lambda step=steps: step in steps_in(tmp_path / "c"))
        wait_for(lambda: fleet._ships[0].process.memory() < most)
    recorder.close("finished")
    fleet.finish()
    assert sorted(set(steps_in(tmp_path / "c"))) == list(range(1, steps + 1))
    assert report(run_directory, ["collector"])[0].state == "complete"


def test_a_secret_option_is_in_no_process_list_no_ledger_and_no_log(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    secret = "planted-0123456789"
    made = job(tmp_path / "c", api_key=secret, fault="print_key", at="open")
    fleet = Fleet([made], check_within=None, close_timeout=300)
    arguments = Path(f"/proc/{fleet._ships[0].process.pid}/cmdline").read_bytes()
    fleet.start_delivery(run_directory, [secret])
    record_steps(recorder, 1, 1)
    recorder.close("finished")
    fleet.finish()
    assert secret.encode() not in arguments
    tracking = journal_path(run_directory).parent
    assert "the key is [redacted]" in (tracking / "collector.log").read_text()
    for path in tracking.iterdir():
        assert secret not in path.read_text()


def test_a_tracker_with_the_old_interface_receives_exactly_three_arguments(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    deliver(
        recorder, run_directory, Job("old", "tests.sample_trackers:OldShape", {"path": str(tmp_path / "o")})
    )
    lines = [json.loads(line) for line in (tmp_path / "o").read_text().splitlines()]
    assert lines == [[1 / step, "loss", "train"] for step in range(1, 11)]
    (line,) = report(run_directory, ["old"])
    assert line.state == "complete"


def test_the_memory_of_a_shipper_does_not_grow_with_the_run(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    where = Job("file", "fmstune.trackers.file_tracker:FileTracker", {"path": str(tmp_path / "f.jsonl")})
    fleet = Fleet([where], check_within=None, close_timeout=300)
    fleet.start_delivery(run_directory)
    process = fleet._ships[0].process

    def resident_after(last: int) -> int:
        wait_for(lambda: report(run_directory, ["file"])[0].delivered == last)
        return process.memory()

    record_steps(recorder, 1, 3000)
    before = resident_after(3000)
    record_steps(recorder, 3001, 20000)
    after = resident_after(20000)
    recorder.close("finished")
    fleet.finish()
    # The tracker `file` keeps 12 bytes per event, to detect repeated ones.
    assert after - before < 2_000_000


def test_the_memory_of_the_trainer_does_not_grow_during_an_outage(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    import tracemalloc

    fleet = Fleet([job(tmp_path / "c", fault="hang", at="open")], check_within=None, close_timeout=0.5)
    fleet.start_delivery(run_directory)
    record_steps(recorder, 1, 100)
    tracemalloc.start()
    record_steps(recorder, 101, 5000)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    fleet.finish()
    assert grown < 100_000


def error_of(directory: Path) -> str | None:
    ledger = load_ledger(directory, "collector")
    return ledger.error if ledger else None
