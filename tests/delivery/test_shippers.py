"""What the training promises to be spared, and what is delivered all the same: real processes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import resource
import signal
import sys
import time
from pathlib import Path

import pytest

from fmstune.delivery.journal.reader import JournalReader
from fmstune.delivery.ledger import load_ledger
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.report import report
from fmstune.delivery.shippers import Fleet
from fmstune.delivery.shipping.crashes import after_death
from fmstune.delivery.shipping.main import EXIT_BUSY, EXIT_DONE
from fmstune.delivery.shipping.process import Job, ShipperProcess
from fmstune.delivery.sync import sync
from tests.sample_trackers import collected
from tests.support.journals import journal_path
from tests.support.shipping import COLLECTOR, alive, deliver, job, record_steps, start_trainer, steps_in
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
    """`select` refuses descriptors past 1,023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    many = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard) if hard >= 0 else 4096, hard))
    try:
        while many[-1] < 1100:
            many.append(os.dup(many[0]))
        made = job(tmp_path / "c")
        fleet = Fleet([made], check_within=300, close_timeout=300)
        assert [check.ok for check in fleet.check().values()] == [True]
        fleet.sail(run_directory)
        record_steps(recorder, 1, 3)
        recorder.close("finished")
        fleet.finish()
    finally:
        for descriptor in many:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert steps_in(tmp_path / "c") == [1, 2, 3]


CAUSES = {
    "raise": "RuntimeError: the service is on fire",
    "exit": "SystemExit: tracker says good-bye",
    "kill": "its process died of SIGKILL",
    "segv": "its process died of SIGSEGV",
    "os_exit": "its process ended with exit code 0",
    # fmstune's own, which mean something else when fmstune ends the process
    f"os_exit{EXIT_DONE}": f"its process ended with exit code {EXIT_DONE}",
    f"os_exit{EXIT_BUSY}": f"its process ended with exit code {EXIT_BUSY}",
}


@pytest.mark.parametrize(
    ("at", "fault"),
    [
        *itertools.product(["open", "set_params", "track", "close"], list(CAUSES)[:-2]),
        *itertools.product(["track"], list(CAUSES)[-2:]),
    ],
)
def test_a_tracker_that_fails_is_caught_up_by_sync_once_it_is_well(
    at: str, fault: str, recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    well = tmp_path / "well"
    made = job(tmp_path / "c", fault=fault, at=at, until=str(well))
    told = lambda: str(error_of(run_directory)).endswith(CAUSES[fault])  # noqa: E731
    deliver(recorder, run_directory, made, close_timeout=0.2, before_end=told)
    (line,) = report(run_directory, ["collector"])
    assert line.state in ("behind", "failed")
    # The cause was seen there; a new process may have begun since.
    assert str(line.error).endswith((CAUSES[fault], "not finished in time"))
    assert line.remedy == f"fmstune trackers sync {run_directory}"
    recorder.journal.close()

    well.touch()
    (line,) = sync(run_directory, None, {}, str)
    assert line.state == "complete", line
    assert sorted(steps_in(tmp_path / "c")) == list(range(1, 11))
    assert {call["status"] for call in collected(tmp_path / "c") if call["call"] == "close"} == {"finished"}
    before = (tmp_path / "c").read_bytes()
    (line,) = sync(run_directory, None, {}, str)
    assert line.state == "complete"
    assert (tmp_path / "c").read_bytes() == before


@pytest.mark.parametrize("at", ["open", "set_params", "track", "close"])
def test_a_tracker_that_hangs_is_ended_at_the_deadline(
    at: str, recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    seconds = deliver(recorder, run_directory, job(tmp_path / "c", fault="hang", at=at), close_timeout=1.5)
    assert 1.4 < seconds < 60  # and not for ever
    (line,) = report(run_directory, ["collector"])
    assert line.state == "behind"


def test_when_the_service_comes_back_the_shipper_catches_up_by_itself(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    well = tmp_path / "well"
    fleet = Fleet(
        [job(tmp_path / "c", fault="unreachable", from_step=4, until=str(well))],
        check_within=None,
        close_timeout=300,
    )
    fleet.sail(run_directory)
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


def test_a_tracker_that_hangs_in_mid_run_is_started_again_and_catches_up(
    recorder: Recorder, run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmstune.delivery.shippers._STALLED_SECONDS", 1.0)
    monkeypatch.setattr("fmstune.delivery.shippers._LOOK_SECONDS", 0.2)
    well = tmp_path / "well"
    made = job(tmp_path / "c", fault="hang", from_step=4, until=str(well))
    fleet = Fleet([made], check_within=None, close_timeout=300)
    fleet.sail(run_directory)
    record_steps(recorder, 1, 6)
    wait_for(lambda: steps_in(tmp_path / "c") == [1, 2, 3])
    well.touch()
    wait_for(lambda: len(steps_in(tmp_path / "c")) == 6)
    recorder.close("finished")
    fleet.finish()
    assert steps_in(tmp_path / "c") == list(range(1, 7))
    assert report(run_directory, ["collector"])[0].state == "complete"


def test_a_tracker_that_leaks_is_started_again_before_it_takes_the_trainings_memory(
    recorder: Recorder, run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmstune.delivery.shippers._MOST_MEMORY", 300_000_000)
    monkeypatch.setattr("fmstune.delivery.shippers._LOOK_SECONDS", 0.1)
    fleet = Fleet([job(tmp_path / "c", fault="leak")], check_within=None, close_timeout=300)
    fleet.sail(run_directory)
    for step in range(1, 16):
        record_steps(recorder, step, step)
        wait_for(lambda step=step: step in steps_in(tmp_path / "c"))
        time.sleep(0.15)
    recorder.close("finished")
    fleet.finish()
    calls = collected(tmp_path / "c")
    assert len({call["pid"] for call in calls}) >= 3
    assert sorted(set(steps_in(tmp_path / "c"))) == list(range(1, 16))
    assert report(run_directory, ["collector"])[0].state == "complete"


def test_damaged_and_reordered_lines_of_the_journal_are_never_lost_in_silence(
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
    assert line.error == "1 damaged line of the journal (event 7) cannot be read"


def test_an_event_that_the_tracker_refuses_for_good_does_not_hold_up_the_others(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    fleet = Fleet([job(tmp_path / "c", fault="raise", at="set_params")], check_within=None, close_timeout=300)
    fleet.sail(run_directory)
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
def test_an_event_that_always_ends_the_trackers_process_is_put_aside_named_and_tried_again_by_sync(
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


def test_an_event_that_ends_the_trackers_process_does_not_hold_up_a_run_that_is_going_on(
    recorder: Recorder, run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmstune.delivery.shippers._LONGEST_PAUSE", 0.1)
    made = job(tmp_path / "c", fault="segv", only_step=2)
    fleet = Fleet([made], check_within=None, close_timeout=300)
    fleet.sail(run_directory)
    record_steps(recorder, 1, 3)
    wait_for(lambda: steps_in(tmp_path / "c") == [1, 3])
    record_steps(recorder, 4, 5)
    recorder.close("finished")
    fleet.finish()
    assert steps_in(tmp_path / "c") == [1, 3, 4, 5]
    (line,) = report(run_directory, ["collector"])
    assert (line.delivered, line.total, line.state) == (5, 6, "failed")
    assert line.error == "event 2 was refused: its process died of SIGSEGV"


def test_one_refused_event_does_not_keep_sync_from_what_comes_after_it(
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


def test_an_event_blamed_for_deaths_is_delivered_in_its_turn_once_the_tracker_is_well(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    record_steps(recorder, 1, 1)
    made = job(tmp_path / "c")
    shipper = ShipperProcess(made, check_within=None)
    shipper.ship(run_directory, follow=False, close_timeout=0)
    shipper.wait(300)
    ledger = load_ledger(run_directory, "collector")
    assert ledger is not None
    died = "its process died of SIGKILL"  # three times, the trainer's end before the fourth try
    ledger = dataclasses.replace(ledger, trying=2)
    for _ in range(3):
        ledger = after_death(ledger, died)
    ledger.save(run_directory)
    record_steps(recorder, 2, 4)
    recorder.close("finished")
    recorder.journal.close()
    (line,) = sync(run_directory, None, {}, str)
    assert (line.state, line.delivered, line.error) == ("complete", 5, None)
    assert steps_in(tmp_path / "c") == [1, 2, 3, 4]


def test_what_a_service_would_drop_in_silence_is_said_to_be_missing(
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


def test_the_shipper_outlives_a_killed_trainer_and_says_how_the_run_ended(
    run_directory: Path, tmp_path: Path
) -> None:
    trainer, shipper = start_trainer(run_directory, {"path": str(tmp_path / "c")})
    trainer.kill()
    trainer.wait()
    wait_for(lambda: collected(tmp_path / "c")[-1:] and collected(tmp_path / "c")[-1]["call"] == "close")
    assert steps_in(tmp_path / "c") == list(range(1, 21))
    assert collected(tmp_path / "c")[-1]["status"] == "interrupted"
    wait_for(lambda: not alive(shipper))
    ledger = load_ledger(run_directory, "collector")
    assert ledger is not None
    assert ledger.state == "complete"


def test_a_shipper_that_hangs_ends_itself_when_its_trainer_is_gone(
    run_directory: Path, tmp_path: Path
) -> None:
    trainer, shipper = start_trainer(
        run_directory, {"path": str(tmp_path / "c"), "fault": "hang", "at": "open"}
    )
    trainer.kill()
    trainer.wait()
    assert alive(shipper)
    wait_for(lambda: not alive(shipper))
    assert len(list(JournalReader(journal_path(run_directory)))) == 20


def test_trainer_and_shipper_killed_together_lose_nothing(run_directory: Path, tmp_path: Path) -> None:
    trainer, shipper = start_trainer(run_directory, {"path": str(tmp_path / "c"), "fault": "slow"})
    wait_for(lambda: len(steps_in(tmp_path / "c")) >= 3)
    os.killpg(shipper, signal.SIGKILL)
    trainer.kill()
    trainer.wait()
    (line,) = sync(run_directory, None, {"collector": {"fault": ""}}, str)
    assert line.state == "complete", line
    steps = steps_in(tmp_path / "c")
    # The one call that was under way when the kill came may have been made already.
    assert sorted(set(steps)) == list(range(1, 21))
    assert len(steps) <= 21
    assert len({call["id"] for call in collected(tmp_path / "c") if call["call"] == "open"}) == 1


def test_a_second_sync_at_the_same_time_says_that_there_is_a_first(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    record_steps(recorder, 1, 10)
    recorder.close("finished")
    recorder.journal.close()
    first = ShipperProcess(job(tmp_path / "c", fault="slow"), check_within=None)
    first.ship(run_directory, follow=False, close_timeout=0)
    wait_for(lambda: steps_in(tmp_path / "c"))
    (line,) = sync(run_directory, None, {}, str)
    assert line.error is not None
    assert re.fullmatch(r"another process \(pid \d+\) is delivering it right now", line.error)
    assert first.wait(300) == EXIT_DONE
    first.kill()
    assert steps_in(tmp_path / "c") == list(range(1, 11))


def test_a_run_that_is_still_going_is_not_synced(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    record_steps(recorder, 1, 2)
    (line,) = sync(
        run_directory, "collector", {"collector": {"path": str(tmp_path / "c")}}, lambda _: COLLECTOR
    )
    assert line.error == f"the run is still going, in another process (pid {os.getpid()})"
    assert not (tmp_path / "c").exists()


def test_a_whole_run_moves_to_another_tracker_and_a_second_time_changes_nothing(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    deliver(
        recorder,
        run_directory,
        Job("file", "fmstune.trackers.file_tracker:FileTracker", {"path": str(tmp_path / "f.jsonl")}),
    )
    recorder.journal.close()
    options = {"collector": {"path": str(tmp_path / "c")}}
    (line,) = sync(run_directory, "collector", options, lambda _: COLLECTOR)
    assert (line.tracker, line.state, line.delivered) == ("collector", "complete", 12)
    assert steps_in(tmp_path / "c") == list(range(1, 11))
    before = (tmp_path / "c").read_bytes()
    sync(run_directory, "collector", options, lambda _: COLLECTOR)
    assert (tmp_path / "c").read_bytes() == before


def test_a_resumed_run_goes_on_in_the_same_run_of_the_tracker(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:

    from fmstune.secrets.redaction import Redactor
    from tests.support.journals import open_journal

    deliver(recorder, run_directory, job(tmp_path / "c"))
    recorder.journal.close()
    again = Recorder(open_journal(run_directory), Redactor({}))
    again.resumed(5)
    deliver(again, run_directory, job(tmp_path / "c"))
    again.journal.close()
    opened = [call for call in collected(tmp_path / "c") if call["call"] == "open"]
    assert len(opened) == 2
    assert opened[1]["again"]
    assert opened[0]["id"] == opened[1]["id"]
    assert steps_in(tmp_path / "c") == [*range(1, 11), *range(1, 11)]


def test_an_option_that_is_a_secret_is_in_no_process_list_no_ledger_and_no_log(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    secret = "planted-0123456789"
    made = job(tmp_path / "c", api_key=secret, fault="print_key", at="open")
    fleet = Fleet([made], check_within=None, close_timeout=300)
    arguments = Path(f"/proc/{fleet._ships[0].process.pid}/cmdline").read_bytes()
    fleet.sail(run_directory, [secret])
    record_steps(recorder, 1, 1)
    recorder.close("finished")
    fleet.finish()
    assert secret.encode() not in arguments
    tracking = journal_path(run_directory).parent
    assert "the key is [redacted]" in (tracking / "collector.log").read_text()
    for path in tracking.iterdir():
        assert secret not in path.read_text()


def test_a_tracker_of_the_old_shape_receives_exactly_three_arguments(
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
    fleet = Fleet([where], check_within=None, close_timeout=60)
    fleet.sail(run_directory)
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
    # The tracker `file` keeps 12 bytes for each event, to know one that comes again.
    assert after - before < 2_000_000


def test_the_memory_of_the_trainer_does_not_grow_with_an_outage(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    import tracemalloc

    fleet = Fleet([job(tmp_path / "c", fault="hang", at="open")], check_within=None, close_timeout=0.5)
    fleet.sail(run_directory)
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
